#include "codes.hpp"

using namespace codes;

namespace {

// Rows of experts: where each begins, and the end of the last.
struct Experts {
  std::vector<Index> offsets;

  Index count() const { return static_cast<Index>(offsets.size()) - 1; }
  Index rows() const { return offsets.back(); }
  Index first(Index e) const { return offsets[static_cast<std::size_t>(e)]; }
  Index rows_of(Index e) const { return first(e + 1) - first(e); }
  View<const Index, 1> view() const { return {offsets.data(), {count() + 1}}; }
};

const Experts ragged{{0, 0, 1, 128, 128, 256, 385, 398, 398}};  // empty: first, middle and last
const Experts one_of_four{{0, 0, 0, 90, 90}};                   // all rows on one expert
const Experts none{{0, 0, 0}};

constexpr Index n = 37, k = 161;

// nt and nn: activations in groups of 1 x tile, one matrix of weights for each expert.
template <Product p, class TC>
struct Forward {
  const Experts& experts;
  Codes<e4m3> a;
  Codes<e4m3> b;
  Out<TC> c;

  Forward(const Experts& e, Index tile, Index block, Fill fill)
      : experts(e),
        a(1, e.rows(), k, tile ? 1 : 0, tile, 1, fill),
        b(operand<e4m3>(e.count(), n, k, p == Product::nt, {block, block}, 2, fill)),
        c(1, e.rows(), n) {}

  template <class Backend>
  Out<TC> multiply(Backend& backend, Output output) const {
    Out<TC> result = c;
    result.view.data = result.memory.data();
    grouped_gemm(backend, ProductTag<p>{}, a.matrix(), b.stack, result.matrix(), experts.view(),
                 output);
    return result;
  }
};

// tn: both operands in groups of tile x 1 that begin anew at each expert.
template <class TC>
struct WeightGradient {
  const Experts& experts;
  std::vector<e4m3> a_codes, b_codes;
  std::vector<float> a_scales, b_scales;
  Index tile;
  Out<TC> c;

  WeightGradient(const Experts& e, Index t, Index /*block*/, Fill fill)
      : experts(e), tile(t), c(e.count(), k, n) {
    const Index groups = tile ? e.rows() / tile + e.count() : 1;
    const Philox philox(6, 1);
    std::uint64_t at = 0;
    const auto make = [&](auto& codes, auto& scales, Index columns) {
      for (Index i = 0; i < e.rows() * columns; ++i)
        codes.push_back(random_code<e4m3>(philox(at++).word[0], fill));
      for (Index i = 0; i < groups * (tile ? columns : 1); ++i) {
        const double u = uniform(philox(at++).word[0]);
        scales.push_back(static_cast<float>(
            fill == Fill::integers ? std::ldexp(1.0, static_cast<int>(5 * u) - 2) : 1 + u));
      }
    };
    make(a_codes, a_scales, k);
    make(b_codes, b_scales, n);
  }

  Quantized<const e4m3> matrix(const std::vector<e4m3>& codes, const std::vector<float>& scales,
                               Index columns) const {
    const View<const e4m3, 2> view(codes.data(), {experts.rows(), columns});
    if (tile == 0)
      return {view, {scales.data(), 1, 1}, group_size(0, experts.rows()), group_size(0, columns)};
    return {view, {scales.data(), experts.rows() / tile + experts.count(), columns}, tile, 1};
  }
  Quantized<const e4m3> a() const { return matrix(a_codes, a_scales, k); }
  Quantized<const e4m3> b() const { return matrix(b_codes, b_scales, n); }

  template <class Backend>
  Out<TC> multiply(Backend& backend, Output output) const {
    Out<TC> result = c;
    result.view.data = result.memory.data();
    grouped_gemm(backend, tn, a(), b(), result.view, experts.view(), output);
    return result;
  }
};

template <template <class> class Case, class TC>
void compare_one(const Experts& experts, Index tile, Index block) {
  EigenCpu reference;
  Cpu cpu(2);
  poison(cpu);
  CAPTURE(tile);
  CAPTURE(block);
  for (const Output output : {Output::overwrite, Output::add}) {
    const Case<TC> any(experts, tile, block, Fill::any);
    const Case<float> positive(experts, tile, block, Fill::positive);
    CHECK(beyond(any.multiply(cpu, output), any.multiply(reference, output),
                 positive.multiply(reference, Output::overwrite)) == 0);
    const Case<TC> integers(experts, tile, block, Fill::integers);
    CHECK(integers.multiply(cpu, output) == integers.multiply(reference, output));
  }
}

template <template <class> class Case>
void compare() {
  for (const Experts* experts : {&ragged, &one_of_four, &none}) {
    for (const Index tile : {32, 64, 128, 256, 0}) compare_one<Case, float>(*experts, tile, 128);
    compare_one<Case, float>(*experts, 64, 32);
    compare_one<Case, bf16>(*experts, 128, 0);
    compare_one<Case, bf16>(*experts, 0, 0);
  }
}

template <class TC>
using ForwardNt = Forward<Product::nt, TC>;
template <class TC>
using ForwardNn = Forward<Product::nn, TC>;

}  // namespace

