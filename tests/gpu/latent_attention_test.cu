// Attention over a latent cache on a GPU: against double, against the row kernel, equal bits,
// times.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <dsv3/backend/cuda/latent_attention.cuh>
#include <dsv3/backend/cuda/team.cuh>
#include <dsv3/nn/latent_attention.hpp>
#include <random>
#include <vector>

#include "latent_device.cuh"
#include "where.hpp"

namespace {

using dsv3::bf16;
using dsv3::CachePages;
using dsv3::CacheTable;
using dsv3::Cuda;
using dsv3::e4m3;
using dsv3::Index;
using dsv3::View;
using dsv3::detail::LatentTile;
using latent_test::Device;
using latent_test::skipped;

// One row in double, and the sum of the magnitudes that its errors are relative to.
template <class C>
__global__ void __launch_bounds__(128)
    exact_rows_kernel(View<const bf16, 3> q_latent, View<const bf16, 3> q,
                      CachePages<const C> pages, CacheTable table, double scale, View<double, 3> o,
                      View<double, 3> size) {
  __shared__ double score[2048], largest, all;
  const Index heads = o.extent(1), t = blockIdx.x / heads, head = blockIdx.x % heads;
  const Index width = o.extent(2), rope = pages.rope.extent(1), nope = q.extent(2) - rope;
  const int keys = table.position(t) + 1;
  for (int j = threadIdx.x; j < keys; j += 128) {
    const Index slot = table.slot(table.part(t), j);
    double s = 0;
    for (Index d = 0; d < width; ++d)
      s += double(q_latent(t, head, d)) * double(pages.template latent_as<bf16>(slot, d));
    for (Index d = 0; d < rope; ++d)
      s += double(q(t, head, nope + d)) * double(pages.template rope_as<bf16>(slot, d));
    score[j] = scale * s;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    largest = score[0];
    for (int j = 1; j < keys; ++j) largest = score[j] > largest ? score[j] : largest;
  }
  __syncthreads();
  for (int j = threadIdx.x; j < keys; j += 128) score[j] = exp(score[j] - largest);
  __syncthreads();
  if (threadIdx.x == 0) {
    all = 0;
    for (int j = 0; j < keys; ++j) all += score[j];
  }
  __syncthreads();
  for (Index d = threadIdx.x; d < width; d += 128) {
    double sum = 0, sizes = 0;
    for (int j = 0; j < keys; ++j) {
      const double c =
          double(pages.template latent_as<bf16>(table.slot(table.part(t), j), d)) * score[j] / all;
      sum += c, sizes += fabs(c);
    }
    o(t, head, d) = sum, size(t, head, d) = sizes;
  }
}

struct Shape {
  Index heads, latent, rope, nope, pad;  // pad: elements between rows of everything
};
struct Part {
  int length, tokens;  // the last tokens of a sequence
};

// A cache of sequences and the queries of their last tokens; what a slot holds depends on sequence
// and position alone, so every size of block gives the same values elsewhere.
template <class C>
struct Fixture {
  static constexpr bool coded = std::is_same_v<C, e4m3>;
  static constexpr Index slow_heads = 16;  // that the row kernel is run on
  Shape shape;
  std::vector<Part> parts;
  std::vector<bf16> q_latent, q;  // [T, heads, ...]
  std::vector<C> c;               // of all keys in order, [keys, latent]
  std::vector<float> c_scales;    // [keys, groups]
  std::vector<bf16> k_rope;       // [keys, rope]
  Index tokens = 0, longest = 0;
  double scale;

  Fixture(Shape s, std::vector<Part> p) : shape(s), parts(std::move(p)) {
    for (const auto& part : parts) {
      tokens += part.tokens;
      longest = std::max(longest, Index{part.length});
    }
    scale = 1 / std::sqrt(double(shape.latent + shape.rope));
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0, 1.5f);
    q_latent.resize(static_cast<std::size_t>(tokens * shape.heads * (shape.latent + shape.pad)));
    q.resize(
        static_cast<std::size_t>(tokens * shape.heads * (shape.nope + shape.rope + shape.pad)));
    for (auto& x : q_latent) x = bf16(normal(random));
    for (auto& x : q) x = bf16(normal(random));
    for (const auto& part : parts)
      for (int j = 0; j < part.length; ++j) {
        float own = 1;
        for (Index d = 0; d < shape.latent; ++d) {
          if (coded && d % 128 == 0) c_scales.push_back(own = std::exp(normal(random)) / 300);
          if constexpr (coded)
            c.push_back(e4m3(normal(random) / own));
          else
            c.push_back(bf16(normal(random)));
        }
        for (Index d = 0; d < shape.rope; ++d) k_rope.push_back(bf16(normal(random)));
      }
  }

