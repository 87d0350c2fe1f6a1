// Everything that attention of a GPU reads and writes, and the same in double on the host.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <dsv3/backend/cuda/attention.cuh>
#include <random>
#include <vector>

namespace dsv3::fixture {

// A view of device memory with its copy on the host. Rows are `pad` elements longer than the view
// and the first one starts `shift` elements into the memory; both are filled with NaN, which spoils
// every result that reads them, and must be there afterwards.
template <class T, int Rank>
struct Buffer {
  Cuda& cuda;
  View<T, Rank> host, device;
  std::vector<T> memory;
  T* allocation;

  Buffer(Cuda& c, std::array<Index, Rank> shape, Index pad = 0, Index shift = 0) : cuda(c) {
    Index whole[Rank], n = 1;
    for (int d = 0; d < Rank; ++d) whole[d] = shape[d] + (d + 1 == Rank ? pad : 0), n *= whole[d];
    memory.resize(static_cast<std::size_t>(n + shift), nan());
    allocation = static_cast<T*>(allocate(cuda, bytes()));
    host = View<T, Rank>(memory.data() + shift, whole);
    device = View<T, Rank>(allocation + shift, whole);
    host.extents[Rank - 1] = device.extents[Rank - 1] = shape[Rank - 1];
    upload();
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { deallocate(cuda, allocation, bytes()); }

  static T nan() {
    if constexpr (std::is_same_v<T, std::int32_t>)
      return -1;
    else
      return T(std::nanf(""));
  }
  Index bytes() const { return static_cast<Index>(memory.size() * sizeof(T)); }
  void upload() { copy_to_backend(cuda, allocation, memory.data(), bytes()); }
  void download() { copy_to_host(cuda, memory.data(), allocation, bytes()); }

  // Elements outside the view that are no longer NaN.
  int spoilt() const {
    std::vector<bool> inside(memory.size(), false);
    const Index rows = host.extents[Rank - 1] ? host.size() / host.extents[Rank - 1] : 0;
    const Index whole = host.strides[Rank - 2], shift = host.data - memory.data();
    int count = 0;
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < host.extents[Rank - 1]; ++c)
        inside[static_cast<std::size_t>(shift + r * whole + c)] = true;
    for (std::size_t i = 0; i < memory.size(); ++i)
      if (!inside[i] && float(memory[i]) == float(memory[i])) ++count;
    return count;
  }
};

struct Sizes {
  Index heads, d_n, d_r, d_v;
};

// Everything that attention reads and writes. `before`: keys of a cache that stand before the
// tokens of each sequence.
struct Case {
  Cuda& cuda;
  Sizes sizes;
  double scale;
  std::vector<int> lengths, before;
  Index tokens = 0, keys = 0;
  std::vector<std::int32_t> begin_, end_, first_, own_;
  Buffer<bf16, 3> q, kv, o, d_o, dq, dkv;
  Buffer<bf16, 2> k_rope, dk_rope;
  Buffer<float, 2> lse;
  Buffer<std::int32_t, 2> lists;

  static Index sum(const std::vector<int>& x) {
    Index n = 0;
    for (int each : x) n += each;
    return n;
  }
  Case(Cuda& c, std::vector<int> each, Sizes s, double factor, Index pad = 0, Index shift = 0,
       std::vector<int> cached = {}, unsigned seed = 1)
      : cuda(c),
        sizes(s),
        scale(factor),
        lengths(each),
        before(cached),
        tokens(sum(each)),
        keys(tokens + sum(cached)),
        q(c, {tokens, s.heads, s.d_n + s.d_r}, pad, shift),
        kv(c, {keys, s.heads, s.d_n + s.d_v}, pad, shift),
        o(c, {tokens, s.heads, s.d_v}, pad, shift),
        d_o(c, {tokens, s.heads, s.d_v}, pad, shift),
        dq(c, {tokens, s.heads, s.d_n + s.d_r}, pad, shift),
        dkv(c, {keys, s.heads, s.d_n + s.d_v}, pad, shift),
        k_rope(c, {keys, s.d_r}, pad, shift),
        dk_rope(c, {keys, s.d_r}, pad, shift),
        lse(c, {tokens, s.heads}, pad),
        lists(c, {4, tokens}) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const auto fill = [&](auto& buffer) {
      const auto& x = buffer.host;
      const Index rows = x.size() / std::max<Index>(1, x.extents[std::size(x.extents) - 1]);
      for (Index r = 0; r < rows; ++r)
        for (Index i = 0; i < x.extents[std::size(x.extents) - 1]; ++i)
          x.data[r * x.strides[std::size(x.extents) - 2] + i] = bf16(uniform(random));
      buffer.upload();
    };
    fill(q), fill(kv), fill(d_o);
    if (s.d_r) fill(k_rope);
    Index t = 0, k = 0;
    for (std::size_t i = 0; i < each.size(); ++i) {
      const Index cache = before.empty() ? 0 : before[i];
      for (Index r = 0; r < each[i]; ++r) {
        lists.host(0, t + r) = static_cast<std::int32_t>(t);
        lists.host(1, t + r) = static_cast<std::int32_t>(t + each[i]);
        lists.host(2, t + r) = static_cast<std::int32_t>(k);
        lists.host(3, t + r) = static_cast<std::int32_t>(k + cache + r);
      }
      t += each[i], k += each[i] + cache;
    }
    lists.upload();
  }

