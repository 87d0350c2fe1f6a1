// Products of bf16 on the tensor cores of every GPU from compute capability 8.0 on.
#pragma once

#include <dsv3/backend/cuda/tile_memory.cuh>
#include <dsv3/backend/cuda/tile_problem.cuh>
#include <dsv3/backend/cuda/tile_store.cuh>

namespace dsv3::detail {

// A block's tile of the output as warps_m x warps_n warps of warp_m x warp_n elements, so many
// tiles of the operands on their way, and blocks that share a multiprocessor.
template <int warps_m_, int warps_n_, int warp_m_, int warp_n_, int stages_, int blocks_>
struct TileShape {
  static constexpr int warps_n = warps_n_, warp_m = warp_m_, warp_n = warp_n_;
  static constexpr int rows = warps_m_ * warp_m, columns = warps_n * warp_n;
  static constexpr int stages = stages_, blocks = blocks_;
  static constexpr int threads = 32 * warps_m_ * warps_n;
};

// One warp's part of a tile's product: fragments of the operands for this step and the next one.
// `half`: elements are fp16, otherwise bf16.
template <class Shape, bool left_along_k, bool right_along_k, bool half>
struct WarpProduct {
  static constexpr int blocks_m = Shape::warp_m / 16, blocks_n = Shape::warp_n / 8;
  using Left = FragmentMap<left_along_k, Shape::rows, true>;
  using Right = FragmentMap<right_along_k, Shape::columns, false>;

  float sum[blocks_m][blocks_n][4];
  std::uint32_t left[2][blocks_m][4], right[2][blocks_n / 2][4];
  int row, column;  // of this warp's part in the tile
  std::uint32_t left_lane, right_lane;

  __device__ WarpProduct() {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    row = warp / Shape::warps_n * Shape::warp_m;
    column = warp % Shape::warps_n * Shape::warp_n;
    left_lane = Left::lane_offset(lane, row);
    right_lane = Right::lane_offset(lane, column);
    clear();
  }
  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < blocks_m; ++m)
#pragma unroll
      for (int n = 0; n < blocks_n; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][n][i] = 0;
  }
  // The fragments of one step, from the operands' tiles at these addresses.
  __device__ void load(int to, std::uint32_t left_tile, std::uint32_t right_tile, int step) {
#pragma unroll
    for (int m = 0; m < blocks_m; ++m) {
      const std::uint32_t from = Left::at(left_tile + left_lane, m, step);
      if constexpr (left_along_k)
        load_matrices(left[to][m], from);
      else
        load_transposed(left[to][m], from);
    }
#pragma unroll
    for (int n = 0; n < blocks_n / 2; ++n) {
      const std::uint32_t from = Right::at(right_tile + right_lane, n, step);
      if constexpr (right_along_k)
        load_matrices(right[to][n], from);
      else
        load_transposed(right[to][n], from);
    }
  }
  // sum += left right, of 16 elements of the sum.
  __device__ void multiply(int from) {
#pragma unroll
    for (int m = 0; m < blocks_m; ++m)
#pragma unroll
      for (int i = 0; i < blocks_n; ++i) {
        const int n = m % 2 ? blocks_n - 1 - i : i;  // there and back: fragments stay in use
        const std::uint32_t(&b)[4] = right[from][n / 2];
        if constexpr (half)
          multiply_fp16(sum[m][n], left[from][m], b[n % 2 * 2], b[n % 2 * 2 + 1]);
        else
          multiply_bf16(sum[m][n], left[from][m], b[n % 2 * 2], b[n % 2 * 2 + 1]);
      }
  }
};

// The bytes of shared memory that tiles of bf16 take.
template <class Shape>
constexpr int tile_bytes() {
  return Shape::stages * (Shape::rows + Shape::columns) * tile_depth * 2;
}

