#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/latent_attention.hpp>
#include <dsv3/nn/quantize.hpp>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

// Queries of some sequences over a cache whose blocks lie in no order.
template <class T, class C>
struct Case {
  using Element = CacheElement<C>;
  Memory memory{Index{1} << 25};
  Index heads, latent, nope, rope, block_size, tokens = 0;
  std::vector<std::int32_t> blocks, part, position;
  View<T, 3> q_latent, q, o;
  CachePages<C> pages;
  CacheTable table;
  double scale = 0.3;

  // lengths: entries of each sequence; queries: its last tokens.
  Case(std::vector<Index> lengths, std::vector<Index> queries, Index n, Index r, Index d_n,
       Index d_r, Index size)
      : heads(n), latent(r), nope(d_n), rope(d_r), block_size(size) {
    Index longest = 0, all = 0;
    for (const Index length : lengths) {
      longest = std::max(longest, length);
      all += groups_of(length, size);
    }
    const Index most = groups_of(longest, size);
    std::int32_t next = static_cast<std::int32_t>(all);
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (Index b = 0; b < most; ++b)
        blocks.push_back(b < groups_of(lengths[s], size) ? --next : 0);
      for (Index i = 0; i < queries[s]; ++i) {
        part.push_back(static_cast<std::int32_t>(s));
        position.push_back(static_cast<std::int32_t>(lengths[s] - queries[s] + i));
      }
      tokens += queries[s];
    }
    table.blocks = {blocks.data(), {static_cast<Index>(lengths.size()), most}};
    table.part = {part.data(), {tokens}};
    table.position = {position.data(), {tokens}};
    table.block_size = size;
    table.keys = longest;
    q_latent = memory.random<T>({tokens, heads, latent});
    q = memory.random<T>({tokens, heads, nope + rope});
    o = memory.empty<T>({tokens, heads, latent});
    pages.latent = memory.empty<C>({all * size, latent});
    pages.scales = memory.random<float>({all * size, Element::scales(latent)});
    pages.rope = memory.random<typename Element::Rope>({all * size, rope});
    if constexpr (Element::quantized)
      for (Index i = 0; i < pages.latent.size(); ++i)
        pages.latent.data[i] = C(static_cast<float>(i * 37 % 61 - 30));
    else
      fill(pages.latent, 77);
  }

  template <class Backend>
  std::vector<double> run(Backend& backend) {
    LatentAttention<T, C>{scale}.forward(backend, q_latent, q, pages, table, o, memory.arena);
    std::vector<double> values;
    for (Index i = 0; i < o.size(); ++i) values.push_back(double(accum_t<T>(o.data[i])));
    return values;
  }

  // The definition, in double.
  double expected(Index t, Index head, Index d) const {
    std::vector<double> scores;
    double largest = -1e300, total = 0, sum = 0;
    const auto slot = [&](Index j) { return table.slot(table.part(t), j); };
    const auto value = [&](Index j, Index i) {
      return double(accum_t<T>(pages.template latent_as<T>(slot(j), i)));
    };
    for (Index j = 0; j <= table.position(t); ++j) {
      double s = 0;
      for (Index i = 0; i < latent; ++i)
        s += double(accum_t<T>(q_latent(t, head, i))) * value(j, i);
      for (Index i = 0; i < rope; ++i)
        s += double(accum_t<T>(q(t, head, nope + i))) *
             double(accum_t<T>(pages.template rope_as<T>(slot(j), i)));
      scores.push_back(scale * s);
      largest = std::max(largest, scale * s);
    }
    for (std::size_t j = 0; j < scores.size(); ++j) {
      const double p = std::exp(scores[j] - largest);
      total += p;
      sum += p * value(static_cast<Index>(j), d);
    }
    return sum / total;
  }

  void check(double tolerance) const {
    double worst = 0, size = 0;
    for (Index t = 0; t < tokens; ++t)
      for (Index h = 0; h < heads; ++h)
        for (Index d = 0; d < latent; ++d) {
          const double want = expected(t, h, d);
          worst = std::max(worst, std::fabs(double(accum_t<T>(o(t, h, d))) - want));
          size = std::max(size, std::fabs(want));
        }
    CHECK(worst <= tolerance * size);
  }
};

}  // namespace