  View<const std::int32_t, 1> list(int i) const { return as_const(lists.device[i]); }
  void forward(Index most_scratch = Index{1} << 20) {
    Buffer<float, 2> scratch(cuda, {1, most_scratch});
    Arena arena(scratch.allocation, scratch.bytes());
    View<const std::int32_t, 1> none;
    fused_attention_forward<bf16>(cuda, q.device, kv.device, k_rope.device, list(0), list(1),
                                  before.empty() ? none : list(2), before.empty() ? none : list(3),
                                  scale, o.device, lse.device, arena);
    CHECK(arena.peak() == fused_attention_forward_bytes<bf16>(cuda, tokens, sizes.heads, sizes.d_n,
                                                              sizes.d_r, sizes.d_v));
    o.download(), lse.download();
  }
  // Hopper's forms, with waits that cannot hang; false where these sizes have none.
  detail::AttentionTask task(std::int32_t* map) const {
    View<const std::int32_t, 1> none;
    return detail::attention_task(
        "test", as_const(q.device), as_const(kv.device), as_const(k_rope.device), list(0), list(1),
        before.empty() ? none : list(2), before.empty() ? none : list(3), scale, map);
  }
  template <class Shape>
  bool forward_bounded() {
    Buffer<std::int32_t, 2> map(cuda, {1, detail::attention_map_words(tokens)});
    const auto in = task(map.allocation);
    if (!detail::attention_hopper_fits<Shape>(cuda, in) || !detail::rows_are_aligned(o.device))
      return false;
    detail::attention_hopper_forward_as<Shape, true>(cuda, in, o.device, lse.device);
    check_waits("(1: q_empty, 2: k_empty, 3: v_empty, 4: q_full, 5: k_full, 6: v_full)");
    o.download(), lse.download();
    return true;
  }
  bool backward_bounded() {
    Buffer<std::int32_t, 2> map(cuda, {1, detail::attention_map_words(tokens)});
    Buffer<float, 2> lse2(cuda, {sizes.heads, tokens}), delta(cuda, {sizes.heads, tokens});
    Buffer<float, 3> rope_sum(cuda, {tokens, sizes.heads, std::max<Index>(sizes.d_r, 1)});
    View<float, 3> sums = rope_sum.device;
    sums.extents[2] = sizes.d_r;
    const detail::AttentionBackwardTask all{
        task(map.allocation), as_const(d_o.device), {lse2.device, delta.device}};
    const detail::AttentionHopperBackward hopper{cuda, all};
    if (!hopper.fits() || !detail::rows_are_aligned(dq.device)) return false;
    const auto maps = hopper.maps();
    const char* waits = "(1: own_empty, 2: empty, 3: own_full, 4: full)";
    detail::launch_attention_map(cuda, "test", all.in, 128);
    detail::launch_attention_delta<true>(cuda, "test", all, as_const(o.device),
                                         as_const(lse.device));
    check_waits("before");
    hopper.sum<detail::AttentionPart::queries, true>(maps, dq.device, sums);
    check_waits(waits);
    hopper.sum<detail::AttentionPart::keys, true>(maps, dkv.device, sums);
    check_waits(waits);
    hopper.sum<detail::AttentionPart::values, true>(maps, dkv.device, sums);
    check_waits(waits);
    detail::launch_attention_rope_sum(cuda, "test", all.in, as_const(sums), dk_rope.device);
    dq.download(), dkv.download(), dk_rope.download();
    return true;
  }
  void check_waits(const char* meaning) const {
    const cudaError_t error = cudaStreamSynchronize(cuda.stream());
    if (error == cudaSuccess) return;
    const int who = cuda.fault()->set;
    std::printf("  %s; %d waited for phase %d %s\n", cudaGetErrorString(error), who / 2, who % 2,
                meaning);
    std::fflush(stdout);
    FAIL("Hopper's form of attention");
  }
  void backward(Index most_scratch = Index{1} << 20) {
    Buffer<float, 2> scratch(cuda, {1, most_scratch});
    Arena arena(scratch.allocation, scratch.bytes());
    fused_attention_backward<bf16>(cuda, q.device, kv.device, k_rope.device, list(0), list(1),
                                   scale, o.device, lse.device, d_o.device, dq.device, dkv.device,
                                   dk_rope.device, arena);
    CHECK(arena.peak() == fused_attention_backward_bytes<bf16>(cuda, tokens, sizes.heads, sizes.d_n,
                                                               sizes.d_r, sizes.d_v));
    dq.download(), dkv.download(), dk_rope.download();
  }
};

