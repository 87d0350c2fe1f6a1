// Memory of a device for the tests of latent attention.
#pragma once

#include <algorithm>
#include <cstdio>
#include <dsv3/backend/cuda/context.hpp>
#include <vector>

namespace latent_test {

using dsv3::Index;

// Memory of the device, of bytes 0xFF at first: NaN where nobody wrote.
template <class T>
struct Device {
  T* data = nullptr;
  Index n = 0;
  explicit Device(Index size) : n(size) {
    const auto bytes = static_cast<std::size_t>(std::max(Index{64}, size * Index{sizeof(T)}));
    dsv3::detail::check_cuda(cudaMalloc(&data, bytes), "test", "cudaMalloc");
    cudaMemset(data, 0xFF, bytes);
    cudaDeviceSynchronize();
  }
  explicit Device(const std::vector<T>& host) : Device(static_cast<Index>(host.size())) {
    cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { cudaFree(data); }
  std::vector<T> host() const {
    std::vector<T> values(static_cast<std::size_t>(n));
    cudaMemcpy(values.data(), data, values.size() * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }
};

inline bool skipped() {
  const auto reason = dsv3::cuda_unavailable();
  if (!reason.empty()) std::printf("skipped: %s\n", reason.c_str());
  return !reason.empty();
}

}  // namespace latent_test
