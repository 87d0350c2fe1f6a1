// Cuda: one stream of one NVIDIA GPU, as tag and context of every primitive. For the host's
// compiler too.
#pragma once

#include <array>
#include <dsv3/backend/cuda/errors.hpp>
#include <dsv3/core/buffer.hpp>
#include <map>
#include <memory>

namespace dsv3 {

/// What a Cuda may use.
struct CudaOptions {
  int device = 0;
  /// Products by cuBLASLt where it has the types. Without it every product is our own kernel, whose
  /// bits do not depend on the other rows of the call.
  bool vendor_products = true;
  bool tf32 = false;   ///< float products in TF32: 10 bits of mantissa, several times as fast
  bool graphs = true;  ///< what is asked a third time, with the same sizes, is one launch
  bool hopper_kernels = true;  ///< wgmma and TMA on GPUs that have them; else the portable kernels
};

/// Whether this machine has a GPU that Cuda can use, or the sentence that says why not. Never
/// throws.
inline std::string cuda_unavailable(int device = 0) noexcept {
  try {
    int count = 0;  // stays as it is where there is no driver
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver) {
      int driver = 0, runtime = 0;
      if (cudaDriverGetVersion(&driver) == cudaSuccess &&
          cudaRuntimeGetVersion(&runtime) == cudaSuccess && driver > 0)
        return "Cuda: CUDA of the driver (" + std::to_string(driver) +
               ") must be at least the program's (" + std::to_string(runtime) +
               "): install a newer NVIDIA driver";
      return "Cuda: this machine has no NVIDIA driver";
    }
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
      return "Cuda: this machine has no NVIDIA GPU";
    if (error != cudaSuccess)
      return std::string("Cuda: cudaGetDeviceCount failed: ") + cudaGetErrorString(error);
    if (device < 0 || device >= count)
      return "Cuda: device (" + std::to_string(device) +
             ") must be at least 0 and below the GPUs (" + std::to_string(count) + ")";
    int major = 0, minor = 0;
    detail::check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                       "Cuda", "cudaDeviceGetAttribute");
    detail::check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                       "Cuda", "cudaDeviceGetAttribute");
    if (major < 8)
      return "Cuda: compute capability of the GPU (" + std::to_string(major) + "." +
             std::to_string(minor) + ") must be at least 8.0";
    return {};
  } catch (const std::exception& e) {
    return e.what();
  }
}

namespace detail {

// What was prepared for products by cuBLASLt, by their shapes and types.
struct VendorPlans {
  using Key = std::array<Index, 14>;
  std::map<Key, std::shared_ptr<void>> made;
};

// What was recorded, by the key of the work; the oldest goes when there are many.
class CudaGraphs {
 public:
  struct Entry {
    bool seen = false;
    cudaGraphExec_t graph = nullptr;
    std::uint64_t used = 0;
  };
  static constexpr std::size_t most = 64;

  CudaGraphs() = default;
  CudaGraphs(const CudaGraphs&) = delete;
  CudaGraphs& operator=(const CudaGraphs&) = delete;
  ~CudaGraphs() { clear(); }

  Entry& entry(const std::string& key) {
    const auto found = entries_.find(key);
    if (found == entries_.end() && entries_.size() == most) {
      auto oldest = entries_.begin();
      for (auto it = entries_.begin(); it != entries_.end(); ++it)
        if (it->second.used < oldest->second.used) oldest = it;
      destroy(oldest->second);
      entries_.erase(oldest);
    }
    Entry& entry = entries_[key];
    entry.used = ++clock_;
    return entry;
  }
  std::size_t recorded() const {
    std::size_t count = 0;
    for (const auto& [key, entry] : entries_) count += entry.graph != nullptr;
    return count;
  }
  void clear() noexcept {
    for (auto& [key, entry] : entries_) destroy(entry);
    entries_.clear();
  }