  struct Outcome {
    std::vector<bf16> fused, rows;
    std::vector<double> exact, size;
  };

  // Tokens [t0, t0 + count) with blocks of a size; the fused form alone unless `all`.
  Outcome run(Cuda& cuda, Index block_size, Index t0, Index count, bool all) const {
    std::vector<std::int32_t> part, position, blocks;
    Index most_blocks = dsv3::groups_of(longest, block_size), keys = 0, t = 0;
    for (Index p = 0; p < static_cast<Index>(parts.size()); ++p)
      for (int i = 0; i < parts[p].tokens; ++i, ++t) {
        if (t < t0 || t >= t0 + count) continue;
        part.push_back(static_cast<std::int32_t>(p));
        position.push_back(parts[p].length - parts[p].tokens + i);
        keys = std::max(keys, Index{position.back()} + 1);
      }
    // Blocks of all sequences, shuffled; the others are of NaN.
    Index used = 0;
    for (const auto& p : parts) used += dsv3::groups_of(p.length, block_size);
    std::vector<std::int32_t> order(static_cast<std::size_t>(used + 3));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
    std::mt19937 shuffle(static_cast<unsigned>(block_size));
    std::shuffle(order.begin(), order.end(), shuffle);
    const Index slots = (used + 3) * block_size, latent_row = shape.latent + shape.pad;
    const Index rope_row = shape.rope + shape.pad, groups = dsv3::groups_of(shape.latent, 128);
    std::vector<C> latent(static_cast<std::size_t>(slots * latent_row));
    std::vector<bf16> rope(static_cast<std::size_t>(slots * rope_row));
    std::vector<float> scales(static_cast<std::size_t>(slots * groups), NAN);
    std::memset(latent.data(), 0xFF, latent.size() * sizeof(C));
    std::memset(rope.data(), 0xFF, rope.size() * sizeof(bf16));
    blocks.assign(parts.size() * static_cast<std::size_t>(most_blocks), 0x7FFFFFFF);
    std::size_t next = 0;
    Index key = 0;
    for (std::size_t p = 0; p < parts.size(); ++p)
      for (int j = 0; j < parts[p].length; ++j, ++key) {
        auto& block = blocks[p * static_cast<std::size_t>(most_blocks) +
                             static_cast<std::size_t>(j / block_size)];
        if (j % block_size == 0) block = order[next++];
        const Index slot = Index{block} * block_size + j % block_size;
        std::copy_n(c.data() + key * shape.latent, shape.latent, latent.data() + slot * latent_row);
        std::copy_n(k_rope.data() + key * shape.rope, shape.rope, rope.data() + slot * rope_row);
        if (coded)
          std::copy_n(c_scales.data() + key * groups, groups, scales.data() + slot * groups);
      }
    const Device<bf16> d_q_latent(q_latent), d_q(q), d_rope(rope);
    const Device<C> d_latent(latent);
    const Device<float> d_scales(scales);
    const Device<std::int32_t> d_part(part), d_position(position), d_blocks(blocks);
    const auto view = [&](bf16* data, Index width) {
      View<const bf16, 3> v(data, {tokens, shape.heads, width + shape.pad});
      return v.cols(0, width).rows(t0, count);
    };
    const auto ql = view(d_q_latent.data, shape.latent);
    const auto qq = view(d_q.data, shape.nope + shape.rope);
    const CachePages<const C> pages(
        View<const C, 2>(d_latent.data, {slots, latent_row}).cols(0, shape.latent),
        View<const float, 2>(coded ? d_scales.data : nullptr, {slots, coded ? groups : 0}),
        View<const bf16, 2>(d_rope.data, {slots, rope_row}).cols(0, shape.rope));
    const CacheTable table{{d_blocks.data, {static_cast<Index>(parts.size()), most_blocks}},
                           {d_part.data, {count}},
                           {d_position.data, {count}},
                           block_size,
                           keys};
    const Index rows = count * shape.heads;
    Device<bf16> o(rows * latent_row), o_rows(rows * shape.latent);
    const auto o_view =
        View<bf16, 3>(o.data, {count, shape.heads, latent_row}).cols(0, shape.latent);
    const Index bytes = dsv3::fused_latent_attention_bytes<bf16>(cuda, count, shape.heads,
                                                                 shape.latent, shape.rope, keys);
    Device<std::byte> memory(bytes);
    dsv3::Arena scratch(memory.data, bytes);
    dsv3::fused_latent_attention(cuda, ql, qq, pages, table, scale, o_view, scratch);
    cuda.wait("test");
    CHECK(scratch.peak() <= bytes);
    Outcome outcome;
    const auto padded = o.host();
    Index between = 0;
    for (Index r = 0; r < rows; ++r)
      for (Index d = 0; d < latent_row; ++d) {
        const bf16 x = padded[static_cast<std::size_t>(r * latent_row + d)];
        if (d < shape.latent)
          outcome.fused.push_back(x);
        else
          between += x.bits != 0xFFFF;
      }
    CHECK_MESSAGE(between == 0, "elements written between the rows of o");
    if (!all) return outcome;
    Device<float> sum(rows * shape.latent);
    if (shape.heads <= slow_heads)
      dsv3::for_each_row(cuda, rows,
                         dsv3::detail::LatentAttentionRow<bf16, C>{
                             ql,
                             qq,
                             pages,
                             table,
                             scale,
                             {sum.data, {count, shape.heads, shape.latent}},
                             {o_rows.data, {count, shape.heads, shape.latent}}});
    Device<double> exact(rows * shape.latent), size(rows * shape.latent);
    dsv3::detail::launch(cuda, exact_rows_kernel<C>, static_cast<unsigned>(rows), 128, 0, ql, qq,
                         pages, table, scale,
                         View<double, 3>{exact.data, {count, shape.heads, shape.latent}},
                         View<double, 3>{size.data, {count, shape.heads, shape.latent}});
    cuda.wait("test");
    outcome.rows = o_rows.host(), outcome.exact = exact.host(), outcome.size = size.host();
    return outcome;
  }

