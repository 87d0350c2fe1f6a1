// The forward kernel of attention: a tile of queries of one head against its keys, tile by tile.
#pragma once

#include <dsv3/backend/cuda/attention_tiles.cuh>
#include <dsv3/core/math.hpp>

namespace dsv3::detail {

// Heads up to qk and v wide; a warp has 16 * blocks queries. Two blocks of threads share a
// multiprocessor, so that one multiplies while the other waits or takes exponentials.
template <int qk, int v, int blocks, bool aligned_rows>
struct AttentionForwardShape {
  static constexpr int width_qk = qk, width_v = v, row_blocks = blocks;
  static constexpr bool aligned = aligned_rows;
  static constexpr int warps = 4, threads = 32 * warps, rows = 16 * blocks * warps, keys = 64;
  static constexpr int k_tile = rows * qk * 2, v_tile = k_tile + keys * qk * 2;
  static constexpr int words = v_tile + keys * v * 2, bytes = words + 4 * (16 + rows);
};

// What a block knows of its unit, in shared memory and read when needed: accumulators leave no
// register for it.
struct AttentionForwardUnit {
  static constexpr int next = 0, head = 1, token = 2, rows = 3, keys = 4, least = 8, last = 12,
                       own = 16;
  volatile int* words;

  __device__ int get(int word) const { return words[word]; }
};

// The largest and the sum over the four lanes that hold a row of a product.
__device__ inline float attention_row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float attention_row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// What a warp holds of its queries: rows g and g + 8 of each block of 16, g = lane / 4.
//
// Every row's numbers come from the keys that it sees alone: a tile of keys that it does not see
// leaves its maximum, multiplies by 1 and adds zeros.
template <class Shape>
struct AttentionForwardWarp {
  static constexpr int blocks = Shape::row_blocks, qk = Shape::width_qk, v = Shape::width_v;
  static constexpr int columns = Shape::keys / 8;
  float sum[blocks][v / 8][4];
  // The largest score in powers of 2, and the sum of weights of this lane's columns.
  float largest[blocks][2], denominator[blocks][2];

  __device__ __forceinline__ void begin() {
    const float infinity = __builtin_bit_cast(float, 0x7F800000);
#pragma unroll
    for (int m = 0; m < blocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        largest[m][half] = -infinity;
        denominator[m][half] = 0;
      }
#pragma unroll
      for (int n = 0; n < v / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[m][n][e] = 0;
    }
  }

