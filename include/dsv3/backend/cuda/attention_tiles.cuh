// What attention's kernels share: the list of tiles, how a tile lies in shared memory, and how
// warps read it as operands.
#pragma once

#include <dsv3/backend/cuda/ptx.cuh>

namespace dsv3::detail {

// A tile of tokens is of one sequence and starts at a multiple of `size` from its start, whatever
// stands before the sequence in the batch.
DSV3_HD constexpr bool attention_tile_starts(Index token, Index begin, Index size) {
  return (token - begin) % size == 0;
}

// A unit of work: one tile of one head. Heads in order, so that the keys of few heads are read at a
// time and stay in the second cache; within a head the longest tiles first, so that the last units
// to finish are short.
struct AttentionUnit {
  int head, tile;
};
DSV3_HD constexpr AttentionUnit attention_unit(int unit, int tiles, bool last_is_longest) {
  const int place = unit % tiles;
  return {unit / tiles, last_is_longest ? tiles - 1 - place : place};
}

// The words of a tile map: the tiles; the next unit of three kernels; from `first` on the first
// token of each tile, ascending.
struct AttentionMap {
  static constexpr int tiles = 0, next = 1, first = 4;
  std::int32_t* words;

  // The next unit of a kernel's work. Who takes which changes no result.
  __device__ int take(int kernel) const { return atomicAdd(words + next + kernel, 1); }
};

// Fills a map by one block. A template, as every kernel in a header: several files may include it.
inline constexpr int attention_map_threads = 1024;
template <int threads>
__global__ void __launch_bounds__(threads)
    attention_map_kernel(View<const std::int32_t, 1> begin, int size, AttentionMap map) {
  unsigned char* const attention_memory = dynamic_shared();
  int* counts = reinterpret_cast<int*>(attention_memory);  // of each warp
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int tokens = static_cast<int>(begin.extent(0));
  int found = 0;
  for (int t0 = 0; t0 < tokens; t0 += threads) {
    const int t = t0 + thread;
    const bool starts = t < tokens && attention_tile_starts(t, begin(t), size);
    const unsigned starting = __ballot_sync(~0u, starts);
    if (lane == 0) counts[warp] = __popc(starting);
    __syncthreads();
    int place = found;
    for (int w = 0; w < threads / 32; ++w) {
      place += w < warp ? counts[w] : 0;
      found += counts[w];
    }
    if (starts) map.words[AttentionMap::first + place + __popc(starting & ((1u << lane) - 1))] = t;
    __syncthreads();
  }
  if (thread == 0) {
    map.words[AttentionMap::tiles] = found;
    for (int kernel = 0; kernel < 3; ++kernel) map.words[AttentionMap::next + kernel] = 0;
  }
}

// What every kernel reads.
struct AttentionTask {
  View<const bf16, 3> q, kv;
  View<const bf16, 2> k_rope;
  View<const std::int32_t, 1> begin, end, first_keys, own_keys;
  float scale, scale_log2;  // the latter for powers of 2
  AttentionMap map;

