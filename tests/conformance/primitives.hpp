// Conformance of primitives: memory, rows, sorting, and products of values and of codes.
#pragma once

#include "backend/codes.hpp"
#include "desk.hpp"

namespace conformance {

using dsv3::as_const;
using dsv3::Output;
using dsv3::Product;
using dsv3::ProductTag;

// --- Memory and rows ---

template <class Subjects>
void memory_keeps_what_is_copied() {
  conform_exactly<Subjects>([](auto& desk) -> Results {
    std::vector<std::int32_t> host;
    for (std::int32_t i = 0; i < 1000; ++i) host.push_back(i * i);
    const auto all = desk.put(host, {1000});
    fill_zero(desk.backend, all.data + 100, 4 * Index{37});
    copy_to_backend(desk.backend, all.data + 700, host.data(), 4 * Index{5});
    fill_zero(desk.backend, all.data, 0);
    copy_to_backend(desk.backend, all.data, host.data() + 1, 0);
    synchronize(desk.backend);
    return {desk.read("memory", all)};
  });
}

// What a team says of ranges of x. Functors: nvcc warns where a team calls a host function's
// lambda.
template <class A>
struct TeamRow {
  View<const Index, 1> length;
  View<const A, 1> x, y;
  View<A, 2> sums, largest;  // [lengths, 2]: sum and dot; largest and itself again
  View<Index, 2> places;     // [lengths, 2]: of the largest; how often it was visited