  // Where wrong elements are, so that one run tells.
  template <class Wrong>
  Index report(const char* name, Index elements, Wrong wrong, auto print) const {
    Index count = 0, first = -1;
    std::vector<Index> by_column(static_cast<std::size_t>(shape.latent / 64 + 1)),
        by_row(static_cast<std::size_t>(shape.heads / 8 + 1)),
        by_token(static_cast<std::size_t>(tokens));
    for (Index i = 0; i < elements; ++i)
      if (wrong(i)) {
        if (count++ == 0) first = i;
        const Index d = i % shape.latent, head = i / shape.latent % shape.heads;
        ++by_column[static_cast<std::size_t>(d / 64)];
        ++by_row[static_cast<std::size_t>(head / 8)];
        ++by_token[static_cast<std::size_t>(i / shape.latent / shape.heads)];
      }
    if (count == 0) return 0;
    std::printf("  %s: heads %td, latent %td, rope %td: %td of %td wrong\n", name, shape.heads,
                shape.latent, shape.rope, count, elements);
    const auto list = [](const char* what, const std::vector<Index>& n) {
      std::printf("    by %s:", what);
      for (const Index x : n) std::printf(" %td", x);
      std::printf("\n");
    };
    list("64 columns", by_column), list("8 heads", by_row), list("token", by_token);
    for (Index i = first, shown = 0; i < elements && shown < 6; ++i)
      if (wrong(i)) {
        std::printf("    token %td head %td column %td: ", i / shape.latent / shape.heads,
                    i / shape.latent % shape.heads, i % shape.latent);
        print(i), ++shown;
      }
    return count;
  }

  // The output is rounded to bf16 (2^-8 of itself: 8 bits) and so are the weights, over which it is
  // a mean (2^-8 of the sum of magnitudes in the numerator, 2^-8 of itself below); scores are
  // sums of r + d_r products in float, worth much less. The row kernel rounds its output alone.
  void check(Cuda& cuda, Index block_size, const char* name) const {
    const auto got = run(cuda, block_size, 0, tokens, true);
    const auto n = static_cast<Index>(got.fused.size());
    const auto at = [](Index i) { return static_cast<std::size_t>(i); };
    const auto off = [&](const std::vector<bf16>& o, Index i) {
      const double x = std::fabs(double(o[at(i)]) - got.exact[at(i)]);
      const double allowed = std::ldexp(2 * std::fabs(got.exact[at(i)]) + got.size[at(i)], -8);
      return x == x ? x / (allowed * 1.05 + 1e-6) : INFINITY;
    };
    double worst = 0, worst_rows = 0;
    for (Index i = 0; i < n; ++i) {
      worst = std::max(worst, off(got.fused, i));
      if (shape.heads <= slow_heads) worst_rows = std::max(worst_rows, off(got.rows, i));
    }
    std::printf(
        "  %-28s %s heads %3td, %3td + %2td, blocks %3td: error %.3f of what is allowed, row "
        "kernel %.3f\n",
        name, coded ? "e4m3" : "bf16", shape.heads, shape.latent, shape.rope, block_size, worst,
        worst_rows);
    CHECK(report(
              name, n, [&](Index i) { return !(off(got.fused, i) <= 1); },
              [&](Index i) {
                std::printf("fused %g, row kernel %g, exact %g\n", double(got.fused[at(i)]),
                            double(got.rows[at(i)]), got.exact[at(i)]);
              }) == 0);
    CHECK(worst_rows <= 1);
  }