  DSV3_HD int first_key(int t) const { return first_keys.data ? first_keys(t) : begin(t); }
  DSV3_HD int own_key(int t) const { return own_keys.data ? own_keys(t) : t; }
  DSV3_HD int heads() const { return static_cast<int>(q.extent(1)); }
  DSV3_HD int d_qk() const { return static_cast<int>(q.extent(2)); }
  DSV3_HD int d_n() const { return static_cast<int>(q.extent(2) - k_rope.extent(1)); }
  DSV3_HD int d_v() const { return static_cast<int>(kv.extent(2)) - d_n(); }
};

// Rows of device memory: `split` elements on the left, then those on the right up to `columns`.
struct AttentionRows {
  const bf16* left;
  Index left_stride;
  const bf16* right;
  Index right_stride;
  int split, columns;
};
__device__ inline AttentionRows attention_rows(const View<const bf16, 3>& x, int row, int head,
                                               int column, int columns) {
  return {&x(row, head, column), x.strides[0], nullptr, 0, columns, columns};
}
__device__ inline AttentionRows attention_key_rows(const AttentionTask& in, int row, int head) {
  return {&in.kv(row, head, 0), in.kv.strides[0], in.k_rope.data + row * in.k_rope.strides[0],
          in.k_rope.strides[0], in.d_n(),         in.d_qk()};
}

// A tile in shared memory has rows of `width` elements, a multiple of 64, as chunks of 16 bytes.
// The lowest three bits of a chunk's place are those of its number xor those of its row, so that 8
// rows of one chunk lie in different banks. Tiles start at multiples of 128 bytes.
DSV3_HD constexpr std::uint32_t attention_chunk(int row, int chunk, int width) {
  return static_cast<std::uint32_t>(row * width * 2 + (chunk ^ (row & 7)) * 16);
}

// Fills a tile; rows from `inside` on and columns beyond the source's become zeros. Aligned: parts
// are multiples of 16 bytes, copies are on their way until waited for.
template <int width, int rows, int threads, bool aligned>
__device__ inline void load_attention_tile(std::uint32_t tile, const AttentionRows& from,
                                           int inside) {
  constexpr int step = threads / 8;
  static_assert(width % 64 == 0 && rows % step == 0 && step % 8 == 0);
  const int thread = reread_thread();
  const int row = thread / 8, chunk = thread % 8;
  const std::uint32_t to = tile + attention_chunk(row, chunk, width);
#pragma unroll
  for (int group = 0; group < width / 64; ++group) {
    const int column = group * 64 + chunk * 8;
    if constexpr (aligned) {
      const bool left = column < from.split;
      const Index stride = reread(left ? from.left_stride : from.right_stride);
      const bf16* source =
          (left ? from.left + column : from.right + (column - from.split)) + row * stride;
      const int has = column < from.columns ? inside - row : 0;
#pragma unroll
      for (int i = 0; i < rows / step; ++i, source += step * stride)
        copy_async(to + group * 128 + i * step * width * 2, source, i * step < has);
    } else {
      for (int i = 0; i < rows / step; ++i) {
        const int r = row + i * step;
        std::uint32_t words[4] = {};
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int c = column + e;
          if (r < inside && c < from.columns) {
            const bf16 value = c < from.split
                                   ? from.left[r * from.left_stride + c]
                                   : from.right[r * from.right_stride + (c - from.split)];
            words[e / 2] |= static_cast<std::uint32_t>(value.bits) << (e % 2 * 16);
          }
        }
        store_16_bytes(to + group * 128 + i * step * width * 2, words);
      }
    }
  }
}

// How the lanes of a warp address a tile. `row` is a multiple of 8, `chunk` even. Made where it is
// used: its addresses are computed anew.
template <int width>
struct AttentionReader {
  std::uint32_t across, along;  // of this lane, for row 0 and chunk 0

  __device__ explicit AttentionReader(std::uint32_t tile) {
    const int lane = reread_thread() % 32;
    across = tile + attention_chunk(lane % 16, lane / 16, width);
    along = tile + attention_chunk(lane % 8 + lane / 16 * 8, lane / 8 % 2, width);
  }
  // The bits of `chunk` that the swizzle may turn are below 128, where the lane's row has none.
  __device__ static std::uint32_t at(std::uint32_t lane, int row, int chunk) {
    return (lane ^ static_cast<std::uint32_t>(chunk % 8 * 16)) +
           static_cast<std::uint32_t>(row * width * 2 + chunk / 8 * 128);
  }
  // Left operand: 16 rows from `row` on, 16 columns from `chunk` on.
  __device__ void left(std::uint32_t (&a)[4], int row, int chunk) const {
    load_matrices(a, at(across, row, chunk));
  }
  // Right operand of a sum over columns: 16 rows are 16 columns of the product, b[0] and b[1] of
  // the first 8, b[2] and b[3] of the others.
  __device__ void right(std::uint32_t (&b)[4], int row, int chunk) const {
    load_matrices(b, at(along, row, chunk));
  }
  // Right operand of a sum over rows: 16 columns from `chunk` on are columns of the product.
  __device__ void right_over_rows(std::uint32_t (&b)[4], int row, int chunk) const {
    load_transposed(b, at(across, row, chunk));
  }
};

// Two neighbouring 8 columns of a product as left operand of the next one, whose sum runs over
// them.
__device__ inline void as_left_operand(std::uint32_t (&a)[4], const float (&c0)[4],
                                       const float (&c1)[4]) {
  a[0] = pack_bf16(c0[0], c0[1]);
  a[1] = pack_bf16(c0[2], c0[3]);
  a[2] = pack_bf16(c1[0], c1[1]);
  a[3] = pack_bf16(c1[2], c1[3]);
}

// Stores two neighbours of a row of `columns` elements, of which those beyond are left out.
template <bool aligned>
__device__ inline void store_attention_pair(bf16* row, int column, int columns, float first,
                                            float second) {
  if constexpr (aligned) {
    if (column < columns)
      *reinterpret_cast<std::uint32_t*>(row + column) = pack_bf16(first, second);
  } else {
    if (column < columns) row[column] = bf16(first);
    if (column + 1 < columns) row[column + 1] = bf16(second);
  }
}

}  // namespace dsv3::detail