TEST_CASE(
    "Cpu's grouped products of codes agree with EigenCpu's, to the bit where sums are exact") {
  SUBCASE("nt") { compare<ForwardNt>(); }
  SUBCASE("nn") { compare<ForwardNn>(); }
  SUBCASE("tn") { compare<WeightGradient>(); }
}

TEST_CASE("An expert without rows has a zero gradient, and adds nothing to one") {
  Cpu cpu(1);
  poison(cpu);
  const WeightGradient<float> x(one_of_four, 128, 128, Fill::any);
  const auto added = x.multiply(cpu, Output::add), replaced = x.multiply(cpu, Output::overwrite);
  for (const Index e : {0, 1, 3})
    for (Index i = 0; i < k; ++i)
      for (Index j = 0; j < n; ++j) {
        REQUIRE(added.view(e, i, j) == x.c.view(e, i, j));
        REQUIRE(replaced.view(e, i, j) == 0.0f);
      }
}

TEST_CASE("The bits of a grouped product of codes do not depend on threads") {
  const auto check = [](const auto& x) {
    Cpu one(1);
    const auto once = x.multiply(one, Output::add);
    for (const int threads : {2, 3, 5}) {
      Cpu cpu(threads);
      CHECK(x.multiply(cpu, Output::add) == once);
    }
  };
  check(Forward<Product::nt, float>(ragged, 128, 128, Fill::any));
  check(Forward<Product::nn, bf16>(ragged, 128, 128, Fill::any));
  check(WeightGradient<float>(ragged, 128, 128, Fill::any));
}

TEST_CASE("An expert has the bits of its own rows alone") {
  Cpu cpu(3), one(1);
  const Forward<Product::nt, float> x(ragged, 128, 128, Fill::any);
  const auto all = x.multiply(cpu, Output::overwrite);
  const WeightGradient<float> w(ragged, 128, 128, Fill::any);
  const auto gradients = w.multiply(cpu, Output::overwrite);
  for (Index e = 0; e < ragged.count(); ++e) {
    const Index first = ragged.first(e), count = ragged.rows_of(e);
    for (Index row = first; row < first + count; row += 7) {
      Out<float> alone(1, 1, n);
      gemm(one, nt, x.a.matrix().rows(row, 1), x.b.stack[e], alone.matrix(), Output::overwrite);
      CHECK(std::memcmp(&alone.view(0, 0, 0), &all.view(0, row, 0), n * sizeof(float)) == 0);
    }
    Out<float> alone(1, k, n);
    gemm(one, tn, w.a().segment(e, first, count), w.b().segment(e, first, count), alone.matrix(),
         Output::overwrite);
    CHECK(std::memcmp(&alone.view(0, 0, 0), &gradients.view(e, 0, 0), k * n * sizeof(float)) == 0);
  }
}

TEST_CASE("Cpu's grouped products of codes refuse extents and groups that do not fit") {
  Cpu cpu(1);
  const Forward<Product::nt, float> x(ragged, 128, 128, Fill::any);
  Out<float> c(1, ragged.rows(), n);
  const auto offsets = one_of_four.view();
  CHECK_THROWS_WITH_AS(grouped_gemm(cpu, nt, x.a.matrix(), x.b.stack, c.matrix(), offsets, {}),
                       "grouped_gemm: matrices of b (8) must equal experts (4)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      grouped_gemm(cpu, nn, x.a.matrix(), x.b.stack, c.matrix(), ragged.view(), {}),
      "grouped_gemm: columns of b (161) must equal columns of c (37)", std::invalid_argument);
  const WeightGradient<float> w(ragged, 128, 128, Fill::any);
  Out<float> few(4, k, n), wide(8, k, n + 1);
  CHECK_THROWS_WITH_AS(grouped_gemm(cpu, tn, w.a(), w.b(), few.view, ragged.view(), {}),
                       "grouped_gemm: matrices of c (4) must equal experts (8)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(grouped_gemm(cpu, tn, w.a(), w.b(), wide.view, ragged.view(), {}),
                       "grouped_gemm: columns of b (37) must equal columns of each c (38)",
                       std::invalid_argument);
  const char* groups =
      "grouped_gemm: groups along the sum (16) must be a multiple of segments (16), of which 32, "
      "64 and 128 are supported";
  const Forward<Product::nt, float> narrow(ragged, 16, 128, Fill::any);
  CHECK_THROWS_WITH_AS(narrow.multiply(cpu, {}), groups, std::invalid_argument);
  const WeightGradient<float> low(ragged, 16, 128, Fill::any);
  CHECK_THROWS_WITH_AS(low.multiply(cpu, {}), groups, std::invalid_argument);
}