  // The bits of tokens [t0, t0 + count) alone, with blocks of a size, among those of all.
  void check_bits(Cuda& cuda, const std::vector<bf16>& all, Index block_size, Index t0, Index count,
                  const char* name) const {
    const auto own = run(cuda, block_size, t0, count, false).fused;
    const Index n = count * shape.heads * shape.latent, from = t0 * shape.heads * shape.latent;
    const auto at = [](Index i) { return static_cast<std::size_t>(i); };
    CHECK(report(
              name, n, [&](Index i) { return own[at(i)].bits != all[at(from + i)].bits; },
              [&](Index i) {
                std::printf("%04x, with all tokens %04x (blocks %td, tokens from %td: %td)\n",
                            own[at(i)].bits, all[at(from + i)].bits, block_size, t0, count);
              }) == 0);
  }
};

constexpr dsv3::CudaOptions no_hopper{.hopper_kernels = false};
const std::vector<Part> ragged = {{1, 1},   {63, 2},  {64, 1},   {65, 25}, {300, 1},
                                  {513, 3}, {512, 1}, {1025, 1}, {1500, 4}};

}  // namespace

TEST_CASE("Tiles of a latent cache put every chunk at a place of its own") {
  std::vector<int> seen(64 * 72);
  for (int row = 0; row < 64; ++row)
    for (int chunk = 0; chunk < 72; ++chunk) {
      const int at = dsv3::detail::latent_at(row, chunk);
      REQUIRE((at % 8 == 0 && at >= 0 && at / 8 < 64 * 72));
      ++seen[static_cast<std::size_t>(at / 8)];
    }
  CHECK(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
  // What ldmatrix reads at once, and what eight lanes write of one row, fills all banks.
  for (int chunk = 0; chunk < 72; ++chunk) {
    int banks = 0;
    for (int row = 0; row < 8; ++row) banks |= 1 << dsv3::detail::latent_at(row, chunk) / 8 % 8;
    CHECK(banks == 255);
  }
}

TEST_CASE("Units of latent attention cover every row and key once, within a part") {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    const Index heads = 1 + static_cast<Index>(random() % 150), tokens = 1 + random() % 90;
    std::vector<std::int32_t> part(tokens), position(tokens);
    Index keys = 0;
    for (Index t = 0, p = 0, at = 0; t < tokens; ++t) {
      if (t == 0 || random() % 5 == 0) p += t > 0, at = static_cast<Index>(random() % 1500);
      part[t] = static_cast<std::int32_t>(p), position[t] = static_cast<std::int32_t>(at++);
      keys = std::max(keys, at);
    }
    const auto plan = dsv3::detail::latent_plan(trial % 2 ? 132 : 1, 232448, tokens, heads,
                                                trial % 3 ? 512 : 16, 64, keys);
    CHECK(plan.tokens_each % plan.most * (tokens > plan.tokens_each) == 0);
    if (plan.partials > 0) CHECK(plan.tokens_each * heads * plan.splits <= plan.partials);
    dsv3::detail::LatentPass<bf16> in{};
    in.o = View<bf16, 3>(nullptr, {tokens, heads, 16});
    in.table.part = {part.data(), {tokens}}, in.table.position = {position.data(), {tokens}};
    in.most = plan.most, in.heads_each = plan.heads_each, in.head_blocks = plan.head_blocks;
    std::vector<int> seen(static_cast<std::size_t>(tokens * heads * plan.splits));
    bool good = true;
    for (in.first = 0; in.first < tokens; in.first += plan.tokens_each) {
      in.last = std::min(tokens, in.first + plan.tokens_each);
      const Index blocks = (in.last - in.first) * plan.head_blocks * plan.splits;
      for (Index b = 0; b < blocks; ++b) {
        const auto unit = dsv3::detail::LatentUnit::at(in, static_cast<unsigned>(b));
        if (unit.tiles() == 0) continue;
        good = good && unit.rows() <= LatentTile::rows && unit.tiles() <= 8;
        for (int r = 0; r < unit.rows(); ++r) {
          const Index t = unit.token(r), head = unit.head(r);
          good = good && t >= in.first && t < in.last && head < heads && part[t] == unit.part;
          const int end = std::min(position[t] + 1, unit.begin() + LatentTile::split);
          good = good && end <= unit.end;
          if (good && end > unit.begin())
            ++seen[static_cast<std::size_t>((t * heads + head) * plan.splits + unit.split)];
        }
      }
    }
    REQUIRE(good);
    for (Index t = 0; t < tokens; ++t)
      for (Index i = 0; i < heads * plan.splits; ++i)
        REQUIRE(seen[static_cast<std::size_t>(t * heads * plan.splits + i)] ==
                (i % plan.splits <= position[t] / LatentTile::split));
  }
}

