// Fused attention of a GPU against sums in double on the host.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstring>
#include <dsv3/backend/cuda/team.cuh>
#include <dsv3/core/dry_run.hpp>
#include <dsv3/nn/attention.hpp>
#include <numeric>
#include <vector>

#include "attention_case.cuh"
#include "where.hpp"

// Not `using namespace`: nvcc puts CUDA's own functions after it, whose calls of exp and sqrt would
// become ambiguous.
namespace dsv3 {
namespace {

using namespace fixture;
using fixture::Buffer;  // not dsv3::Buffer

// Elements of rows [from, from + count) of a and [other, other + count) of b with unequal bits.
template <class T, int Rank>
long unequal(const char* name, const View<T, Rank>& a, Index from, const View<T, Rank>& b,
             Index other, Index count) {
  long bad = 0;
  for (Index r = 0; r < count; ++r)
    for (Index h = 0; h < (Rank == 3 ? a.extents[1] : 1); ++h)
      for (Index d = 0; d < a.extents[Rank - 1]; ++d) {
        const T& x = a.data[(from + r) * a.strides[0] + (Rank == 3 ? h * a.strides[1] : 0) + d];
        const T& y = b.data[(other + r) * b.strides[0] + (Rank == 3 ? h * b.strides[1] : 0) + d];
        if (std::memcmp(&x, &y, sizeof(T)) != 0 && bad++ < 3)
          std::printf("  %s: row %ld, head %ld, column %ld: %.9g and %.9g\n", name, long(r),
                      long(h), long(d), double(x), double(y));
      }
  if (bad) std::printf("  %s: %ld differ\n", name, bad);
  return bad;
}

// Copies rows [from, from + count) of a into those of b from `to` on.
template <int Rank>
void copy_rows(Buffer<bf16, Rank>& a, Index from, Buffer<bf16, Rank>& b, Index to, Index count) {
  for (Index r = 0; r < count; ++r)
    for (Index h = 0; h < (Rank == 3 ? a.host.extents[1] : 1); ++h)
      for (Index d = 0; d < a.host.extents[Rank - 1]; ++d)
        b.host.data[(to + r) * b.host.strides[0] + (Rank == 3 ? h * b.host.strides[1] : 0) + d] =
            a.host
                .data[(from + r) * a.host.strides[0] + (Rank == 3 ? h * a.host.strides[1] : 0) + d];
  b.upload();
}

// Spoils rows [from, from + count).
template <int Rank>
void make_nan(Buffer<bf16, Rank>& a, Index from, Index count) {
  for (Index r = from; r < from + count; ++r)
    for (Index h = 0; h < (Rank == 3 ? a.host.extents[1] : 1); ++h)
      for (Index d = 0; d < a.host.extents[Rank - 1]; ++d)
        a.host.data[r * a.host.strides[0] + (Rank == 3 ? h * a.host.strides[1] : 0) + d] =
            Buffer<bf16, Rank>::nan();
  a.upload();
}

bool skipped() {
  const std::string reason = cuda_unavailable();
  if (!reason.empty()) std::printf("skipped: %s\n", reason.c_str());
  return !reason.empty();
}

constexpr Sizes v3{2, 128, 64, 128};

// What Attention asks before it takes a backend's own form.
template <class T>
constexpr bool has_fused = requires(Cuda& cuda, View<const T, 3> q, View<const T, 2> k,
                                    View<const std::int32_t, 1> list, View<T, 3> o,
                                    View<accum_t<T>, 2> lse, Arena& scratch) {
  fused_attention_forward(cuda, q, q, k, list, list, list, list, 1.0, o, lse, scratch);
};
static_assert(has_fused<bf16> && !has_fused<float> && !has_fused<double>);

}  // namespace

TEST_CASE("Tiles of attention start at multiples of their size from each sequence's start") {
  const int lengths[] = {1, 128, 129, 300};
  Index begin = 0;
  for (int length : lengths) {
    for (Index t = begin; t < begin + length; ++t)
      CHECK(detail::attention_tile_starts(t, begin, 128) == ((t - begin) % 128 == 0));
    begin += length;
  }
  CHECK(detail::attention_unit(0, 5, true).tile == 4);
  CHECK(detail::attention_unit(7, 5, false).tile == 2);
  CHECK(detail::attention_unit(7, 5, false).head == 1);
}

TEST_CASE("A swizzled tile has every chunk once, and 8 rows of a chunk in 8 banks") {
  for (int width : {64, 128, 192, 256}) {
    std::vector<int> seen(static_cast<std::size_t>(64 * width / 8), 0);
    for (int row = 0; row < 64; ++row)
      for (int chunk = 0; chunk < width / 8; ++chunk)
        ++seen[detail::attention_chunk(row, chunk, width) / 16];
    for (int n : seen) CHECK(n == 1);
    for (int chunk = 0; chunk < width / 8; ++chunk) {
      unsigned banks = 0;
      for (int row = 0; row < 8; ++row)
        banks |= 1u << (detail::attention_chunk(row, chunk, width) / 16 % 8);
      CHECK(banks == 0xFF);
    }
  }
}

namespace {

struct Run {
  const char* what;
  std::vector<int> lengths;
  Sizes sizes;
  double scale;
  Index pad, shift;
};
std::vector<Run> runs() {
  std::vector<Run> all = {
      {"one token", {1}, v3, 0.1, 0, 0},
      {"63 tokens", {63}, v3, 0.1, 0, 0},
      {"64 tokens", {64}, v3, 0.1, 0, 0},
      {"65 tokens", {65}, v3, 0.1, 8, 0},
      {"200 tokens", {200}, v3, 0.1, 0, 8},
      {"ragged", {3, 130, 1, 64, 129, 77}, v3, 0.1, 8, 0},
      {"sharp", {150, 33}, v3, 1.0, 0, 0},
      {"three heads of 40 and 40", {70, 1, 140}, {3, 24, 16, 40}, 0.3, 8, 0},
      {"no rotated part", {90}, {2, 64, 0, 64}, 0.3, 0, 0},
      {"128 and 128", {5, 140}, {2, 64, 64, 128}, 0.2, 0, 0},
      {"three heads of 16 and 12", {70, 3, 64}, {3, 10, 6, 12}, 0.3, 0, 0},
      {"odd rows", {70, 3, 64}, {3, 10, 6, 12}, 0.3, 1, 1},
      {"widest", {40, 75}, {2, 190, 66, 255}, 0.05, 3, 1},
      {"V3 at odd addresses", {100}, v3, 0.1, 1, 1},
      {"128 and 129 tokens", {128, 129}, v3, 0.1, 0, 0},
      {"500 and 260 tokens", {500, 260}, v3, 0.1, 0, 0},
      {"64 rotated of 192", {200, 70}, {3, 128, 64, 72}, 0.1, 8, 8},
      {"128 rotated of 192", {200, 70}, {2, 64, 128, 128}, 0.1, 0, 0},
      {"40 rotated of 168", {200, 70}, {2, 128, 40, 104}, 0.1, 0, 0},
      {"128 and 128, none rotated", {300, 1}, {3, 128, 0, 128}, 0.2, 8, 0},
  };
  if (on_fibers)
    std::erase_if(all, [](const Run& run) {
      return std::accumulate(run.lengths.begin(), run.lengths.end(), 0) > 230;
    });
  return all;
}
// By the forms that a context has, and by the portable ones alone.
struct Contexts {
  Cuda best, portable{{.hopper_kernels = false}};
  std::vector<Cuda*> both = on_fibers ? std::vector{&portable} : std::vector{&best, &portable};
};
template <int panels, bool turns>
using Hopper = detail::AttentionHopperShape<panels, turns>;

}  // namespace

TEST_CASE("Attention by wgmma, with waits that cannot hang, agrees with double") {
  if (skipped() || on_fibers) return;
  Cuda cuda;
  const auto check = [](Case& c, const char* what) {
    const auto as = [&](const char* which, bool done) {
      if (!done) return;
      const bool backward = c.before.empty() && c.backward_bounded();
      std::printf("%s, %s%s\n", what, which, backward ? ", backward" : "");
      check_against_double(c, backward);
    };
    as("192", c.forward_bounded<Hopper<3, false>>());
    as("192 in turns", c.forward_bounded<Hopper<3, true>>());
    as("128", c.forward_bounded<Hopper<2, false>>());
    as("128 in turns", c.forward_bounded<Hopper<2, true>>());
  };
  for (const Run& run : runs()) {
    Case c(cuda, run.lengths, run.sizes, run.scale, run.pad, run.shift);
    check(c, run.what);
  }
  Case cache(cuda, {5, 70, 130, 1}, v3, 0.1, 8, 0, {100, 0, 65, 63});
  check(cache, "keys of a cache");
  std::vector<int> lengths(150, 3);  // several units for each block
  lengths.insert(lengths.begin() + 70, 10, 140);
  Case many(cuda, lengths, v3, 0.1);
  check(many, "160 sequences");
}

TEST_CASE("Fused attention agrees with double") {
  if (skipped()) return;
  Contexts contexts;
  for (Cuda* cuda : contexts.both)
    for (const Run& run : runs()) {
      std::printf("%s%s\n", run.what, cuda == &contexts.portable ? ", portable" : "");
      Case c(*cuda, run.lengths, run.sizes, run.scale, run.pad, run.shift);
      c.forward();
      c.backward();
      check_against_double(c, true);
    }
}

TEST_CASE("Fused attention sees the keys of a cache") {
  if (skipped()) return;
  Contexts contexts;
  for (Cuda* cuda : contexts.both)
    for (const Sizes& sizes : {v3, Sizes{3, 10, 6, 12}}) {
      Case c(*cuda, {5, 70, 130, 1}, sizes, 0.1, 8, 0, {100, 0, 65, 63});
      c.forward();
      check_against_double(c, false);
    }
}

TEST_CASE("Neighbours in the batch change no bit of attention") {
  if (skipped()) return;
  Contexts contexts;
  for (Cuda* cuda : contexts.both)
    for (const Sizes& sizes : {v3, Sizes{3, 24, 16, 40}, Sizes{3, 10, 6, 12}}) {
      Case all(*cuda, {3, 300, 70}, sizes, 0.2), alone(*cuda, {300}, sizes, 0.2, 8);
      copy_rows(all.q, 3, alone.q, 0, 300), copy_rows(all.kv, 3, alone.kv, 0, 300);
      copy_rows(all.d_o, 3, alone.d_o, 0, 300), copy_rows(all.k_rope, 3, alone.k_rope, 0, 300);
      for (Case* c : {&all, &alone}) c->forward(), c->backward();
      CHECK(unequal("o", all.o.host, 3, alone.o.host, 0, 300) == 0);
      CHECK(unequal("lse", all.lse.host, 3, alone.lse.host, 0, 300) == 0);
      CHECK(unequal("dq", all.dq.host, 3, alone.dq.host, 0, 300) == 0);
      CHECK(unequal("dkv", all.dkv.host, 3, alone.dkv.host, 0, 300) == 0);
      CHECK(unequal("dk_rope", all.dk_rope.host, 3, alone.dk_rope.host, 0, 300) == 0);
      // Nor do neighbours that are no numbers.
      for (auto* x : {&all.q, &all.kv, &all.d_o}) make_nan(*x, 0, 3), make_nan(*x, 303, 70);
      make_nan(all.k_rope, 0, 3), make_nan(all.k_rope, 303, 70);
      all.forward(), all.backward();
      CHECK(unequal("dq beside NaN", all.dq.host, 3, alone.dq.host, 0, 300) == 0);
      CHECK(unequal("dkv beside NaN", all.dkv.host, 3, alone.dkv.host, 0, 300) == 0);
      CHECK(unequal("dk_rope beside NaN", all.dk_rope.host, 3, alone.dk_rope.host, 0, 300) == 0);
      CHECK(unequal("o beside NaN", all.o.host, 3, alone.o.host, 0, 300) == 0);
      CHECK(unequal("lse beside NaN", all.lse.host, 3, alone.lse.host, 0, 300) == 0);
    }
}

TEST_CASE("A chunk of a prefill has the bits of one pass") {
  if (skipped()) return;
  Contexts contexts;
  for (Cuda* cuda : contexts.both)
    for (const Sizes& sizes : {v3, Sizes{3, 10, 6, 12}}) {
      Case all(*cuda, {300}, sizes, 0.2), chunk(*cuda, {90}, sizes, 0.2, 0, 0, {210});
      copy_rows(all.q, 210, chunk.q, 0, 90), copy_rows(all.kv, 0, chunk.kv, 0, 300);
      copy_rows(all.k_rope, 0, chunk.k_rope, 0, 300);
      all.forward(), chunk.forward();
      CHECK(unequal("o", all.o.host, 210, chunk.o.host, 0, 90) == 0);
      CHECK(unequal("lse", all.lse.host, 210, chunk.lse.host, 0, 90) == 0);
    }
}

TEST_CASE("Attention gives the same bits again, whichever block takes which tile") {
  if (skipped() || on_fibers) return;
  Cuda cuda;
  const Sizes sizes{16, 128, 64, 128};
  Case a(cuda, {700, 1, 411}, sizes, 0.2), b(cuda, {700, 1, 411}, sizes, 0.2);
  a.forward(Index{1} << 23), a.backward(Index{1} << 23);
  for (int run = 0; run < 3; ++run) {
    b.forward(Index{1} << 23), b.backward(Index{1} << 23);
    CHECK(unequal("o", a.o.host, 0, b.o.host, 0, 1112) == 0);
    CHECK(unequal("dq", a.dq.host, 0, b.dq.host, 0, 1112) == 0);
    CHECK(unequal("dkv", a.dkv.host, 0, b.dkv.host, 0, 1112) == 0);
    CHECK(unequal("dk_rope", a.dk_rope.host, 0, b.dk_rope.host, 0, 1112) == 0);
  }
}

TEST_CASE("Fused attention refuses heads wider than its kernels, and counts as a dry run does") {
  if (skipped()) return;
  Cuda cuda;
  Case c(cuda, {5}, {1, 200, 60, 64}, 0.1);
  CHECK_THROWS_WITH_AS(
      c.forward(), "fused_attention_forward: width of q (260) must be at most widest head (256)",
      std::invalid_argument);
  DryRun<Cuda> dry{cuda};
  Arena arena;
  View<const std::int32_t, 1> none;
  Case v(cuda, {5, 70}, v3, 0.1);
  fused_attention_backward(dry, as_const(v.q.device), as_const(v.kv.device),
                           as_const(v.k_rope.device), none, none, 1.0, as_const(v.o.device),
                           as_const(v.lse.device), as_const(v.d_o.device), v.dq.device,
                           v.dkv.device, v.dk_rope.device, arena);
  CHECK(arena.peak() == fused_attention_backward_bytes<bf16>(cuda, 75, 2, 128, 64, 128));
}

}  // namespace dsv3