  __device__ __forceinline__ void scores(float (&s)[blocks][columns][4],
                                         const AttentionReader<qk>& q,
                                         const AttentionReader<qk>& k) const {
#pragma unroll
    for (int m = 0; m < blocks; ++m)
#pragma unroll
      for (int n = 0; n < columns; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = 0;
#pragma unroll 4  // after as many the swizzle repeats; unrolled as a whole, registers spill
    for (int d = 0; d < qk / 16; ++d) {
      std::uint32_t a[blocks][4];
#pragma unroll
      for (int m = 0; m < blocks; ++m) q.left(a[m], 16 * m, 2 * d);
#pragma unroll
      for (int n = 0; n < columns; n += 2) {
        std::uint32_t b[4];
        k.right(b, 8 * n, 2 * d);
#pragma unroll
        for (int m = 0; m < blocks; ++m) {
          multiply_bf16(s[m][n], a[m], b[0], b[1]);
          multiply_bf16(s[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Takes away the scores of keys that a row does not see; `own` is the last one that it does.
  __device__ __forceinline__ void mask(float (&s)[blocks][columns][4], int first_key,
                                       const volatile int* own) const {
    const float infinity = __builtin_bit_cast(float, 0x7F800000);
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int m = 0; m < blocks; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int seen = own[16 * m + 8 * half + lane / 4] - first_key - lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < columns; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (8 * n + e > seen) s[m][n][2 * half + e] = -infinity;
      }
  }

  // Scores become weights relative to the running maximum, as left operands of the sum over keys;
  // what was summed follows the maximum.
  __device__ __forceinline__ void weights(std::uint32_t (&p)[blocks][columns / 2][4],
                                          float (&s)[blocks][columns][4], float scale_log2) {
#pragma unroll
    for (int m = 0; m < blocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = fmaxf(s[m][0][2 * half], s[m][0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < columns; ++n)
          most = fmaxf(most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        // In powers of 2 and rounded, so that an unchanged bound keeps exactly what was summed.
        const float bound = fmaxf(largest[m][half], attention_row_max(most) * scale_log2);
        const float keep = exp2_fast(largest[m][half] - bound);
        largest[m][half] = bound;
        float total = 0;
#pragma unroll
        for (int n = 0; n < columns; ++n)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale_log2, -bound));
            total += s[m][n][e];
          }
        denominator[m][half] = fmaf(denominator[m][half], keep, total);
#pragma unroll
        for (int n = 0; n < v / 8; ++n) {
          sum[m][n][2 * half] *= keep;
          sum[m][n][2 * half + 1] *= keep;
        }
      }
#pragma unroll
      for (int k = 0; k < columns / 2; ++k) as_left_operand(p[m][k], s[m][2 * k], s[m][2 * k + 1]);
    }
  }

  __device__ __forceinline__ void add_values(const std::uint32_t (&p)[blocks][columns / 2][4],
                                             const AttentionReader<v>& values) {
#pragma unroll
    for (int k = 0; k < columns / 2; ++k) {
#pragma unroll
      for (int n = 0; n < v / 8; n += 2) {
        std::uint32_t b[4];
        values.right_over_rows(b, 16 * k, n);
#pragma unroll
        for (int m = 0; m < blocks; ++m) {
          multiply_bf16(sum[m][n], p[m][k], b[0], b[1]);
          multiply_bf16(sum[m][n + 1], p[m][k], b[2], b[3]);
        }
      }
    }
  }

  // Writes row lane / 4 + 8 * part of the warp's queries and what follows it.
  template <int part = 0>
  __device__ __forceinline__ void finish(const View<bf16, 3>& o, const View<float, 2>& lse,
                                         AttentionForwardUnit unit, int row0) const {
    constexpr int m = part / 2, half = part % 2;
    const int lane = static_cast<int>(threadIdx.x) % 32, head = unit.get(unit.head);
    const int width = static_cast<int>(o.extent(2));
    const float total = attention_row_sum(denominator[m][half]), inverse = 1.0f / total;
    const int row = row0 + 8 * part + lane / 4, t = unit.get(unit.token) + row;
    if (row < unit.get(unit.rows)) {
      bf16* to = &o(t, head, 0);
      // Adding 0 makes one of the two zeros, whose sign tells of tiles that the row did not see.
#pragma unroll
      for (int n = 0; n < v / 8; ++n)
        store_attention_pair<Shape::aligned>(to, 8 * n + lane % 4 * 2, width,
                                             fmaf(sum[m][n][2 * half], inverse, 0.0f),
                                             fmaf(sum[m][n][2 * half + 1], inverse, 0.0f));
      if (lane % 4 == 0) lse(t, head) = fmaf(largest[m][half], 0.693147180559945309f, log(total));
    }
    if constexpr (part + 1 < 2 * blocks) finish<part + 1>(o, lse, unit, row0);
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 2)
    attention_forward_kernel(AttentionTask in, View<bf16, 3> o, View<float, 2> lse) {
  using Unit = AttentionForwardUnit;
  using KeyReader = AttentionReader<Shape::width_qk>;
  using ValueReader = AttentionReader<Shape::width_v>;
  unsigned char* const attention_memory = dynamic_shared();
  const Unit unit{reinterpret_cast<int*>(attention_memory + Shape::words)};
  const std::uint32_t q_tile = shared_address(attention_memory);
  const std::uint32_t k_tile = q_tile + Shape::k_tile, v_tile = q_tile + Shape::v_tile;
  const int warp = static_cast<int>(threadIdx.x) / 32, row0 = warp * 16 * Shape::row_blocks;

  const auto load_keys = [&](int j) {
    load_attention_tile<Shape::width_qk, Shape::keys, Shape::threads, Shape::aligned>(
        k_tile, attention_key_rows(in, j, unit.get(Unit::head)), unit.get(Unit::keys) - j);
    copies_end_group();
  };
  const auto load_values = [&](int j) {
    load_attention_tile<Shape::width_v, Shape::keys, Shape::threads, Shape::aligned>(
        v_tile, attention_rows(in.kv, j, unit.get(Unit::head), in.d_n(), in.d_v()),
        unit.get(Unit::keys) - j);
    copies_end_group();
  };
  // Finds the next unit, loads its queries and returns the first key, or -1 where no unit is left.
  const auto begin_unit = [&] {
    if (threadIdx.x == 0) unit.words[Unit::next] = in.map.take(0);
    __syncthreads();
    const int next = unit.get(Unit::next), tiles = in.map.words[AttentionMap::tiles];
    if (next >= tiles * in.heads()) return -1;
    const auto [head, tile] = attention_unit(next, tiles, true);
    const int t0 = in.map.words[AttentionMap::first + tile], left = in.end(t0) - t0;
    const int rows = left < Shape::rows ? left : Shape::rows;
    load_attention_tile<Shape::width_qk, Shape::rows, Shape::threads, Shape::aligned>(
        q_tile, attention_rows(in.q, t0, head, 0, in.d_qk()), rows);
    // Rows beyond the sequence see what the last one does.
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = row0 + lane % (16 * Shape::row_blocks);
    const int own = in.own_key(t0 + (row < rows ? row : rows - 1));
    const int least = __reduce_min_sync(~0u, own), last = __reduce_max_sync(~0u, own);
    unit.words[Unit::own + row] = own;
    if (lane == 0) unit.words[Unit::least + warp] = least, unit.words[Unit::last + warp] = last;
    __syncthreads();
    if (threadIdx.x == 0) {
      int most = 0;
      for (int w = 0; w < Shape::warps; ++w)
        most = unit.get(Unit::last + w) > most ? unit.get(Unit::last + w) : most;
      unit.words[Unit::keys] = most + 1;  // one past the last key that a row of the tile sees
      unit.words[Unit::head] = head, unit.words[Unit::token] = t0, unit.words[Unit::rows] = rows;
    }
    __syncthreads();
    return in.first_key(t0);
  };

  for (;;) {
    int j = begin_unit();
    if (j < 0) return;
    AttentionForwardWarp<Shape> own;
    own.begin();
    load_keys(j);
    for (; j < unit.get(Unit::keys); j += Shape::keys) {
      wait_for_copies<0>();
      __syncthreads();  // the keys are there, and nobody reads values any more
      load_values(j);
      float s[Shape::row_blocks][Shape::keys / 8][4];
      own.scores(s, KeyReader(q_tile + row0 * Shape::width_qk * 2), KeyReader(k_tile));
      wait_for_copies<0>();
      __syncthreads();  // the values are there, and nobody reads keys any more
      if (j + Shape::keys - 1 > unit.get(Unit::least + warp))
        own.mask(s, j, unit.words + Unit::own + row0);
      std::uint32_t p[Shape::row_blocks][Shape::keys / 16][4];
      own.weights(p, s, in.scale_log2);
      if (j + Shape::keys < unit.get(Unit::keys)) load_keys(j + Shape::keys);
      own.add_values(p, ValueReader(v_tile));
    }
    own.finish(o, lse, unit, row0);
  }
}

}  // namespace dsv3::detail
