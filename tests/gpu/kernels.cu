// Device's memory, and every row kernel of training and inference as device code in each precision.
#include "launch.cuh"
#include "program.hpp"

namespace gpu {

bool available() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

void* allocate(Device&, Index bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, static_cast<std::size_t>(bytes)), "allocate");
  return memory;
}
void deallocate(Device&, void* memory, Index) noexcept { cudaFree(memory); }
void copy_to_backend(Device&, void* to, const void* from, Index bytes) {
  check(cudaMemcpy(to, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice),
        "copy_to_backend");
}
void copy_to_host(Device&, void* to, const void* from, Index bytes) {
  check(cudaMemcpy(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost),
        "copy_to_host");
}
void fill_zero(Device&, void* memory, Index bytes) {
  check(cudaMemset(memory, 0, static_cast<std::size_t>(bytes)), "fill_zero");
}
void synchronize(Device&) { check(cudaDeviceSynchronize(), "synchronize"); }

std::vector<std::size_t> layout_of_nvcc() { return layout(); }

template std::vector<std::uint32_t> core(Device&);

}  // namespace gpu

template small::Outcome small::train<dsv3::Fp64>(gpu::Device&);
template small::Outcome small::train<dsv3::Fp32>(gpu::Device&);
template small::Outcome small::train<dsv3::Bf16>(gpu::Device&);
template small::Outcome small::train<dsv3::Fp8>(gpu::Device&);
template small::Outcome small::train<fixture::Studies>(gpu::Device&);
template small::Outcome small::train<fixture::MoreStudies>(gpu::Device&);
template std::vector<dsv3::GenerationResult> small::generate<dsv3::Fp64, double>(gpu::Device&);
template std::vector<dsv3::GenerationResult> small::generate<dsv3::Bf16, dsv3::e4m3>(gpu::Device&);
template std::vector<dsv3::GenerationResult> small::generate<dsv3::Fp8, dsv3::bf16>(gpu::Device&);
