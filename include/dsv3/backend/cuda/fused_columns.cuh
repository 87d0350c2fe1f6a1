// Quantising in groups of rows: a block of threads holds 128 rows of a strip of columns.
#pragma once

#include <dsv3/backend/cuda/fused_columns_codes.cuh>
#include <dsv3/backend/cuda/primitives.hpp>

namespace dsv3 {
namespace detail {

// A matrix in pieces of 8 columns of a row; `across` of them make a strip, and `blocks` of threads
// share a multiprocessor. group: of columns with the same scale, where the piece lies.
template <class Source>
struct FusedSource;

template <>
struct FusedSource<View<const bf16, 2>> {
  static constexpr int across = 8, blocks = 4;
  struct Piece {
    uint4 bits = {0, 0, 0, 0};
  };

  static bool aligned(const View<const bf16, 2>& x) { return aligned_rows(x, 16); }
  __device__ static int group(const View<const bf16, 2>&, Index) { return 0; }
  __device__ static __forceinline__ void load(Piece& piece, const View<const bf16, 2>& x, Index row,
                                              Index column, int) {
    piece.bits = *reinterpret_cast<const uint4*>(&x(row, column));
  }
  __device__ static __forceinline__ void values(const Piece& piece, float (&v)[8]) {
    const std::uint32_t words[4] = {piece.bits.x, piece.bits.y, piece.bits.z, piece.bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = __uint_as_float(words[i] << 16);
      v[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
    }
  }
};

template <class C>
struct FusedCodes {
  static constexpr int across = 16;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890  // encodes by integers, which take registers
  static constexpr int blocks = 2;
#else
  static constexpr int blocks = 3;
#endif
  struct Piece {
    uint2 codes = {0, 0};
    float scale = 0;
  };

  static bool aligned_codes(const Quantized<const C>& q) {
    return aligned_rows(q.codes, 8) && q.group_rows == 1 && q.group_columns % 8 == 0;
  }
  __device__ static __forceinline__ void load_codes(Piece& piece, const Quantized<const C>& q,
                                                    Index row, Index column, int group) {
    piece.codes = *reinterpret_cast<const uint2*>(&q.codes(row, column));
    piece.scale = q.scales(row, group);
  }
  __device__ static __forceinline__ void values(const Piece& piece, float (&v)[8]) {
    const std::uint32_t words[2] = {piece.codes.x, piece.codes.y};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      decode_pair<C>(words[i / 2] >> 16 * (i % 2), v[2 * i], v[2 * i + 1]);
      v[2 * i] *= piece.scale;
      v[2 * i + 1] *= piece.scale;
    }
  }
};

template <class C>
struct FusedSource<Quantized<const C>> : FusedCodes<C> {
  using typename FusedCodes<C>::Piece;

  static bool aligned(const Quantized<const C>& x) { return FusedCodes<C>::aligned_codes(x); }
  __device__ static int group(const Quantized<const C>& x, Index column) {
    return static_cast<int>(column / x.group_columns);
  }
  __device__ static __forceinline__ void load(Piece& piece, const Quantized<const C>& x, Index row,
                                              Index column, int group) {
    FusedCodes<C>::load_codes(piece, x, row, column, group);
  }
};

template <class C>
struct FusedSource<WeightedSlots<C>> : FusedCodes<C> {
  using typename FusedCodes<C>::Piece;

