// How a row kernel runs on a GPU: a block of threads is the team of one row.
#pragma once

#include <dsv3/backend/cuda/block_team.hpp>
#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/backend/cuda/launch.cuh>

namespace dsv3 {
namespace detail {

inline constexpr int cuda_team_size = 128;

// The Block of BlockTeam and of sorting.
template <int threads>
struct CudaBlock {
  static constexpr int size = threads;

  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ void barrier() const { __syncthreads(); }
  template <class A>
  __device__ A shuffle_down(A value, int by) const {
    return __shfl_down_sync(0xFFFFFFFFu, value, static_cast<unsigned>(by));
  }
  __device__ std::uint32_t largest(std::uint32_t value) const {
    return __reduce_max_sync(0xFFFFFFFFu, value);
  }
  template <class A>
  __device__ A* exchange(unsigned half) const {
    __shared__ A shared[2][threads / 32];
    return shared[half];
  }

  __device__ void warp_barrier() const { __syncwarp(); }
  __device__ std::uint32_t match(std::int32_t value) const {
    return __match_any_sync(0xFFFFFFFFu, value);
  }
  __device__ void add(std::int32_t* to, std::int32_t value) const { atomicAdd(to, value); }
  __device__ void lower(std::int32_t* to, std::int32_t value) const { atomicMin(to, value); }
  __device__ void system_fence() const { __threadfence_system(); }
};

template <class Body>
__global__ void __launch_bounds__(cuda_team_size) row_kernel(Index rows, Body body) {
  unsigned turn = 0;
  run_rows(BlockTeam(CudaBlock<cuda_team_size>{}, turn), blockIdx.x, gridDim.x, rows, body);
}

}  // namespace detail

/// Primitive. The same contract as for_each_row(EigenCpu&, Index, Body).
/// Errors   std::runtime_error where the launch fails.
template <class Body>
void for_each_row(Cuda& cuda, Index rows, Body body) {
  if (rows == 0) return;
  detail::launch(cuda, detail::row_kernel<Body>, static_cast<unsigned>(rows < 65535 ? rows : 65535),
                 detail::cuda_team_size, 0, rows, body);
  detail::check_cuda(cudaGetLastError(), "for_each_row", "launch", std::to_string(rows) + " rows");
}

}  // namespace dsv3