// Compares numbers one by one and says where those lie that differ by more than allowed.
struct Comparison {
  const char* name;
  long count = 0, bad = 0;
  double worst = 0;  // in multiples of what is allowed
  int by_row[16] = {}, by_column[16] = {};

  void add(Index row, Index in_sequence, Index head, Index column, double is, double should,
           double allowed) {
    ++count;
    const double ratio = std::abs(is - should) / allowed;
    if (ratio > worst) worst = ratio;
    if (ratio <= 1) return;
    if (bad++ < 3)
      std::printf(
          "  %s(row %ld, %ld of its sequence, head %ld, column %ld): %.9g, not %.9g +- %.3g\n",
          name, long(row), long(in_sequence), long(head), long(column), is, should, allowed);
    ++by_row[in_sequence % 128 / 8], ++by_column[column / 16 % 16];
  }
  void finish() {
    if (bad) {
      std::printf("  %s: %ld of %ld differ, by up to %.3g times what is allowed\n", name, bad,
                  count, worst);
      std::printf("    by row of a tile of 128, in eights:");
      for (int n : by_row) std::printf(" %d", n);
      std::printf("\n    by column, in sixteens:");
      for (int n : by_column) std::printf(" %d", n);
      std::printf("\n");
    }
    CHECK(bad == 0);
  }
};

inline double at(bf16 x) { return double(x); }

