// What the kernels of attention over a latent cache share: which rows and keys a block of threads
// has, the softmax of a tile, and where results go.
#pragma once

#include <dsv3/backend/cuda/latent_attention.hpp>
#include <dsv3/backend/cuda/ptx.cuh>
#include <dsv3/core/math.hpp>

namespace dsv3::detail {

// The arguments of one launch, over tokens [first, last).
template <class C>
struct LatentPass {
  View<const bf16, 3> q_latent, q;
  CachePages<const C> pages;
  CacheTable table;
  View<bf16, 3> o;
  float scale2;  // of scores whose exponential is a power of two
  Index first, last, most, heads_each, head_blocks;
  View<float, 3> sum;                 // [(last - first) * heads, splits, padded r]
  View<float, 2> level, denominator;  // [(last - first) * heads, splits]
  bool q_aligned, keys_aligned;       // rows start at multiples of 16 bytes

  DSV3_HD Index partial(Index t, Index head) const { return (t - first) * o.extent(1) + head; }
};

// One past the last token that shares tiles with t; t itself unless t is the first of them. Tokens
// of a tile are neighbours of one part, at most `most`, which never cross a multiple of it.
DSV3_HD inline Index latent_group_end(const View<const std::int32_t, 1>& part, Index first,
                                      Index last, Index most, Index t) {
  const Index at = most > 1 ? static_cast<unsigned>(t - first) % static_cast<unsigned>(most) : 0;
  if (at > 0 && part(t) == part(t - 1)) return t;
  const Index next = t + most - at, bound = next < last ? next : last;
  Index end = t + 1;
  while (end < bound && part(end) == part(t)) ++end;
  return end;
}

// The rows and the keys of one block of threads.
struct LatentUnit {
  Index t0, h0, part;
  int tokens, heads, split;
  int end;  // of the keys, which is below the split's first where there is nothing to do

  DSV3_HD int rows() const { return tokens * heads; }
  DSV3_HD int begin() const { return split * LatentTile::split; }
  DSV3_HD Index token(int row) const { return t0 + row / heads; }
  DSV3_HD Index head(int row) const { return h0 + row % heads; }
  // What lies between is in order: blocks of heads, then tokens, then splits.
  template <class C>
  DSV3_HD static LatentUnit at(const LatentPass<C>& in, unsigned block) {
    const auto tokens = static_cast<unsigned>(in.last - in.first);
    const auto head_blocks = static_cast<unsigned>(in.head_blocks);
    LatentUnit unit{};
    unit.h0 = block % head_blocks * in.heads_each;
    block /= head_blocks;
    unit.t0 = in.first + block % tokens;
    unit.split = static_cast<int>(block / tokens);
    const Index left = in.o.extent(1) - unit.h0;
    unit.heads = static_cast<int>(left < in.heads_each ? left : in.heads_each);
    const Index end = latent_group_end(in.table.part, in.first, in.last, in.most, unit.t0);
    unit.tokens = static_cast<int>(end - unit.t0);
    if (unit.tokens == 0) return unit;
    unit.part = in.table.part(unit.t0);
    const int keys = in.table.position(end - 1) + 1, bound = unit.begin() + LatentTile::split;
    unit.end = keys < bound ? keys : bound;
    return unit;
  }
  DSV3_HD int tiles() const {
    return tokens == 0 || end <= begin()
               ? 0
               : (end - begin() + LatentTile::keys - 1) / LatentTile::keys;
  }
};

// Where 8 columns from 8 `chunk` of a row begin in a tile of 64 rows: panels of 64 columns, whose
// chunks of 16 bytes are permuted within their row so that neither columns nor rows collide in
// banks. Panels are the layout that wgmma calls a swizzle of 128 bytes.
DSV3_HD constexpr int latent_at(int row, int chunk) {
  return chunk / 8 * (LatentTile::keys * LatentTile::columns) + row * LatentTile::columns +
         ((chunk % 8) ^ (row % 8)) * 8;
}

// The shared memory of a block, for V columns of latents and R of rotated keys.
template <int V, int R>
struct LatentShared {
  static constexpr int width = V + R, tile = LatentTile::keys * width, rows = LatentTile::rows;
  bf16 *q, *keys, *weights;      // panels; `stages` tiles of keys
  float *largest, *denominator;  // [2][rows] of halves of a tile's keys
  float* keep;                   // [rows]; in the end the levels
  int* limit;                    // [rows] the last key that a row sees, -1 for none

