// The backward kernels' common parts: the two numbers of each query, and the sum over heads of the
// rotated key's gradient.
#pragma once

#include <dsv3/backend/cuda/attention_tiles.cuh>
#include <dsv3/core/math.hpp>

namespace dsv3::detail {

// Heads up to qk and v wide. A block of threads holds 16 * warps rows, of keys or of queries, 16 to
// a warp, while `stream` rows at a time of the other side pass through `stages` places in shared
// memory. `apart` sums for values and for keys in two sweeps: registers hold one of the two.
template <int qk, int v, int warp_count, int streamed, int places, bool two_sweeps,
          bool aligned_rows>
struct AttentionBackwardShape {
  static constexpr int width_qk = qk, width_v = v, warps = warp_count, threads = 32 * warps;
  static constexpr int rows = 16 * warps, stream = streamed, stages = places;
  static constexpr bool apart = two_sweeps, aligned = aligned_rows;

  static constexpr int v_tile = rows * qk * 2, stage = v_tile + rows * v * 2;
  // Of a stage: rows as wide as q, rows as wide as v, and two numbers for each.
  static constexpr int stage_v = stream * qk * 2, stage_numbers = stage_v + stream * v * 2;
  static constexpr int stage_bytes = stage_numbers + stream * 8;
  static constexpr int words = stage + stages * stage_bytes, bytes = words + 16;
  static_assert(stage_bytes % 128 == 0 && 2 * stream <= threads);
};

// Per head and token: lse in powers of 2, and delta = dO . O.
struct AttentionQueryNumbers {
  View<float, 2> lse2, delta;  // [heads, T]
};

// What the backward kernels read beside a task.
struct AttentionBackwardTask {
  AttentionTask in;
  View<const bf16, 3> d_o;
  AttentionQueryNumbers numbers;
};

// Four neighbours of a row of `n` elements, zeros beyond.
template <bool aligned>
__device__ inline void load_attention_four(float (&to)[4], const bf16* row, int first, int n) {
  if constexpr (aligned) {
    uint2 words = {0, 0};
    if (first < n) words = *reinterpret_cast<const uint2*>(row + first);
    to[0] = __builtin_bit_cast(float, words.x << 16);
    to[1] = __builtin_bit_cast(float, words.x & 0xFFFF0000u);
    to[2] = __builtin_bit_cast(float, words.y << 16);
    to[3] = __builtin_bit_cast(float, words.y & 0xFFFF0000u);
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = first + e < n ? float(row[first + e]) : 0.0f;
  }
}

// A warp for each token of a head; 64 tokens to a block.
inline constexpr int attention_delta_threads = 256, attention_delta_tokens = 64;
template <bool aligned>
__global__ void __launch_bounds__(attention_delta_threads)
    attention_delta_kernel(View<const bf16, 3> o, View<const bf16, 3> d_o, View<const float, 2> lse,
                           AttentionQueryNumbers numbers) {
  constexpr int each = attention_delta_tokens / (attention_delta_threads / 32);
  const int head = static_cast<int>(blockIdx.y), width = static_cast<int>(o.extent(2));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = 0; i < each; ++i) {
    const Index t = Index{blockIdx.x} * attention_delta_tokens + warp * each + i;
    if (t >= o.extent(0)) return;
    float sum = 0;
    for (int d = 4 * lane; d < width; d += 128) {
      float a[4], b[4];
      load_attention_four<aligned>(a, &o(t, head, 0), d, width);
      load_attention_four<aligned>(b, &d_o(t, head, 0), d, width);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum = fma(a[e], b[e], sum);
    }
#pragma unroll
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(~0u, sum, other);
    if (lane == 0) {
      numbers.delta(head, t) = sum;
      numbers.lse2(head, t) = lse(t, head) * 1.44269504088896341f;
    }
  }
}

// dk_rope: the sum over heads in ascending order.
inline constexpr int attention_rope_threads = 256;
template <int threads>
__global__ void __launch_bounds__(threads)
    attention_rope_sum_kernel(View<const float, 3> rope_sum, View<bf16, 2> dk_rope) {
  const Index i = Index{blockIdx.x} * threads + threadIdx.x;
  const Index width = dk_rope.extent(1), t = i / width, d = i % width;
  if (t >= dk_rope.extent(0)) return;
  float total = 0;
#pragma unroll 8
  for (Index head = 0; head < rope_sum.extent(1); ++head) total += rope_sum(t, head, d);
  dk_rope(t, d) = bf16(total);
}

// A product of 16 rows of `left` with 8 * columns rows of `right` from `first` on, over `width`
// features.
template <int width, int columns>
__device__ __forceinline__ void attention_product(float (&c)[columns][4],
                                                  const AttentionReader<width>& left,
                                                  const AttentionReader<width>& right, int first) {
#pragma unroll
  for (int n = 0; n < columns; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) c[n][e] = 0;
#pragma unroll 4  // after as many the swizzle repeats; unrolled as a whole, registers spill
  for (int d = 0; d < width / 16; ++d) {
    std::uint32_t a[4];
    left.left(a, 0, 2 * d);
#pragma unroll
    for (int n = 0; n < columns; n += 2) {
      std::uint32_t b[4];
      right.right(b, first + 8 * n, 2 * d);
      multiply_bf16(c[n], a, b[0], b[1]);
      multiply_bf16(c[n + 1], a, b[2], b[3]);
    }
  }
}

// Adds a product of 16 rows, summed over the 8 * columns that `left` has, of which the right
// operand has one row each from `first` on.
template <int width, int columns>
__device__ __forceinline__ void attention_add_product(float (&sum)[width / 8][4],
                                                      const float (&left)[columns][4],
                                                      const AttentionReader<width>& right,
                                                      int first) {
#pragma unroll
  for (int k = 0; k < columns / 2; ++k) {
    std::uint32_t a[4];
    as_left_operand(a, left[2 * k], left[2 * k + 1]);
#pragma unroll
    for (int n = 0; n < width / 8; n += 2) {
      std::uint32_t b[4];
      right.right_over_rows(b, first + 16 * k, n);
      multiply_bf16(sum[n], a, b[0], b[1]);
      multiply_bf16(sum[n + 1], a, b[2], b[3]);
    }
  }
}

}  // namespace dsv3::detail