  // Dense weights: those of a pair lie at its number.
  static bool aligned(const WeightedSlots<C>& x) {
    return FusedCodes<C>::aligned_codes(x.slots) && x.weights.dense();
  }
  __device__ static int group(const WeightedSlots<C>& x, Index column) {
    return static_cast<int>(column / x.slots.group_columns);
  }
  __device__ static __forceinline__ void load(Piece& piece, const WeightedSlots<C>& x, Index row,
                                              Index column, int group) {
    FusedCodes<C>::load_codes(piece, x.slots, row, column, group);
    piece.scale *= x.weights.data[x.pair_of_slot(row)];
  }
};

// SegmentBlocks::find by all threads of a block, each looking at its own segments.
template <int threads>
__device__ __forceinline__ void find_segment_block(const auto& blocks, Index b, Index (&found)[2]) {
  const Index segments = blocks.offsets.extent(0) - 1;
  if (threadIdx.x == 0) found[0] = found[1] = 0;
  __syncthreads();
  for (Index e = threadIdx.x; e < segments; e += threads) {
    const Index begin = blocks.offsets(e), end = blocks.offsets(e + 1), tile = blocks.tile;
    const Index at = b - (begin / tile + e);
    if (at < 0 || at * tile >= end - begin) continue;  // one segment at most has this block
    const Index first = begin + at * tile, left = end - first;
    found[0] = first;
    found[1] = left < tile ? left : tile;
  }
  __syncthreads();
}

inline constexpr int fused_columns_threads = 256;

template <class Block, class Source, class C>
__global__ void __launch_bounds__(fused_columns_threads, FusedSource<Source>::blocks)
    fused_columns_kernel(const __grid_constant__ Block block, int strips) {
  using In = FusedSource<Source>;
  constexpr int threads = fused_columns_threads, across = In::across, width = 8 * across;
  constexpr int down = threads / across, passes = 128 / down, warps = threads / 32;
  __shared__ __align__(16) std::uint32_t partial[warps][width];
  __shared__ __align__(16) float scales[width], inverses[width];
  __shared__ Index found[2];
  const int thread = static_cast<int>(threadIdx.x), place = 8 * (thread % across);
  const int row0 = thread / across;
  const Index b = blockIdx.x / static_cast<unsigned>(strips);
  const Index from = Index{blockIdx.x % static_cast<unsigned>(strips)} * width;
  Index first;
  int count;
  if (block.blocks.offsets.extent(0) > 0) {
    find_segment_block<threads>(block.blocks, b, found);
    first = found[0];
    count = static_cast<int>(found[1]);
  } else {
    first = b * block.blocks.tile;
    const Index left = block.blocks.rows - first;
    count = static_cast<int>(left < block.blocks.tile ? left : block.blocks.tile);
  }
  if (count <= 0) return;
  const Index column = from + place;
  const bool inside = column < block.q.extent(1);
  const int rows = inside ? count : 0;  // of this thread
  const int group = In::group(block.x, column);

  typename In::Piece piece[passes];
#pragma unroll
  for (int p = 0; p < passes; ++p)
    if (row0 + p * down < rows) In::load(piece[p], block.x, first + row0 + p * down, column, group);

  std::uint32_t most[8] = {};
#pragma unroll
  for (int p = 0; p < passes; ++p) {
    float v[8];
    In::values(piece[p], v);
#pragma unroll
    for (int i = 0; i < 8; ++i) most[i] = max(most[i], magnitude_bits(v[i]));
  }
#pragma unroll
  for (int by = across; by < 32; by *= 2)
#pragma unroll
    for (int i = 0; i < 8; ++i) most[i] = max(most[i], __shfl_xor_sync(~0u, most[i], by));
  if (thread % 32 < across) {
    auto* to = reinterpret_cast<uint4*>(&partial[thread / 32][place]);
    to[0] = make_uint4(most[0], most[1], most[2], most[3]);
    to[1] = make_uint4(most[4], most[5], most[6], most[7]);
  }
  __syncthreads();
  if (thread < width) {
    std::uint32_t all = partial[0][thread];
#pragma unroll
    for (int w = 1; w < warps; ++w) all = max(all, partial[w][thread]);
    const CodeDivisor divisor(block.rule.template scale<C>(from_magnitude(all)));
    scales[thread] = divisor.scale;
    inverses[thread] = divisor.inverse;
    if (from + thread < block.q.extent(1)) block.q.scales(b, from + thread) = divisor.scale;
  }
  __syncthreads();

  float scale[8], inverse[8];
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const float4 s = *reinterpret_cast<const float4*>(&scales[place + i]);
    const float4 r = *reinterpret_cast<const float4*>(&inverses[place + i]);
    scale[i] = s.x, scale[i + 1] = s.y, scale[i + 2] = s.z, scale[i + 3] = s.w;
    inverse[i] = r.x, inverse[i + 1] = r.y, inverse[i + 2] = r.z, inverse[i + 3] = r.w;
  }
  bool fast = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) fast = fast && inverse[i] != 0;
  if (fast) {
    const bool power_of_two = block.rule.power_of_two;
#pragma unroll
    for (int p = 0; p < passes; ++p) {
      float v[8];
      In::values(piece[p], v);
      const uint2 codes = {encode_four<C>(v, scale, inverse, power_of_two),
                           encode_four<C>(v + 4, scale + 4, inverse + 4, power_of_two)};
      if (row0 + p * down < rows)
        *reinterpret_cast<uint2*>(&block.q.codes(first + row0 + p * down, column)) = codes;
    }
    return;
  }
  // Scales beyond the middle, among them infinity and NaN: from memory again.
#pragma unroll 1
  for (int row = row0; row < rows; row += down) {
    typename In::Piece again;
    In::load(again, block.x, first + row, column, group);
    float v[8];
    In::values(again, v);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      block.q.codes(first + row, column + i) = encode_scaled<C>(v[i], scale[i]);
  }
}

}  // namespace detail

template <class Source, class C>
requires(detail::is_fused_source<Source>&& is_fp8<C>) void fused_rows(
    Cuda& cuda, Index rows, const detail::QuantizeColumnsBlock<Source, C, RoundNearest>& block) {
  using Block = detail::QuantizeColumnsBlock<Source, C, RoundNearest>;
  using In = detail::FusedSource<Source>;
  const auto& q = block.q;
  const Index strips = groups_of(q.extent(1), 8 * In::across), down = q.scales.extents[0];
  const bool fused = block.blocks.tile <= 128 && In::aligned(block.x) &&
                     detail::aligned_rows(q.codes, 8) && strips * down <= 0x7FFFFFFF;
  if (!fused) {
    for_each_row(cuda, rows, block);
    return;
  }
  if (strips * down == 0) return;
  detail::fused_columns_kernel<Block, Source, C>
      <<<static_cast<unsigned>(strips * down), detail::fused_columns_threads, 0, cuda.stream()>>>(
          block, static_cast<int>(strips));
  detail::check_cuda(cudaGetLastError(), "fused_rows of columns", "launch",
                     std::to_string(q.extent(0)) + " x " + std::to_string(q.extent(1)));
}

}  // namespace dsv3
