// Copies of codes with rows and columns exchanged: by tiles through shared memory, TMA on both
// sides. 8-bit codes reach wgmma only with the sum's direction along the row.
#pragma once

#include <dsv3/backend/cuda/hopper_barrier.cuh>
#include <dsv3/backend/cuda/hopper_stripes.hpp>
#include <dsv3/backend/cuda/hopper_tensor_map.hpp>
#include <dsv3/backend/cuda/hopper_transpose.cuh>
#include <dsv3/backend/cuda/launch.cuh>

namespace dsv3::detail {

constexpr int hopper_turn_threads = 128;

struct HopperTurn {
  CUtensorMap from, to;  // stacks of matrices; boxes of 128 x 128
  int first;             // column of `from` that becomes the first row of `to`
  int across;            // tiles of rows of `to`
  // Rows of `from` in segments (tn): each one's go to whole blocks at hopper_segment, zeros in what
  // is left of the last.
  int groups, tokens;
  const Index* offsets;  // [groups + 1] in device memory; or null: one segment
};

// One tile for each block of threads; many of them at work on a multiprocessor.
template <bool segments>
__global__ void __launch_bounds__(hopper_turn_threads)
    turn_codes_kernel(const __grid_constant__ HopperTurn work) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ __align__(1024) char memory[hopper_tile_bytes];
  __shared__ std::uint64_t arrived;
  __shared__ HopperTurnRows found;
  const auto tile = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const auto barrier = static_cast<std::uint32_t>(__cvta_generic_to_shared(&arrived));
  const int across = static_cast<int>(blockIdx.x) % work.across;
  const int block = static_cast<int>(blockIdx.x) / work.across;
  if (threadIdx.x == 0) {
    if (tile % 1024 != 0) __trap();
    barrier_init(barrier, 1);
    barriers_are_ready();
    found = segments ? HopperTurnRows{0, 0} : HopperTurnRows{block * hopper_tile, hopper_tile};
  }
  __syncthreads();
  if constexpr (segments) {
    const auto clamped = [&](int g) {
      if (!work.offsets) return g == 0 ? 0 : work.tokens;
      const Index offset = work.offsets[g];
      return offset < 0 ? 0 : offset < work.tokens ? static_cast<int>(offset) : work.tokens;
    };
    for (int g = threadIdx.x; g < work.groups; g += hopper_turn_threads) {
      const auto rows = hopper_turn_rows(block, g, clamped(g), clamped(g + 1));
      if (rows.count > 0) found = rows;  // of one group alone
    }
    __syncthreads();
  }
  const HopperTurnRows rows = found;
  if (rows.count <= 0) return;  // a block that no segment has
  const int group = static_cast<int>(blockIdx.y);
  if (threadIdx.x == 0) {
    arrive_expecting(barrier, hopper_tile_bytes);
    copy_box(tile, work.from, barrier, work.first + across * hopper_tile, rows.row, group);
  }
  wait_for_phase<false>(barrier, 0, 0, 0, nullptr);
  const TransposeLane lane(threadIdx.x % 32);
  const int warp = threadIdx.x / 32;
  constexpr int warps = hopper_turn_threads / 32;
  if (segments && rows.count < hopper_tile)
    transpose_tile<2, true>(tile, lane, warp, warps, rows.count);
  else
    transpose_tile<4, false>(tile, lane, warp, warps, hopper_tile);
  publish_to_async();
  __syncthreads();
  if (threadIdx.x == 0) store_box(work.to, block * hopper_tile, across * hopper_tile, group, tile);
#endif
}

// A stack of matrices for TMA, boxes of `down` x 128 codes.
template <class C>
TensorShape codes_shape(const View<C, 3>& codes, int down) {
  return {CU_TENSOR_MAP_DATA_TYPE_UINT8,
          codes.data,
          3,
          {codes.extent(2), codes.extent(1), codes.extent(0)},
          {codes.strides[1], codes.strides[0]},
          {hopper_tile, down, 1},
          true};
}

inline void launch_turn(Cuda& cuda, const char* caller, HopperTurn work, bool segments,
                        const View<const e4m3, 3>& from, const View<e4m3, 3>& to) {
  work.from = tensor_map(caller, codes_shape(from, hopper_tile));
  work.to = tensor_map(caller, codes_shape(to, hopper_tile));
  work.across = static_cast<int>(groups_of(to.extent(1), hopper_tile));
  const Index down = groups_of(to.extent(2), hopper_tile);
  const dim3 grid(static_cast<unsigned>(work.across * down), static_cast<unsigned>(to.extent(0)));
  const auto kernel = segments ? turn_codes_kernel<true> : turn_codes_kernel<false>;
  detail::launch(cuda, kernel, grid, hopper_turn_threads, 0, work);
  check_cuda(cudaGetLastError(), caller, "launch",
             "codes of " + std::to_string(from.extent(0)) + " x " + std::to_string(from.extent(1)) +
                 " x " + std::to_string(from.extent(2)) + " turned");
}

// to[g, j, i] = from[g, i, first + j], in rows of `to` that are whole tiles apart.
inline void turn_codes(Cuda& cuda, const char* caller, const View<const e4m3, 3>& from, Index first,
                       const View<e4m3, 3>& to) {
  HopperTurn work{};
  work.first = static_cast<int>(first);
  launch_turn(cuda, caller, work, false, from, to);
}
// The same of tokens [T, features] in segments: to [1, features of the stripe, turned tokens].
inline void turn_segments(Cuda& cuda, const char* caller, const View<const e4m3, 3>& from,
                          Index first, const View<e4m3, 3>& to, Index groups,
                          const View<const Index, 1>& offsets) {
  HopperTurn work{};
  work.first = static_cast<int>(first);
  work.groups = static_cast<int>(groups);
  work.tokens = static_cast<int>(from.extent(1));
  work.offsets = offsets.extent(0) ? offsets.data : nullptr;
  launch_turn(cuda, caller, work, true, from, to);
}

}  // namespace dsv3::detail
