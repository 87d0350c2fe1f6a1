// The ceiling of everything that memory bounds: a gibibyte read and written by a kernel, because
// the copy engines that a recorded cudaMemcpyAsync goes to are slower.
#include "data.cuh"

namespace gpu_bench {
namespace {

__global__ void __launch_bounds__(512) copy_kernel(const uint4* from, uint4* to, Index count) {
  const Index step = Index{gridDim.x} * 512 * 4;
  for (Index first = (Index{blockIdx.x} * 4) * 512 + threadIdx.x; first < count; first += step) {
    uint4 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i * 512 < count) words[i] = from[first + i * 512];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i * 512 < count) to[first + i * 512] = words[i];
  }
}

}  // namespace

void copy_case(Run& run) {
  const Index bytes = Index{1} << 30, count = bytes / 16;
  const auto from = run.take<uint4>({count}), to = run.take<uint4>({count});
  fill_zero(run.cuda, from.data, bytes);
  run.work(2.0 * static_cast<double>(bytes), "GB/s");
  run.torch("copy " + std::to_string(bytes), 0);
  run.measure([&](Index) {
    copy_kernel<<<static_cast<unsigned>(4 * run.cuda.multiprocessors()), 512, 0,
                  run.cuda.stream()>>>(from.data, to.data, count);
    dsv3::detail::check_cuda(cudaGetLastError(), "copy", "launch");
  });
}

}  // namespace gpu_bench