  __device__ LatentShared(unsigned char* memory, int stages) {
    memory += (1024 - shared_address(memory) % 1024) % 1024;
    q = reinterpret_cast<bf16*>(memory);
    keys = q + rows * width;
    weights = keys + stages * tile;
    largest = reinterpret_cast<float*>(weights + rows * LatentTile::keys);
    denominator = largest + 2 * rows;
    keep = denominator + 2 * rows;
    limit = reinterpret_cast<int*>(keep + rows);
  }
};

// The softmax of a tile, for a warp that holds 16 rows and 32 keys of its scores. Warp w has rows
// from 16 (w % 4) and the half w / 4 of the keys; s[4 n + 2 h + e] is row lane / 4 + 8 h and key
// 8 n + 2 (lane % 4) + e of them. Both halves know the largest of all keys; each thread adds up the
// weights that it made.
struct LatentSoftmax {
  // A weight is 2^(score * scale2 + level): the level is minus the largest of score * scale2.
  static constexpr float infinity = __builtin_bit_cast(float, 0x7F800000);
  float level[2] = {infinity, infinity}, denominator[2] = {0, 0};

  __device__ static int row(int h) {
    return static_cast<int>(threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4) + 8 * h;
  }
  __device__ static int half() { return threadIdx.x / 128; }

  // Scores of a tile from key `first` become weights in shared memory; keep is what earlier sums of
  // a row are multiplied by. Ends before the weights are visible.
  template <int V, int R>
  __device__ void weigh(const LatentShared<V, R>& shared, float (&s)[16], int first, float scale2,
                        float (&keep)[2]) {
    const int lane = threadIdx.x % 32, key0 = first + 32 * half() + 2 * (lane % 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int seen = shared.limit[row(h)] - key0;
      float most = -infinity;
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = s[4 * n + 2 * h + e];
          score = 8 * n + e <= seen ? score : -infinity;
          most = score > most ? score : most;
        }
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        const float other = __shfl_xor_sync(~0u, most, step);
        most = other > most ? other : most;
      }
      if (lane % 4 == 0) shared.largest[LatentTile::rows * half() + row(h)] = most;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float a = shared.largest[row(h)], b = shared.largest[LatentTile::rows + row(h)];
      const float tile = -(a > b ? a : b) * scale2;
      const float next = tile < level[h] ? tile : level[h];
      const float used = next == infinity ? 0.0f : next;  // a row that sees nothing yet
      keep[h] = exp2_fast(used - level[h]);
      level[h] = next;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float low = exp2_fast(dsv3::fma(s[4 * n + 2 * h], scale2, used));
        const float high = exp2_fast(dsv3::fma(s[4 * n + 2 * h + 1], scale2, used));
        const std::uint32_t pair = pack_bf16(low, high);
        *reinterpret_cast<std::uint32_t*>(shared.weights + latent_at(row(h), 4 * half() + n) +
                                          2 * (lane % 4)) = pair;
        // What is divided by is the sum of the weights that are used, so rounding them is no bias.
        sum += __uint_as_float(pair << 16) + __uint_as_float(pair & 0xFFFF0000u);
      }
      denominator[h] = dsv3::fma(denominator[h], keep[h], sum);
    }
  }

  // The denominators of all rows, in shared memory; visible after the next barrier.
  template <int V, int R>
  __device__ void end(const LatentShared<V, R>& shared) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = denominator[h];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (threadIdx.x % 4 != 0) continue;
      shared.denominator[LatentTile::rows * half() + row(h)] = sum;
      if (half() == 0) shared.keep[row(h)] = level[h];
    }
  }
};

// Where one row of a unit goes: to the output where its keys are those of one split, else to the
// partial results.
struct LatentRowOut {
  bf16* o = nullptr;
  float* sum = nullptr;
  float denominator = 1;
  Index width = 0;

  template <class C, int V, int R>
  __device__ LatentRowOut(const LatentPass<C>& in, const LatentUnit& unit,
                          const LatentShared<V, R>& shared, int row) {
    if (shared.limit[row] < unit.begin()) return;  // no such row, or one that ends before
    const Index t = unit.token(row), head = unit.head(row);
    denominator = shared.denominator[row] + shared.denominator[LatentTile::rows + row];
    if (shared.limit[row] < LatentTile::split) {
      o = &in.o(t, head, 0);
      width = in.o.extent(2);
    } else {
      const Index at = in.partial(t, head);
      sum = &in.sum(at, unit.split, 0);
      width = in.sum.extent(2);
      in.level(at, unit.split) = shared.keep[row];
      in.denominator(at, unit.split) = denominator;
    }
  }
  // Columns j and j + 1; j is even.
  __device__ void operator()(int j, float x, float y) const {
    if (j >= width) return;
    if (sum) {
      *reinterpret_cast<float2*>(sum + j) = float2{x, y};
    } else {
      o[j] = bf16(x / denominator);
      if (j + 1 < width) o[j + 1] = bf16(y / denominator);
    }
  }
};

}  // namespace dsv3::detail