 private:
  static void destroy(Entry& entry) noexcept {
    if (entry.graph) cudaGraphExecDestroy(entry.graph);
    entry.graph = nullptr;
  }
  std::map<std::string, Entry> entries_;
  std::uint64_t clock_ = 0;
};

}  // namespace detail

/// Tag and context in one: the first argument of every primitive, passed by reference. Owns a
/// stream, cuBLASLt's handle and workspaces of fixed size; primitives put work on the stream,
/// allocate nothing and do not wait.
///
/// Deterministic: the same calls give the same bits. Those of our own kernels depend neither on the
/// other rows of a call; cuBLASLt chooses its algorithm by the whole shape.
///
/// One caller at a time; several objects live side by side.
///
/// Errors   std::runtime_error with a sentence where there is no driver, an old one, no GPU or one
///          below compute capability 8.0, and for every call or launch that fails.
class Cuda {
 public:
  /// Of cuBLASLt, and of our own kernels' partial results. Ours holds transposed copies of codes: a
  /// smaller one costs the products of large experts more launches, less full ones.
  static constexpr Index vendor_workspace_bytes = Index{32} << 20;
  static constexpr Index workspace_bytes = Index{128} << 20;

  explicit Cuda(const CudaOptions& options = {}) : options_(options) {
    if (const auto reason = cuda_unavailable(options.device); !reason.empty())
      throw std::runtime_error(reason);
    use();
    const auto attribute = [&](cudaDeviceAttr which) {
      int value = 0;
      detail::check_cuda(cudaDeviceGetAttribute(&value, which, options.device), "Cuda",
                         "cudaDeviceGetAttribute");
      return value;
    };
    capability_ = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                  attribute(cudaDevAttrComputeCapabilityMinor);
    multiprocessors_ = attribute(cudaDevAttrMultiProcessorCount);
    shared_bytes_ = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    detail::check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "Cuda",
                       "cudaStreamCreateWithFlags");
    try {
      cudaMemPool_t pool;
      detail::check_cuda(cudaDeviceGetDefaultMemPool(&pool, options.device), "Cuda",
                         "cudaDeviceGetDefaultMemPool");
      std::uint64_t keep = ~std::uint64_t{0};  // freed memory stays in the pool
      detail::check_cuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep),
                         "Cuda", "cudaMemPoolSetAttribute");
      detail::check_cuda(
          cudaMalloc(&vendor_workspace_, static_cast<std::size_t>(vendor_workspace_bytes)), "Cuda",
          "cudaMalloc");
      detail::check_cuda(cudaMalloc(&workspace_, static_cast<std::size_t>(workspace_bytes)), "Cuda",
                         "cudaMalloc");
      detail::check_cuda(
          cudaHostAlloc(reinterpret_cast<void**>(&fault_), sizeof(Fault), cudaHostAllocMapped),
          "Cuda", "cudaHostAlloc");
      *fault_ = Fault{};
      detail::check_cublas(cublasLtCreate(&lt_), "Cuda", "cublasLtCreate");
    } catch (...) {
      release();
      throw;
    }
  }
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;
  ~Cuda() { release(); }

  const CudaOptions& options() const { return options_; }
  cudaStream_t stream() const { return stream_; }
  int capability() const { return capability_; }  ///< 90: compute capability 9.0
  int multiprocessors() const { return multiprocessors_; }
  int shared_bytes() const { return shared_bytes_; }  ///< most that one block may have
  cublasLtHandle_t lt() const { return lt_; }
  void* vendor_workspace() const { return vendor_workspace_; }
  void* workspace() const { return workspace_; }

  /// What a kernel found wrong with values that only the device sees. In host memory that the
  /// device writes to; the next wait reports it.
  struct Fault {
    int set = 0;
    Index row = 0, column = 0, value = 0, bound = 0;
  };
  Fault* fault() const { return fault_; }

  /// Makes this the calling thread's device.
  void use() const { detail::check_cuda(cudaSetDevice(options_.device), "Cuda", "cudaSetDevice"); }

  /// Waits for the stream, and reports what its kernels found wrong.
  void wait(const char* caller) {
    detail::check_cuda(cudaStreamSynchronize(stream_), caller, "cudaStreamSynchronize");
    if (!fault_->set) return;
    const Fault found = *fault_;
    *fault_ = Fault{};
    throw std::invalid_argument("sort_by_expert: topk_idx[" + std::to_string(found.row) + ", " +
                                std::to_string(found.column) + "] (" + std::to_string(found.value) +
                                ") must be at least 0 and below the experts (" +
                                std::to_string(found.bound) + ")");
  }

  detail::VendorPlans& plans() { return plans_; }
  detail::CudaGraphs& graphs() { return graphs_; }

 private:
  void release() noexcept {
    if (stream_) cudaStreamSynchronize(stream_);
    graphs_.clear();
    plans_.made.clear();
    if (lt_) cublasLtDestroy(lt_);
    cudaFree(vendor_workspace_);
    cudaFree(workspace_);
    if (fault_) cudaFreeHost(fault_);
    if (stream_) cudaStreamDestroy(stream_);
  }

  CudaOptions options_;
  cudaStream_t stream_ = nullptr;
  int capability_ = 0, multiprocessors_ = 0, shared_bytes_ = 0;
  cublasLtHandle_t lt_ = nullptr;
  void *vendor_workspace_ = nullptr, *workspace_ = nullptr;
  Fault* fault_ = nullptr;
  detail::VendorPlans plans_;
  detail::CudaGraphs graphs_;
};

