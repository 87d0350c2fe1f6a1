// Choosing tokens where the logits are: one block of threads for each row.
#pragma once

#include <dsv3/backend/cuda/launch.cuh>
#include <dsv3/backend/cuda/sampling.hpp>
#include <dsv3/backend/cuda/team.cuh>

namespace dsv3 {
namespace detail {

inline constexpr int sample_threads = 512;

template <class A>
__global__ void __launch_bounds__(sample_threads) sample_kernel(SampleRow<A> row) {
  unsigned turn = 0;
  row(BlockTeam(CudaBlock<sample_threads>{}, turn), Index{blockIdx.x});
}

}  // namespace detail

template <class A>
void fused_rows(Cuda& cuda, Index rows, const detail::SampleRow<A>& row) {
  if (rows == 0) return;
  detail::launch(cuda, detail::sample_kernel<A>, static_cast<unsigned>(rows),
                 detail::sample_threads, 0, row);
  detail::check_cuda(cudaGetLastError(), "fused_rows of sampling", "launch",
                     std::to_string(rows) + " x " + std::to_string(row.logits.extent(1)));
}

}  // namespace dsv3
