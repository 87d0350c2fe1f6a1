// Quantising in groups of rows: a block of threads holds 128 rows of a strip of columns.
#pragma once

#include <dsv3/backend/cuda/fused_columns.hpp>
#include <dsv3/backend/cuda/fused_columns_codes.cuh>
#include <dsv3/backend/cuda/launch.cuh>
#include <dsv3/backend/cuda/primitives.hpp>

namespace dsv3 {
namespace detail {

// A matrix in pieces of 8 columns of a row; `across` of them make a strip, and `blocks` of threads
// share a multiprocessor. A reader stands at a piece and goes down the rows in steps.
template <class Source>
struct FusedSource;

template <>
struct FusedSource<View<const bf16, 2>> {
  static constexpr int across = 8, blocks = 4;
  struct Piece {
    uint4 bits = {0, 0, 0, 0};
  };
  struct Reader {
    const bf16* at;
    Index stride;

    __device__ Reader(const View<const bf16, 2>& x, Index row, Index column, int step)
        : at(&x(row, column)), stride(step * x.strides[0]) {}
    __device__ void load(Piece& piece) const { piece.bits = *reinterpret_cast<const uint4*>(at); }
    __device__ void go_down() { at += stride; }
  };

  static bool aligned(const View<const bf16, 2>& x) { return aligned_rows(x, 16); }
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
  struct CodeReader {
    const C* code;
    const float* scale;
    Index code_stride, scale_stride;

    __device__ CodeReader(const Quantized<const C>& q, Index row, Index column, int step)
        : code(&q.codes(row, column)),
          scale(&q.scales(row, column / q.group_columns)),
          code_stride(step * q.codes.strides[0]),
          scale_stride(step * q.scales.strides[0]) {}
    __device__ void load(Piece& piece) const {
      piece.codes = *reinterpret_cast<const uint2*>(code);
      piece.scale = *scale;
    }
    __device__ void go_down() {
      code += code_stride;
      scale += scale_stride;
    }
  };

  static bool aligned_codes(const Quantized<const C>& q) {
    return aligned_rows(q.codes, 8) && q.group_rows == 1 && q.group_columns % 8 == 0;
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
  using Reader = typename FusedCodes<C>::CodeReader;

  static bool aligned(const Quantized<const C>& x) { return FusedCodes<C>::aligned_codes(x); }
};

template <class C>
struct FusedSource<WeightedSlots<C>> : FusedCodes<C> {
  using typename FusedCodes<C>::Piece;
  struct Reader : FusedCodes<C>::CodeReader {
    using Base = typename FusedCodes<C>::CodeReader;
    const float* weights;
    const std::int32_t* pair;
    int step;

    __device__ Reader(const WeightedSlots<C>& x, Index row, Index column, int rows)
        : Base(x.slots, row, column, rows),
          weights(x.weights.data),
          pair(&x.pair_of_slot(row)),
          step(rows) {}
    __device__ void load(Piece& piece) const {
      Base::load(piece);
      piece.scale *= weights[*pair];
    }
    __device__ void go_down() {
      Base::go_down();
      pair += step;
    }
  };

  // Dense weights: those of a pair lie at its number.
  static bool aligned(const WeightedSlots<C>& x) {
    return FusedCodes<C>::aligned_codes(x.slots) && x.weights.dense();
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
  __shared__ __align__(16) float scales[width], high[width], low[width];
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

  typename In::Piece piece[passes];
  typename In::Reader reader(block.x, first + row0, column, down);
#pragma unroll
  for (int p = 0; p < passes; ++p) {
    if (row0 + p * down < rows) reader.load(piece[p]);
    reader.go_down();
  }

  float largest[8] = {};
#pragma unroll
  for (int p = 0; p < passes; ++p) {
    float v[8];
    In::values(piece[p], v);
#pragma unroll
    for (int i = 0; i < 8; ++i) largest[i] = larger_magnitude(largest[i], v[i]);
  }
  std::uint32_t most[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) most[i] = magnitude_bits(largest[i]);
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
    const CodeDivisor divisor(scale_of<C>(block.rule, from_magnitude(all)));
    scales[thread] = divisor.scale;
    high[thread] = divisor.high;
    low[thread] = divisor.low;
    if (from + thread < block.q.extent(1)) block.q.scales(b, from + thread) = divisor.scale;
  }
  __syncthreads();

  float by_high[8], by_low[8];
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const float4 h = *reinterpret_cast<const float4*>(&high[place + i]);
    const float4 l = *reinterpret_cast<const float4*>(&low[place + i]);
    by_high[i] = h.x, by_high[i + 1] = h.y, by_high[i + 2] = h.z, by_high[i + 3] = h.w;
    by_low[i] = l.x, by_low[i + 1] = l.y, by_low[i + 2] = l.z, by_low[i + 3] = l.w;
  }
  bool fast = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) fast = fast && by_high[i] != 0;
  if (fast) {
    C* to = &block.q.codes(first + row0, column);
    const Index stride = down * block.q.codes.strides[0];
#pragma unroll
    for (int p = 0; p < passes; ++p, to += stride) {
      float v[8];
      In::values(piece[p], v);
      const uint2 codes = {encode_four<C>(v, by_high, by_low),
                           encode_four<C>(v + 4, by_high + 4, by_low + 4)};
      if (row0 + p * down < rows) *reinterpret_cast<uint2*>(to) = codes;
    }
    return;
  }
  // Scales beyond the middle, among them infinity and NaN: from memory again.
#pragma unroll 1
  for (int row = row0; row < rows; row += down) {
    typename In::Piece again;
    typename In::Reader(block.x, first + row, column, down).load(again);
    float v[8];
    In::values(again, v);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      block.q.codes(first + row, column + i) = encode_scaled<C>(v[i], scales[place + i]);
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
  detail::launch(cuda, detail::fused_columns_kernel<Block, Source, C>,
                 static_cast<unsigned>(strips * down), detail::fused_columns_threads, 0, block,
                 static_cast<int>(strips));
  detail::check_cuda(cudaGetLastError(), "fused_rows of columns", "launch",
                     std::to_string(q.extent(0)) + " x " + std::to_string(q.extent(1)));
}

}  // namespace dsv3
