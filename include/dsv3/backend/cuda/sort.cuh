// Sorting by expert on a GPU: nothing of it waits for the host.
#pragma once

#include <dsv3/backend/cuda/block_sort.hpp>
#include <dsv3/backend/cuda/launch.cuh>
#include <dsv3/backend/cuda/primitives.hpp>
#include <dsv3/backend/cuda/ptx.cuh>
#include <dsv3/backend/cuda/team.cuh>

namespace dsv3 {
namespace detail {

__device__ inline std::int32_t* sort_shared() {
  return reinterpret_cast<std::int32_t*>(dynamic_shared());
}

template <class Sort>
__global__ void __launch_bounds__(Sort::threads) sort_count_kernel(Sort sort, bool in_shared) {
  __shared__ std::int32_t first;
  sort.count(CudaBlock<Sort::threads>{}, blockIdx.x, in_shared ? sort_shared() : nullptr, &first);
}
template <class Sort>
__global__ void __launch_bounds__(Sort::threads) sort_prefix_kernel(Sort sort) {
  __shared__ std::int32_t sums[Sort::threads];
  sort.prefix(CudaBlock<Sort::threads>{}, blockIdx.x, sums);
}
template <class Sort>
__global__ void __launch_bounds__(Sort::threads)
    sort_place_kernel(Sort sort, bool in_shared, Cuda::Fault* fault) {
  __shared__ std::int32_t sums[Sort::threads];
  sort.place(CudaBlock<Sort::threads>{}, blockIdx.x, in_shared ? sort_shared() : nullptr, sums,
             static_cast<volatile Cuda::Fault*>(fault));
}

}  // namespace detail

template <class Unused>
void sort_by_expert(Cuda& cuda, View<const std::int32_t, 2> topk_idx, View<Index, 1> offsets,
                    View<std::int32_t, 1> pair_of_slot, View<std::int32_t, 2> slot_of_pair) {
  const detail::ExpertSort sort(topk_idx, offsets, pair_of_slot, slot_of_pair, cuda.workspace(),
                                Cuda::workspace_bytes);
  if (sort.pairs == 0) {
    fill_zero(cuda, offsets.data, offsets.size() * Index{sizeof(Index)});
    return;
  }
  constexpr auto threads = static_cast<unsigned>(detail::ExpertSort::threads);
  const auto chunks = static_cast<unsigned>(sort.chunks);
  const auto bytes = static_cast<std::size_t>(sort.shared_words()) * sizeof(std::int32_t);
  detail::launch(cuda, detail::sort_count_kernel<detail::ExpertSort>, chunks, threads, bytes, sort,
                 bytes > 0);
  detail::launch(cuda, detail::sort_prefix_kernel<detail::ExpertSort>,
                 static_cast<unsigned>(sort.prefix_blocks()), threads, 0, sort);
  detail::launch(cuda, detail::sort_place_kernel<detail::ExpertSort>, chunks, threads, bytes, sort,
                 bytes > 0, cuda.fault());
  detail::check_cuda(
      cudaGetLastError(), "sort_by_expert", "launch",
      std::to_string(sort.pairs) + " pairs of " + std::to_string(sort.experts) + " experts");
}

}  // namespace dsv3