  DSV3_HD void operator()(auto team, Index row) const {
    const Index n = length(row);
    const auto left = [&](Index i) { return x(i); };
    const A sum = team.sum(n, left), dot = team.dot(n, left, [&](Index i) { return y(i); });
    const A most = team.max(n, left);
    const Index at = team.argmax(n, left);
    team.each(2, [&](Index j) { largest(row, j) = most; });  // every worker has it
    team.sync();
    team.once([&] {
      sums(row, 0) = sum;
      sums(row, 1) = dot;
      places(row, 0) = at;
      places(row, 1) += largest(row, 0) == most && largest(row, 1) == most;
    });
  }
};

template <class Subjects, class A>
void teams_agree() {
  const std::vector<Index> lengths = {0, 1, 2, 31, 32, 33, 127, 128, 129, 1000};
  const Index n = static_cast<Index>(lengths.size());
  // Numbers are below 1: a sum of k is off by less than k roundings of a value below k.
  const double ulp = std::numeric_limits<A>::epsilon();
  conform<Subjects>(
      [&](auto& desk) -> Results {
        const auto x = desk.template random<A>({1000}), y = desk.template random<A>({1000});
        // The largest twice, in places of different threads: the first counts.
        const std::vector<A> one = {A(1)};
        for (const Index i : {Index{30}, Index{95}})
          copy_to_backend(desk.backend, x.data + i, one.data(), Index{sizeof(A)});
        const auto at = desk.put(lengths, {n});
        const auto sums = desk.template empty<A>({n, 2}), largest = desk.template empty<A>({n, 2});
        const auto places = desk.template zeros<Index>({n, 2});
        for_each_row(desk.backend, n, TeamRow<A>{at, x, y, sums, largest, places});
        return {desk.read("sums", sums), desk.read("largest", largest),
                desk.read("places", places)};
      },
      [&](const Values& ours, const Values& theirs, const Limits&) {
        if (ours.name != "sums") return check_equal(ours, theirs);
        check_each(ours, theirs, [&](std::size_t i) {
          const auto k = static_cast<double>(lengths[i / 2]);
          return ulp * k * std::sqrt(k) + 1e-300;
        });
      });
}

struct VisitRow {
  View<std::int32_t, 1> visits;
  DSV3_HD void operator()(auto team, Index row) const {
    team.once([&] { visits(row) += static_cast<std::int32_t>(row % 1000 + 1); });
  }
};

template <class Subjects>
void rows_are_visited_once() {
  for (const Index rows : {Index{0}, Index{1}, Index{7}, Index{70000}})
    conform_exactly<Subjects>([&](auto& desk) -> Results {
      const auto visits = desk.template zeros<std::int32_t>({rows + 1});
      for_each_row(desk.backend, rows, VisitRow{visits});
      return {desk.read("visits", visits)};
    });
}

template <class Subjects>
void sorting_agrees() {
  struct Case {
    Index tokens, k, experts, used, gap;
  };
  for (const Case c : {Case{0, 3, 5, 5, 0}, Case{1, 1, 1, 1, 0}, Case{37, 3, 33, 33, 2},
                       Case{200, 8, 16, 1, 0}, Case{300, 4, 12001, 12001, 0}})
    conform_exactly<Subjects>([&](auto& desk) -> Results {
      const dsv3::Philox philox(2, 1);
      std::vector<std::int32_t> chosen;
      for (Index i = 0; i < c.tokens * c.k; ++i)
        chosen.push_back(static_cast<std::int32_t>(philox(static_cast<std::uint64_t>(i)).word[0] %
                                                   static_cast<std::uint32_t>(c.used)));
      const auto idx = desk.put(chosen, {c.tokens, c.k}, c.gap);
      const auto offsets = desk.template empty<Index>({c.experts + 1});
      const auto pairs = desk.template empty<std::int32_t>({c.tokens * c.k});
      const auto slots = desk.template empty<std::int32_t>({c.tokens, c.k}, c.gap);
      sort_by_expert(desk.backend, as_const(idx), offsets, pairs, slots);
      synchronize(desk.backend);
      return {desk.read("offsets", offsets), desk.read("pair_of_slot", pairs),
              desk.read("slot_of_pair", slots)};
    });
}

// --- Products of values ---

/// Elements are below 1: a sum of k products is below k, and summed in another order differs by at
/// most k times k roundings; in practice by far less than k sqrt(k), which is asked for. The
/// output's own rounding comes on top: to either neighbour of a value that seldom exceeds
/// 4 sqrt(k).
template <class TC>
double of_sums(Index depth) {
  const double k = static_cast<double>(depth) + 1;
  const double sum = std::is_same_v<dsv3::accum_t<TC>, double> ? 0x1p-53 : 0x1p-24;
  const double output = std::is_same_v<TC, bf16> ? 0x1p-8 : 0;
  return 4 * sum * k + 8 * output * std::sqrt(k);
}

template <Product p>
constexpr bool left = p != Product::tn;
template <Product p>
constexpr bool right = p == Product::nt;

template <class Subjects, Product p, class TA, class TB, class TC>
void product_agrees(Index m, Index n, Index k, Index gap) {
  INFO(m, " x ", n, " x ", k, ", rows ", gap, " apart");
  for (const Output output : {Output::overwrite, Output::add})
    conform<Subjects>(
        [&](auto& desk) -> Results {
          const auto a = left<p> ? desk.template random<TA>({m, k}, 1, gap)
                                 : desk.template random<TA>({k, m}, 1, gap);
          const auto b = right<p> ? desk.template random<TB>({n, k}, 1, gap)
                                  : desk.template random<TB>({k, n}, 1, gap);
          const auto c = desk.template random<TC>({m, n}, 1, gap);
          gemm(desk.backend, ProductTag<p>{}, as_const(a), as_const(b), c, output);
          return {desk.read("c", c)};
        },
        [&](const Values& ours, const Values& theirs, const Limits&) {
          check_each(ours, theirs, [&](std::size_t) { return of_sums<TC>(k); });
        });
}

template <class Subjects, Product p, class TA, class TB, class TC>
void products_of_sizes_agree() {
  const Index gap = 3;  // nothing is aligned
  for (const Index m : {1, 7, 29})
    for (const Index n : {1, 33})
      for (const Index k : {0, 1, 37}) product_agrees<Subjects, p, TA, TB, TC>(m, n, k, gap);
  // Several tiles each way, several blocks of the sum; aligned, as models have it.
  product_agrees<Subjects, p, TA, TB, TC>(5, 37, 1025, gap);
  product_agrees<Subjects, p, TA, TB, TC>(201, 147, 19, gap);
  product_agrees<Subjects, p, TA, TB, TC>(136, 264, 320, 0);
}

template <class Subjects, class TA, class TB, class TC>
void products_agree() {
  products_of_sizes_agree<Subjects, Product::nt, TA, TB, TC>();
  products_of_sizes_agree<Subjects, Product::nn, TA, TB, TC>();
  products_of_sizes_agree<Subjects, Product::tn, TA, TB, TC>();
}

template <class Subjects, Product p, class T, class TC>
void batched_product_agrees() {
  const Index batch = 5, m = 19, n = 35, k = 67;
  for (const Output output : {Output::overwrite, Output::add})
    for (const Index gap : {0, 3})
      conform<Subjects>(
          [&](auto& desk) -> Results {
            const auto a = left<p> ? desk.template random<T>({batch, m, k}, 1, gap)
                                   : desk.template random<T>({batch, k, m}, 1, gap);
            const auto b = right<p> ? desk.template random<T>({batch, n, k}, 1, gap)
                                    : desk.template random<T>({batch, k, n}, 1, gap);
            const auto c = desk.template random<TC>({batch, m, n}, 1, gap);
            batched_gemm(desk.backend, ProductTag<p>{}, as_const(a), as_const(b), c, output);
            return {desk.read("c", c)};
          },
          [&](const Values& ours, const Values& theirs, const Limits&) {
            check_each(ours, theirs, [&](std::size_t) { return of_sums<TC>(k); });
          });
}

/// Experts' rows: the first and the last have none; all on one.
inline std::vector<std::vector<Index>> ragged_offsets() {
  return {{0, 0, 1, 14, 14, 217, 230, 230}, {0, 0, 0, 90}};
}

template <class Subjects, Product p, class T, class TC>
void grouped_product_agrees(Index n, Index k) {
  for (const auto& offsets : ragged_offsets())
    for (const Output output : {Output::overwrite, Output::add}) {
      const Index experts = static_cast<Index>(offsets.size()) - 1, rows = offsets.back();
      conform<Subjects>(
          [&](auto& desk) -> Results {
            const auto at = desk.put(offsets, {experts + 1});
            const auto a = desk.template random<T>({rows, k});
            if constexpr (p == Product::tn) {
              const auto b = desk.template random<T>({rows, n});
              const auto c = desk.template random<TC>({experts, k, n});
              grouped_gemm(desk.backend, ProductTag<p>{}, as_const(a), as_const(b), c, as_const(at),
                           output);
              return {desk.read("c", c)};
            } else {
              const auto b = right<p> ? desk.template random<T>({experts, n, k})
                                      : desk.template random<T>({experts, k, n});
              const auto c = desk.template random<TC>({rows, n});
              grouped_gemm(desk.backend, ProductTag<p>{}, as_const(a), as_const(b), c, as_const(at),
                           output);
              return {desk.read("c", c)};
            }
          },
          [&, rows](const Values& ours, const Values& theirs, const Limits&) {
            const double bound = of_sums<TC>(p == Product::tn ? rows : k);
            check_each(ours, theirs, [&](std::size_t) { return bound; });
          });
    }
}

template <class Subjects, class T, class TC>
void grouped_products_agree() {
  for (const Index n : {37, 128}) {  // nothing aligned; as models have it
    grouped_product_agrees<Subjects, Product::nt, T, TC>(n, n == 37 ? 41 : 192);
    grouped_product_agrees<Subjects, Product::nn, T, TC>(n, n == 37 ? 41 : 192);
    grouped_product_agrees<Subjects, Product::tn, T, TC>(n, n == 37 ? 41 : 192);
  }
}

template <class Subjects>
void products_refuse_what_does_not_fit() {
  Subjects::each([](const char* name, auto& backend, const Limits&) {
    INFO("on ", name);
    Desk desk(backend);
    const auto a = desk.template random<float>({3, 4}), b = desk.template random<float>({5, 6});
    const auto c = desk.template random<float>({3, 5});
    const auto a3 = desk.template random<float>({2, 3, 4});
    const auto b3 = desk.template random<float>({3, 5, 4});
    const auto c3 = desk.template random<float>({2, 3, 5});
    const auto offsets = desk.put(std::vector<Index>{0, 3}, {2});
    const Values before = desk.read("c", c), before3 = desk.read("c3", c3);
    CHECK_THROWS_WITH_AS(gemm(backend, dsv3::nt, as_const(a), as_const(b), c, Output::add),
                         "gemm: columns of a (4) must equal columns of b (6)",
                         std::invalid_argument);
    CHECK_THROWS_WITH_AS(gemm(backend, dsv3::nn, as_const(a), as_const(b), c, Output::add),
                         "gemm: columns of b (6) must equal columns of c (5)",
                         std::invalid_argument);
    CHECK_THROWS_WITH_AS(
        batched_gemm(backend, dsv3::nt, as_const(a3), as_const(b3), c3, Output::add),
        "batched_gemm: batch of b (3) must equal batch of c (2)", std::invalid_argument);
    CHECK_THROWS_WITH_AS(grouped_gemm(backend, dsv3::nt, as_const(a), as_const(b3), c,
                                      as_const(offsets), Output::add),
                         "grouped_gemm: matrices of b (3) must equal experts (1)",
                         std::invalid_argument);
    check_equal(desk.read("c", c), before);
    check_equal(desk.read("c3", c3), before3);
  });
}

// --- Products of codes ---

/// The host's codes in the backend's memory, rows 3 elements apart as they are there.
template <class C, class Backend>
dsv3::QuantizedStack<const C> put(Desk<Backend>& desk, const codes::Codes<C>& host) {
  auto stack = host.stack;
  const auto codes = desk.put(host.memory, {static_cast<Index>(host.memory.size())});
  const auto scales = desk.put(host.scale_memory, {static_cast<Index>(host.scale_memory.size())});
  stack.codes.data = codes.data + (stack.codes.data - host.memory.data());
  stack.scales.data = scales.data;
  return stack;
}

/// The sums of magnitudes that bound what a product of codes may be off by.
template <class Subjects>
void product_of_codes_agrees(double rounding, Output output, auto&& run) {
  dsv3::EigenCpu reference;
  Desk desk(reference);
  const Values bound = run(desk, codes::Fill::positive, Output::overwrite);
  conform<Subjects>([&](auto& own) -> Results { return {run(own, codes::Fill::any, output)}; },
                    [&](const Values& ours, const Values& theirs, const Limits& limits) {
                      check_each(ours, theirs, [&](std::size_t i) {
                        return limits.codes * bound.of[i] + rounding * std::abs(theirs.of[i]) +
                               1e-300;
                      });
                    });
}

template <class Subjects, Product p, class CA, class CB, class TC>
void codes_agree(Index m, Index n, Index k, codes::Groups ga, codes::Groups gb) {
  INFO(m, " x ", n, " x ", k);
  const double rounding = std::is_same_v<TC, bf16> ? 0x1p-7 : 0x1p-23;
  for (const Output output : {Output::overwrite, Output::add})
    product_of_codes_agrees<Subjects>(
        rounding, output, [&](auto& desk, codes::Fill fill, Output how) {
          const auto a = codes::operand<CA>(1, m, k, left<p>, ga, 1, fill);
          const auto b = codes::operand<CB>(1, n, k, right<p>, gb, 2, fill);
          const auto on_a = put(desk, a);
          const auto on_b = put(desk, b);
          const auto c = desk.template random<TC>({m, n});
          gemm(desk.backend, ProductTag<p>{}, on_a[0], on_b[0], c, how);
          return desk.read("c", c);
        });
}

template <class Subjects, class CA, class CB, class TC>
void products_of_codes_agree() {
  struct Size {
    Index m, n, k;
  };
  for (const Size s : {Size{1, 1, 1}, Size{5, 37, 129}, Size{70, 33, 300}}) {
    codes_agree<Subjects, Product::nt, CA, CB, TC>(s.m, s.n, s.k, {1, 128}, {128, 128});
    codes_agree<Subjects, Product::nn, CA, CB, TC>(s.m, s.n, s.k, {1, 128}, {128, 128});
    codes_agree<Subjects, Product::tn, CA, CB, TC>(s.m, s.n, s.k, {1, 128}, {1, 128});
  }
  codes_agree<Subjects, Product::nt, CA, CB, TC>(9, 11, 65, {1, 32}, {4, 32});
  codes_agree<Subjects, Product::nt, CA, CB, TC>(9, 11, 65, {0, 0}, {0, 0});
}

template <class Subjects, Product p, class TC>
void grouped_codes_agree(Index n, Index k) {
  using dsv3::e4m3;
  for (const auto& offsets : ragged_offsets()) {
    const Index experts = static_cast<Index>(offsets.size()) - 1, rows = offsets.back();
    const double rounding = std::is_same_v<TC, bf16> ? 0x1p-7 : 0x1p-23;
    for (const Output output : {Output::overwrite, Output::add})
      product_of_codes_agrees<Subjects>(
          rounding, output, [&](auto& desk, codes::Fill fill, Output how) {
            const auto at = desk.put(offsets, {experts + 1});
            if constexpr (p == Product::tn) {
              // Groups of rows begin anew at each expert: rows / 128 + experts rows of scales.
              const Index groups = rows / 128 + experts;
              const codes::Codes<e4m3> a(1, groups * 128, k, 128, 1, 1, fill);
              const codes::Codes<e4m3> b(1, groups * 128, n, 128, 1, 2, fill);
              auto on_a = put(desk, a)[0];
              auto on_b = put(desk, b)[0];
              on_a.codes = on_a.codes.rows(0, rows), on_b.codes = on_b.codes.rows(0, rows);
              const auto c = desk.template random<TC>({experts, k, n});
              grouped_gemm(desk.backend, ProductTag<p>{}, on_a, on_b, c, as_const(at), how);
              return desk.read("c", c);
            } else {
              const auto a = codes::operand<e4m3>(1, rows, k, true, {1, 128}, 1, fill);
              const auto b = codes::operand<e4m3>(experts, n, k, right<p>, {128, 128}, 2, fill);
              const auto c = desk.template random<TC>({rows, n});
              grouped_gemm(desk.backend, ProductTag<p>{}, put(desk, a)[0], put(desk, b), c,
                           as_const(at), how);
              return desk.read("c", c);
            }
          });
  }
}

template <class Subjects>
void grouped_products_of_codes_agree() {
  grouped_codes_agree<Subjects, Product::nt, bf16>(37, 141);
  grouped_codes_agree<Subjects, Product::nn, bf16>(37, 141);
  grouped_codes_agree<Subjects, Product::tn, float>(37, 41);
}

}  // namespace conformance