TEST_CASE("More tokens or keys never take less memory for latent attention") {
  const auto bytes = [](Index tokens, Index heads, Index latent, Index keys) {
    return dsv3::detail::latent_plan(132, 232448, tokens, heads, latent, 64, keys).bytes();
  };
  for (Index heads : {1, 3, 16, 100, 128})
    for (Index latent : {16, 512, 600})
      for (Index tokens = 1; tokens < 400; tokens += 13)
        for (Index keys = 1; keys < 40000; keys += 1111) {
          CHECK(bytes(tokens, heads, latent, keys) <= bytes(tokens + 1, heads, latent, keys));
          CHECK(bytes(tokens, heads, latent, keys) <= bytes(tokens, heads, latent, keys + 700));
        }
}

TEST_CASE_TEMPLATE("Latent attention on a GPU agrees with double", C, bf16, e4m3) {
  if (skipped()) return;
  Cuda hopper, portable(no_hopper);
  const auto check = [](Shape shape, Cuda& cuda, Index block, const char* name) {
    Fixture<C>(shape, ragged).check(cuda, block, name);
  };
  check({3, 16, 6, 10, 0}, hopper, 16, "small");
  check({3, 16, 8, 8, 16}, hopper, 64, "small, aligned");
  check({5, 72, 20, 7, 3}, hopper, 100, "odd strides");
  if (!on_fibers || std::is_same_v<C, bf16>) check({2, 600, 70, 3, 0}, hopper, 16, "any size");
  check({2, 512, 64, 128, 0}, portable, 64, "portable, two heads");
  check({7, 300, 33, 5, 1}, portable, 16, "portable, odd strides");
  if (on_fibers) return;
  check({16, 512, 64, 128, 0}, portable, 1, "portable, few heads");
  check({128, 512, 64, 128, 0}, portable, 64, "portable");
  check({128, 512, 64, 128, 0}, hopper, 64, "hopper");
  check({100, 512, 64, 128, 16}, hopper, 100, "hopper, 100 heads");
  check({16, 512, 64, 128, 0}, hopper, 1, "hopper, few heads");
  check({3, 256, 32, 8, 0}, hopper, 16, "hopper, padded");
}

TEST_CASE_TEMPLATE("Bits of latent attention depend neither on blocks nor on neighbours", C, bf16,
                   e4m3) {
  if (skipped()) return;
  Cuda hopper, portable(no_hopper);
  const auto check = [](Shape shape, Cuda& cuda, const char* name) {
    const Fixture<C> f(shape, ragged);
    const auto all = f.run(cuda, 64, 0, f.tokens, false).fused;
    for (Index block : {1, 16, 100}) f.check_bits(cuda, all, block, 0, f.tokens, name);
    for (Index t : {0, 2, 5, 20, 30, 31, 33, 35, 38}) f.check_bits(cuda, all, 16, t, 1, name);
    f.check_bits(cuda, all, 16, 11, 19, name);
    f.check_bits(cuda, all, 100, 29, 6, name);
  };
  check({3, 16, 6, 10, 0}, hopper, "small");
  if (on_fibers) return;
  check({2, 600, 70, 3, 0}, hopper, "any size");
  check({16, 512, 64, 128, 0}, portable, "portable");
  check({16, 512, 64, 128, 0}, hopper, "hopper, few heads");
  check({128, 512, 64, 128, 0}, hopper, "hopper");
}
