// Products of 8-bit codes with scales: codes become fp16, which has all their values, on the way to
// the tensor cores, and each segment's sum is promoted to float.
#pragma once

#include <dsv3/backend/cuda/tile_multiply.cuh>
#include <dsv3/core/math.hpp>

namespace dsv3::detail {

// Four codes, lowest byte first, as two pairs of fp16.
template <class C>
__device__ void widen(std::uint32_t codes, std::uint32_t& low, std::uint32_t& high) {
  if constexpr (std::is_same_v<C, e5m2>) {  // the upper half of an fp16
    low = __byte_perm(codes, 0, 0x1404);
    high = __byte_perm(codes, 0, 0x3424);
  } else {
#if __CUDA_ARCH__ >= 890
    low = halves_of<C>(codes & 0xFFFFu);
    high = halves_of<C>(codes >> 16);
#else
    // With the exponent moved over, fp16 reads 2^-8 of the value, subnormals included. A code that
    // is NaN gets all ones after the sign.
    const auto pair = [](std::uint32_t upper) {
      const std::uint32_t nan = ((upper & 0x7F007F00u) + 0x01000100u) & 0x80008000u;
      const std::uint32_t scaled = (upper & 0x80008000u) | (upper & 0x7F007F00u) >> 1;
      return multiply_halves(scaled, 0x5C005C00u) |  // by 2^8
             (nan - (nan >> 15));
    };
    low = pair(__byte_perm(codes, 0, 0x1404));
    high = pair(__byte_perm(codes, 0, 0x3424));
#endif
  }
}

// One thread's part of an operand of codes: its copies wait in a queue of its own in shared memory,
// and it widens them into the tile itself.
template <bool along_k, int extent, int threads, class C, bool aligned>
struct CodeCopies : TileCopies<along_k, extent, threads, C, aligned> {
  using Base = TileCopies<along_k, extent, threads, C, aligned>;
  using Map = typename Base::Map;
  using Tile = OperandTile<along_k, extent>;
  static constexpr std::uint32_t pass_bytes = threads * 16;  // of the queue
  static constexpr std::uint32_t tile_bytes = Map::passes * pass_bytes;

  std::uint32_t queue, first, second;  // second: the eight elements after those at first

  __device__ CodeCopies(const View<const C, 2>& operand, int origin, int thread,
                        std::uint32_t queues)
      : Base(operand, origin, thread),
        queue(queues + static_cast<std::uint32_t>(thread) * 16),
        first(Tile::offset(Map::row(thread), 2 * Map::chunk(thread))),
        second(Tile::offset(Map::row(thread), 2 * Map::chunk(thread) + 1)) {}

  __device__ void fetch(std::uint32_t slot, int pass) const {
    this->copy(pass, queue + slot + pass * pass_bytes);
  }
  __device__ void widen_into(std::uint32_t tile, std::uint32_t slot, int pass) const {
    std::uint32_t codes[4], wide[8];
    load_16_bytes(codes, queue + slot + pass * pass_bytes);
#pragma unroll
    for (int i = 0; i < 4; ++i) widen<C>(codes[i], wide[2 * i], wide[2 * i + 1]);
    const std::uint32_t to = tile + pass * Map::pass_rows * Tile::row_bytes;
    store_16_bytes(to + first, wide[0], wide[1], wide[2], wide[3]);
    store_16_bytes(to + second, wide[4], wide[5], wide[6], wide[7]);
  }
};

// The scales of one row or column of a tile, one thread's share.
class ScaleReader {
 public:
  // index: along the output, beyond it where there is no such row.
  __device__ ScaleReader(const OperandScales<float>& scales, Index index, Index extent)
      : from_(index < extent ? scales.data + index / scales.i_group * scales.i_stride : nullptr),
        stride_(scales.k_stride),
        group_(static_cast<unsigned>(scales.k_group)) {}

  __device__ float at(int k) const {
    if (!from_) return 0;
    return stride_ ? from_[static_cast<unsigned>(k) / group_ * stride_] : *from_;
  }

 private:
  const float* from_;
  Index stride_;
  unsigned group_;
};

// Shared memory: the queues of codes, two tiles of fp16 of each operand, and the scales of both,
// for each half of a tile because segments end at multiples of 32.
template <class Shape>
struct CodeMemory {
  static constexpr int edge = Shape::rows + Shape::columns;
  static constexpr std::uint32_t stage_bytes = edge * tile_depth;
  static constexpr std::uint32_t tiles = Shape::stages * stage_bytes;
  static constexpr std::uint32_t tile_bytes = edge * tile_depth * 2;
  static constexpr std::uint32_t scales = tiles + 2 * tile_bytes;
  static constexpr int bytes = static_cast<int>(scales + 2 * 2 * edge * sizeof(float));
};

template <class Shape, bool left_along_k, bool right_along_k>
struct PromotedProduct : WarpProduct<Shape, left_along_k, right_along_k, true> {
  using Base = WarpProduct<Shape, left_along_k, right_along_k, true>;
  float total[Base::blocks_m][Base::blocks_n][4] = {};

