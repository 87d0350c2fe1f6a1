// Sorting by expert on a GPU: nothing of it waits for the host.
#pragma once

#include <dsv3/backend/cuda/block_sort.hpp>
#include <dsv3/backend/cuda/primitives.hpp>
#include <dsv3/backend/cuda/team.cuh>

namespace dsv3 {
namespace detail {

template <class Sort>
__global__ void __launch_bounds__(Sort::threads) sort_count_kernel(Sort sort, bool in_shared) {
  extern __shared__ std::int32_t sort_shared[];
  __shared__ std::int32_t first;
  sort.count(CudaBlock<Sort::threads>{}, blockIdx.x, in_shared ? sort_shared : nullptr, &first);
}
template <class Sort>
__global__ void __launch_bounds__(Sort::threads) sort_prefix_kernel(Sort sort) {
  __shared__ std::int32_t sums[Sort::threads];
  sort.prefix(CudaBlock<Sort::threads>{}, blockIdx.x, sums);
}
template <class Sort>
__global__ void __launch_bounds__(Sort::threads)
    sort_place_kernel(Sort sort, bool in_shared, Cuda::Fault* fault) {
  extern __shared__ std::int32_t sort_shared[];
  __shared__ std::int32_t sums[Sort::threads];
  sort.place(CudaBlock<Sort::threads>{}, blockIdx.x, in_shared ? sort_shared : nullptr, sums,
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
  detail::sort_count_kernel<<<chunks, threads, bytes, cuda.stream()>>>(sort, bytes > 0);
  detail::sort_prefix_kernel<<<static_cast<unsigned>(sort.prefix_blocks()), threads, 0,
                               cuda.stream()>>>(sort);
  detail::sort_place_kernel<<<chunks, threads, bytes, cuda.stream()>>>(sort, bytes > 0,
                                                                       cuda.fault());
  detail::check_cuda(
      cudaGetLastError(), "sort_by_expert", "launch",
      std::to_string(sort.pairs) + " pairs of " + std::to_string(sort.experts) + " experts");
}

}  // namespace dsv3