/// Primitive. Memory of the device, aligned to 256 bytes, not initialised, from the stream's pool.
/// Errors   OutOfDeviceMemory, which is a std::bad_alloc.
inline void* allocate(Cuda& cuda, Index bytes) {
  void* memory = nullptr;
  const cudaError_t error =
      cudaMallocAsync(&memory, static_cast<std::size_t>(bytes > 0 ? bytes : 1), cuda.stream());
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // the error would come back from the next launch
    std::size_t free = 0, all = 0;
    cudaMemGetInfo(&free, &all);
    throw OutOfDeviceMemory(bytes, free, all);
  }
  detail::check_cuda(error, "Cuda::allocate", "cudaMallocAsync", std::to_string(bytes) + " bytes");
  return memory;
}

/// Primitive. Returns what allocate gave, when the stream is done with it. Recorded work may have
/// used it, so nothing stays recorded.
inline void deallocate(Cuda& cuda, void* memory, Index /*bytes*/) noexcept {
  if (cuda.graphs().recorded() > 0) cudaStreamSynchronize(cuda.stream());
  cuda.graphs().clear();
  cudaFreeAsync(memory, cuda.stream());
}

/// Primitive. Copies host memory into the device's; `from` may change when the call has returned.
inline void copy_to_backend(Cuda& cuda, void* to, const void* from, Index bytes) {
  if (bytes <= 0) return;
  detail::check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes),
                                     cudaMemcpyHostToDevice, cuda.stream()),
                     "copy_to_backend", "cudaMemcpyAsync", std::to_string(bytes) + " bytes");
}

/// Primitive. Copies the device's memory to the host, and waits for it.
inline void copy_to_host(Cuda& cuda, void* to, const void* from, Index bytes) {
  if (bytes > 0)
    detail::check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes),
                                       cudaMemcpyDeviceToHost, cuda.stream()),
                       "copy_to_host", "cudaMemcpyAsync", std::to_string(bytes) + " bytes");
  cuda.wait("copy_to_host");
}

/// Primitive. Sets bytes of the device's memory to zero.
inline void fill_zero(Cuda& cuda, void* memory, Index bytes) {
  if (bytes > 0)
    detail::check_cuda(cudaMemsetAsync(memory, 0, static_cast<std::size_t>(bytes), cuda.stream()),
                       "fill_zero", "cudaMemsetAsync", std::to_string(bytes) + " bytes");
}

/// Primitive. Returns when everything that was asked of the device is done.
inline void synchronize(Cuda& cuda) { cuda.wait("synchronize"); }

}  // namespace dsv3