  // total = fma(sum, scale_a * scale_b, total), and the next segment's sum begins.
  __device__ void promote(const float* scales) {
    const int lane = threadIdx.x % 32;
    const float* by_row = scales + this->row + lane / 4;
    const float* by_column = scales + Shape::rows + this->column + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < Base::blocks_m; ++m)
#pragma unroll
      for (int n = 0; n < Base::blocks_n; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          total[m][n][i] =
              dsv3::fma(this->sum[m][n][i], by_row[16 * m + i / 2 * 8] * by_column[8 * n + i % 2],
                        total[m][n][i]);
    this->clear();
  }
};

// Segments end at multiples of 32 (SegmentMap::of_whole_steps). One thread for each row and column.
template <class Shape, bool aligned, class CA, class CB, class Problem>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks)
    code_kernel(const Problem problem, const TileGrid grid) {
  constexpr bool left_along_k = Problem::product != Product::tn;
  constexpr bool right_along_k = Problem::product == Product::nt;
  using Memory = CodeMemory<Shape>;
  static_assert(Shape::threads == Memory::edge);
  const auto part = find_part<Shape::rows, Shape::columns>(problem, grid);
  if (part.row >= part.c.extent(0)) return;

  const int thread = static_cast<int>(threadIdx.x);
  const std::uint32_t memory = shared_address(dynamic_shared());
  using Left = CodeCopies<left_along_k, Shape::rows, Shape::threads, CA, aligned>;
  using Right = CodeCopies<right_along_k, Shape::columns, Shape::threads, CB, aligned>;
  Left left(part.a.codes, part.row, thread, memory);
  Right right(part.b.codes, part.column, thread, memory + Left::tile_bytes);
  static_assert(Left::Map::passes + Right::Map::passes == tile_steps);
  static_assert(Left::tile_bytes + Right::tile_bytes == Memory::stage_bytes);
  constexpr std::uint32_t left_bytes = Left::Tile::bytes;
  const auto fetch_tile = [&](int slot) {
    const std::uint32_t at = static_cast<std::uint32_t>(slot) * Memory::stage_bytes;
#pragma unroll
    for (int i = 0; i < Left::Map::passes; ++i) left.fetch(at, i);
#pragma unroll
    for (int i = 0; i < Right::Map::passes; ++i) right.fetch(at, i);
    copies_end_group();
    left.next_tile();
    right.next_tile();
  };
  // One of the thread's chunks, from the queue's slot into one of the two tiles.
  const auto widen_chunk = [&](int slot, int tile, int i) {
    const std::uint32_t from = static_cast<std::uint32_t>(slot) * Memory::stage_bytes;
    const std::uint32_t to =
        memory + Memory::tiles + static_cast<std::uint32_t>(tile % 2) * Memory::tile_bytes;
    if (i < Left::Map::passes)
      left.widen_into(to, from, i);
    else
      right.widen_into(to + left_bytes, from, i - Left::Map::passes);
  };

  const auto left_scales = operand_scales(part.a, left_along_k);
  const auto right_scales = operand_scales(part.b, right_along_k);
  const SegmentMap segments(left_scales, right_scales);
  const ScaleReader scale =
      thread < Shape::rows
          ? ScaleReader(left_scales, part.row + thread, part.c.extent(0))
          : ScaleReader(right_scales, part.column + thread - Shape::rows, part.c.extent(1));
  float* const scales = reinterpret_cast<float*>(dynamic_shared() + Memory::scales);

  const int depth = static_cast<int>(part.a.extent(left_along_k ? 1 : 0));
  const int tiles = (depth + tile_depth - 1) / tile_depth;
  const auto scale_of = [&](int tile, int half) {
    const int k = tile * tile_depth + half * tile_depth / 2;
    return k < depth ? scale.at(k) : 0.0f;
  };
  const auto keep_scales = [&](int tile, float first, float second) {
    float* to = scales + tile % 2 * 2 * Memory::edge + thread;
    to[0] = first;
    to[Memory::edge] = second;
  };
#pragma unroll
  for (int slot = 0; slot < Shape::stages - 1; ++slot) fetch_tile(slot);
  wait_for_copies<Shape::stages - 2>();
#pragma unroll
  for (int i = 0; i < tile_steps; ++i) widen_chunk(0, 0, i);
  keep_scales(0, scale_of(0, 0), scale_of(0, 1));
  __syncthreads();

  PromotedProduct<Shape, left_along_k, right_along_k> warp;
  int segment_end = segments.end(0), write = Shape::stages - 1, read = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    // Only this thread reads its slots, and it widened the tile before this one in the last round.
    fetch_tile(write);
    write = write + 1 == Shape::stages ? 0 : write + 1;
    read = read + 1 == Shape::stages ? 0 : read + 1;
    const float next_first = scale_of(tile + 1, 0), next_second = scale_of(tile + 1, 1);
    const std::uint32_t at =
        memory + Memory::tiles + static_cast<std::uint32_t>(tile % 2) * Memory::tile_bytes;
    warp.load(0, at, at + left_bytes, 0);
    wait_for_copies<Shape::stages - 2>();
#pragma unroll
    for (int step = 0; step < tile_steps; ++step) {
      if (step + 1 < tile_steps) warp.load((step + 1) % 2, at, at + left_bytes, step + 1);
      widen_chunk(read, tile + 1, step);  // of the next tile: zeros after the last
      warp.multiply(step % 2);
      if (step % 2) {
        const int half = step / 2, k = tile * tile_depth + (half + 1) * tile_depth / 2;
        const bool begun = k - tile_depth / 2 < depth;
        if (begun && (k == segment_end || k >= depth)) {
          warp.promote(scales + (tile % 2 * 2 + half) * Memory::edge);
          segment_end = segments.end(k);
        }
      }
    }
    keep_scales(tile + 1, next_first, next_second);
    __syncthreads();
  }
  wait_for_copies<0>();
  store_blocks(part.c, part.row + warp.row, part.column + warp.column, warp.total, problem.add);
}

}  // namespace dsv3::detail
