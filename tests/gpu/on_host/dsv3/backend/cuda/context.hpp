// Cuda without a GPU: the same class for the code behind it, whose kernels run as fibers. It has
// neither cuBLASLt nor wgmma, so every kernel is a portable one.
#pragma once

#include <dsv3/core/buffer.hpp>
#include <memory>

#include "gpu/on_host/language.hpp"

namespace dsv3 {

struct CudaOptions {
  int device = 0;
  bool vendor_products = false, tf32 = false, graphs = false, hopper_kernels = false;
};

inline std::string cuda_unavailable(int = 0) noexcept { return {}; }

namespace detail {
inline void check_cuda(cudaError_t, const char*, const char*, const std::string& = {}) {}
}  // namespace detail

class Cuda {
 public:
  static constexpr Index workspace_bytes = Index{1} << 20;

  explicit Cuda(const CudaOptions& options = {}) : options_(options) {}
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;

  const CudaOptions& options() const { return options_; }
  cudaStream_t stream() const { return nullptr; }
  int capability() const { return 80; }
  int multiprocessors() const { return 2; }
  int shared_bytes() const { return static_cast<int>(cuda_on_host::Multiprocessor::shared_bytes); }
  void* workspace() const { return workspace_.get(); }

  struct Fault {
    int set = 0;
    Index row = 0, column = 0, value = 0, bound = 0;
  };
  Fault* fault() { return &fault_; }

  void use() const {}
  void wait(const char*) {
    if (!fault_.set) return;
    const Fault found = fault_;
    fault_ = Fault{};
    throw std::invalid_argument("sort_by_expert: topk_idx[" + std::to_string(found.row) + ", " +
                                std::to_string(found.column) + "] (" + std::to_string(found.value) +
                                ") must be at least 0 and below the experts (" +
                                std::to_string(found.bound) + ")");
  }

  cuda_on_host::Multiprocessor& multiprocessor() { return multiprocessor_; }

 private:
  CudaOptions options_;
  Fault fault_;
  std::unique_ptr<std::byte[]> workspace_{new std::byte[workspace_bytes]};
  cuda_on_host::Multiprocessor multiprocessor_;
};

inline void* allocate(Cuda&, Index bytes) {
  const std::size_t size = (static_cast<std::size_t>(bytes > 0 ? bytes : 1) + 255) / 256 * 256;
  void* memory = std::aligned_alloc(256, size);
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0xFF, size);
  return memory;
}
inline void deallocate(Cuda&, void* memory, Index) noexcept { std::free(memory); }
inline void copy_to_backend(Cuda&, void* to, const void* from, Index bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}
inline void copy_to_host(Cuda& cuda, void* to, const void* from, Index bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  cuda.wait("copy_to_host");
}
inline void fill_zero(Cuda&, void* memory, Index bytes) {
  if (bytes > 0) std::memset(memory, 0, static_cast<std::size_t>(bytes));
}
inline void synchronize(Cuda& cuda) { cuda.wait("synchronize"); }

}  // namespace dsv3