// Every element's sum runs over ascending steps of 16 in one accumulator, whatever the tile: its
// bits depend on its row, its column and the length of the sum alone.
template <class Shape, bool aligned, class Problem>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks)
    tile_kernel(const Problem problem, const TileGrid grid) {
  constexpr bool left_along_k = Problem::product != Product::tn;
  constexpr bool right_along_k = Problem::product == Product::nt;
  const auto part = find_part<Shape::rows, Shape::columns>(problem, grid);
  if (part.row >= part.c.extent(0)) return;

  constexpr std::uint32_t left_bytes = OperandTile<left_along_k, Shape::rows>::bytes;
  constexpr std::uint32_t stage_bytes =
      left_bytes + OperandTile<right_along_k, Shape::columns>::bytes;
  const std::uint32_t memory = shared_address(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x);
  TileCopies<left_along_k, Shape::rows, Shape::threads, bf16, aligned> left(part.a, part.row,
                                                                            thread);
  TileCopies<right_along_k, Shape::columns, Shape::threads, bf16, aligned> right(
      part.b, part.column, thread);
  using LeftMap = typename decltype(left)::Map;
  using RightMap = typename decltype(right)::Map;
  constexpr int passes = LeftMap::passes + RightMap::passes;
  const std::uint32_t left_to =
      memory + LeftMap::Tile::offset(LeftMap::row(thread), LeftMap::chunk(thread));
  const std::uint32_t right_to =
      memory + left_bytes + RightMap::Tile::offset(RightMap::row(thread), RightMap::chunk(thread));
  // A part of a tile's copies, one after each of the first three steps of a tile.
  const auto copy = [&](int slot, int first, int last) {
    const std::uint32_t at = static_cast<std::uint32_t>(slot) * stage_bytes;
#pragma unroll
    for (int i = 0; i < passes; ++i) {
      if (i < first || i >= last) continue;
      const int pass = i < LeftMap::passes ? i : i - LeftMap::passes;
      if (i < LeftMap::passes)
        left.copy(pass, left_to + at + pass * LeftMap::pass_rows * LeftMap::Tile::row_bytes);
      else
        right.copy(pass, right_to + at + pass * RightMap::pass_rows * RightMap::Tile::row_bytes);
    }
  };
  const auto next_tile = [&] {
    copies_end_group();
    left.next_tile();
    right.next_tile();
  };

  const int depth = static_cast<int>(part.a.extent(left_along_k ? 1 : 0));
  const int tiles = (depth + tile_depth - 1) / tile_depth;
#pragma unroll
  for (int slot = 0; slot < Shape::stages - 1; ++slot) {
    copy(slot, 0, passes);
    next_tile();
  }
  WarpProduct<Shape, left_along_k, right_along_k, false> warp;
  wait_for_copies<Shape::stages - 2>();
  __syncthreads();
  int read = 0, write = Shape::stages - 1;
  std::uint32_t at = memory;
  warp.load(0, at, at + left_bytes, 0);
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int step = 0; step < tile_steps; ++step) {
      if (step == tile_steps - 1) {
        // All have loaded the last fragments of this tile: its slot is the next to be written.
        wait_for_copies<Shape::stages - 2>();
        __syncthreads();
        read = read + 1 == Shape::stages ? 0 : read + 1;
        at = memory + static_cast<std::uint32_t>(read) * stage_bytes;
      }
      warp.load((step + 1) % 2, at, at + left_bytes, (step + 1) % tile_steps);
      constexpr int parts = tile_steps - 1;
      if (step < parts) copy(write, step * passes / parts, (step + 1) * passes / parts);
      if (step == parts - 1) {
        next_tile();
        write = write + 1 == Shape::stages ? 0 : write + 1;
      }
      warp.multiply(step % 2);
    }
  }
  wait_for_copies<0>();
  store_blocks(part.c, part.row + warp.row, part.column + warp.column, warp.sum, problem.add);
}

}  // namespace dsv3::detail