TEST_CASE("One head over two keys weighs the latents by the softmax of the scores") {
  // Scores ln 3 and 0 of keys 0 and 1: weights 3/4 and 1/4.
  double q_latent[] = {std::log(3.0), 0}, q[] = {9, 0.5};
  double latents[] = {1, 2, 0, 4}, ropes[] = {0, 0}, o[2];
  const std::int32_t blocks[] = {0}, part[] = {0}, position[] = {1};
  CacheTable table;
  table.blocks = {blocks, {1, 1}};
  table.part = {part, {1}};
  table.position = {position, {1}};
  table.block_size = 2;
  table.keys = 2;
  const CachePages<double> pages({latents, {2, 2}}, {}, {ropes, {2, 1}});
  Memory memory;
  const auto check = [&](auto& backend) {
    LatentAttention<double, double>{1.0}.forward(backend, {q_latent, {1, 1, 2}}, {q, {1, 1, 2}},
                                                 pages, table, {o, {1, 1, 2}}, memory.arena);
    CHECK(o[0] == doctest::Approx(0.75));
    CHECK(o[1] == doctest::Approx(2.5));
  };
  Cpu cpu(1);
  EigenCpu eigen;
  check(cpu);
  check(eigen);
}

TEST_CASE_TEMPLATE("Both backends compute the definition", T, double, float, bf16) {
  // Errors of a sum of n products are about n units in the last place; outputs are rounded to T.
  const double tolerance = std::is_same_v<T, double>  ? 1e-13
                           : std::is_same_v<T, float> ? 2e-5
                                                      : 1e-2;
  Case<T, T> c({700, 1, 70, 257}, {2, 1, 3, 1}, 5, 37, 3, 6, 9);
  Cpu cpu(2);
  c.run(cpu);
  c.check(tolerance);
  EigenCpu eigen;
  c.run(eigen);
  c.check(tolerance);
}

TEST_CASE("An FP8 cache is read as codes times scales") {
  Case<float, e4m3> c({300, 65}, {1, 2}, 3, 150, 4, 8, 64);
  Cpu cpu(2);
  c.run(cpu);
  c.check(2e-5);
  EigenCpu eigen;
  c.run(eigen);
  c.check(2e-5);
}

TEST_CASE_TEMPLATE("Bits depend on neither blocks nor threads nor neighbours", T, double, float,
                   bf16) {
  const std::vector<Index> lengths = {600, 130, 5}, queries = {3, 2, 1};
  Cpu one(1), three(3);
  Case<T, T> small(lengths, queries, 70, 20, 2, 4, 7);  // more heads than a tile has rows
  const auto reference = small.run(one);
  CHECK(small.run(three) == reference);
  // The same entries in another order of blocks, of another size.
  Case<T, T> large(lengths, queries, 70, 20, 2, 4, 600);
  for (Index s = 0; s < 3; ++s)
    for (Index j = 0; j < lengths[static_cast<std::size_t>(s)]; ++j) {
      const Index from = small.table.slot(s, j), to = large.table.slot(s, j);
      for (Index d = 0; d < 20; ++d) large.pages.latent(to, d) = small.pages.latent(from, d);
      for (Index d = 0; d < 4; ++d) large.pages.rope(to, d) = small.pages.rope(from, d);
    }
  CHECK(large.run(three) == reference);
  // One query alone.
  Case<T, T> alone({600}, {1}, 70, 20, 2, 4, 7);
  for (Index j = 0; j < 600; ++j) {
    const Index from = small.table.slot(0, j), to = alone.table.slot(0, j);
    for (Index d = 0; d < 20; ++d) alone.pages.latent(to, d) = small.pages.latent(from, d);
    for (Index d = 0; d < 4; ++d) alone.pages.rope(to, d) = small.pages.rope(from, d);
  }
  const Index last = 2;  // of the first sequence
  std::copy_n(&small.q_latent(last, 0, 0), 70 * 20, alone.q_latent.data);
  std::copy_n(&small.q(last, 0, 0), 70 * 6, alone.q.data);
  const auto result = alone.run(one);
  CHECK(std::equal(result.begin(), result.end(), reference.begin() + last * 70 * 20));
}

TEST_CASE("Extents that disagree are errors by name") {
  Case<float, float> c({4}, {1}, 2, 8, 2, 4, 4);
  Cpu cpu(1);
  c.o = c.memory.empty<float>({1, 2, 7});
  CHECK_THROWS_WITH_AS(
      c.run(cpu), "LatentAttention::forward: width of o (7) must equal width of the latents (8)",
      std::invalid_argument);
}