// Against spec 4.6 and 4.7 in double. Backward starts from the o and lse that forward left, as the
// row kernels do.
//
// Tolerances: a value rounded to bf16 is off by at most 2^-8 of itself, which holds for each weight
// (or slope) that enters a sum and for the output; so 2^-8 of the sum of magnitudes and of the
// output. Sums in float of a few hundred terms and exponentials add less than a hundredth of that.
inline void check_against_double(Case& c, bool with_backward) {
  const auto [H, d_n, d_r, d_v] = c.sizes;
  const Index d_qk = d_n + d_r;
  const double step = 1.0 / 256 * 1.01, tiny = 1e-5;
  using Numbers = std::vector<double>;
  Numbers dk_rope(c.keys * d_r), dk_rope_size(c.keys * d_r);
  Comparison o{"o"}, lse{"lse"}, dq{"dq"}, dk{"dk"}, dv{"dv"}, rope{"dk_rope"};
  for (Index h = 0; h < H; ++h) {
    Numbers key(c.keys * d_qk), value(c.keys * d_v);
    for (Index j = 0; j < c.keys; ++j) {
      for (Index d = 0; d < d_qk; ++d)
        key[j * d_qk + d] = d < d_n ? at(c.kv.host(j, h, d)) : at(c.k_rope.host(j, d - d_n));
      for (Index d = 0; d < d_v; ++d) value[j * d_v + d] = at(c.kv.host(j, h, d_n + d));
    }
    Numbers gk(c.keys * d_qk), gk_size(c.keys * d_qk), gv(c.keys * d_v), gv_size(c.keys * d_v);
    for (Index t = 0; t < c.tokens; ++t) {
      const Index begin = c.lists.host(0, t), place = t - begin;
      const Index first = c.before.empty() ? begin : c.lists.host(2, t);
      const Index own = c.before.empty() ? t : c.lists.host(3, t);
      Numbers query(d_qk), slope(d_v), s(own - first + 1);
      for (Index d = 0; d < d_qk; ++d) query[d] = at(c.q.host(t, h, d));
      for (Index d = 0; d < d_v; ++d) slope[d] = at(c.d_o.host(t, h, d));
      double most = -1e300, total = 0, delta = 0;
      for (Index j = first; j <= own; ++j) {
        double sum = 0;
        for (Index d = 0; d < d_qk; ++d) sum += query[d] * key[j * d_qk + d];
        most = std::max(most, s[j - first] = c.scale * sum);
      }
      for (double x : s) total += std::exp(x - most);
      const double log_sum = most + std::log(total);
      lse.add(t, place, h, 0, c.lse.host(t, h), log_sum, 1e-5 * (1 + std::abs(log_sum)));
      Numbers out(d_v), out_size(d_v);
      for (Index j = first; j <= own; ++j) {
        const double weight = std::exp(s[j - first] - log_sum);
        for (Index d = 0; d < d_v; ++d) {
          const double term = weight * value[j * d_v + d];
          out[d] += term, out_size[d] += std::abs(term);
        }
      }
      for (Index d = 0; d < d_v; ++d)
        o.add(t, place, h, d, at(c.o.host(t, h, d)), out[d],
              step * (out_size[d] + std::abs(out[d])) + tiny);
      if (!with_backward) continue;
      for (Index d = 0; d < d_v; ++d) delta += at(c.o.host(t, h, d)) * slope[d];
      Numbers gq(d_qk), gq_size(d_qk);
      for (Index j = first; j <= own; ++j) {
        const double p = std::exp(s[j - first] - double(c.lse.host(t, h)));
        double dp = 0;
        for (Index d = 0; d < d_v; ++d) dp += slope[d] * value[j * d_v + d];
        const double ds = c.scale * p * (dp - delta);
        for (Index d = 0; d < d_v; ++d) {
          gv[j * d_v + d] += p * slope[d], gv_size[j * d_v + d] += std::abs(p * slope[d]);
        }
        for (Index d = 0; d < d_qk; ++d) {
          const double a = ds * key[j * d_qk + d], b = ds * query[d];
          gq[d] += a, gq_size[d] += std::abs(a);
          gk[j * d_qk + d] += b, gk_size[j * d_qk + d] += std::abs(b);
        }
      }
      for (Index d = 0; d < d_qk; ++d)
        dq.add(t, place, h, d, at(c.dq.host(t, h, d)), gq[d],
               step * (gq_size[d] + std::abs(gq[d])) + tiny);
    }
    if (!with_backward) continue;
    for (Index j = 0; j < c.keys; ++j) {
      const Index place = j - c.lists.host(0, j);
      for (Index d = 0; d < d_n; ++d)
        dk.add(j, place, h, d, at(c.dkv.host(j, h, d)), gk[j * d_qk + d],
               step * (gk_size[j * d_qk + d] + std::abs(gk[j * d_qk + d])) + tiny);
      for (Index d = 0; d < d_v; ++d)
        dv.add(j, place, h, d, at(c.dkv.host(j, h, d_n + d)), gv[j * d_v + d],
               step * (gv_size[j * d_v + d] + std::abs(gv[j * d_v + d])) + tiny);
      for (Index d = 0; d < d_r; ++d) {
        dk_rope[j * d_r + d] += gk[j * d_qk + d_n + d];
        dk_rope_size[j * d_r + d] += gk_size[j * d_qk + d_n + d];
      }
    }
  }
  o.finish(), lse.finish();
  CHECK(c.o.spoilt() == 0);
  CHECK(c.lse.spoilt() == 0);
  if (!with_backward) return;
  for (Index j = 0; j < c.keys; ++j)
    for (Index d = 0; d < d_r; ++d)
      rope.add(j, j - c.lists.host(0, j), 0, d, at(c.dk_rope.host(j, d)), dk_rope[j * d_r + d],
               step * (dk_rope_size[j * d_r + d] + std::abs(dk_rope[j * d_r + d])) + tiny);
  dq.finish(), dk.finish(), dv.finish(), rope.finish();
  CHECK(c.dq.spoilt() == 0);
  CHECK(c.dkv.spoilt() == 0);
  if (d_r) CHECK(c.dk_rope.spoilt() == 0);
}

}  // namespace dsv3::fixture
