// CUDA's words for the host's compiler. A block of threads runs as fibers that change places at
// barriers and wherever a warp exchanges values, in shuffled order; blocks run one after the other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "gpu/emulated_block.hpp"

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static  // one block at a time
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace cuda_on_host {

/// A multiprocessor that runs one block at a time. Dynamic shared memory is poisoned when a block
/// starts; static shared memory keeps what the block before left.
class Multiprocessor {
 public:
  static constexpr std::size_t shared_bytes = 227 << 10;

  /// kernel() by every thread of every block of the grid.
  void run(dim3 grid, unsigned threads, std::size_t dynamic_bytes, auto&& kernel) {
    if (dynamic_bytes > shared_bytes || threads > emulated::Machine::most_threads || threads == 0 ||
        threads % 32 != 0 || grid.x == 0 || grid.y == 0 || grid.y > 65535 || grid.z != 1)
      throw std::logic_error("launch of " + std::to_string(grid.x) + " x " +
                             std::to_string(grid.y) + " blocks of " + std::to_string(threads) +
                             " threads with " + std::to_string(dynamic_bytes) +
                             " bytes of shared memory");
    Multiprocessor* const before = current_;
    current_ = this;
    grid_ = grid;
    threads_ = threads;
    dynamic_bytes_ = dynamic_bytes;
    for (block_.y = 0; block_.y < grid.y; ++block_.y)
      for (block_.x = 0; block_.x < grid.x; ++block_.x) {
        std::memset(dynamic(), 0xFF, dynamic_bytes);
        for (auto& copies : copies_) copies = {};
        machine_.block(static_cast<int>(threads), [&](int) { kernel(); });
      }
    current_ = before;
  }

  static Multiprocessor& current() { return *current_; }
  emulated::Machine& machine() { return machine_; }
  dim3 grid() const { return grid_; }
  uint3 block() const { return block_; }
  unsigned threads() const { return threads_; }
  int thread() { return machine_.fibers().running(); }
  int lane() { return thread() % 32; }

  /// The dynamic shared memory, whose address is 0 among those of 32 bits.
  static unsigned char* dynamic() {
    alignas(1024) static unsigned char memory[shared_bytes];
    return memory;
  }

  /// Of the block that runs.
  std::size_t dynamic_bytes() const { return dynamic_bytes_; }

  /// Of a thread: a value of its own to all of the block, and theirs.
  std::vector<int>& votes() { return votes_; }

  /// Asynchronous copies of the running thread: each arrives at once, or not before it waits.
  struct Copy {
    void* to;
    const void* from;
    int bytes, zeros;
  };
  void copy(const Copy& copy) {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    if (random_ >> 63)
      arrive(copy);
    else
      copies_of_thread().open.push_back(copy);
  }
  void end_group() {
    auto& copies = copies_of_thread();
    copies.groups.push_back(std::move(copies.open));
    copies.open.clear();
  }
  void wait_for_copies(std::size_t pending) {
    auto& groups = copies_of_thread().groups;
    while (groups.size() > pending) {
      for (const Copy& c : groups.front()) arrive(c);
      groups.erase(groups.begin());
    }
  }

 private:
  struct Copies {
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
  };
  static void arrive(const Copy& c) {
    if (c.bytes) std::memcpy(c.to, c.from, static_cast<std::size_t>(c.bytes));
    if (c.zeros)
      std::memset(static_cast<std::byte*>(c.to) + c.bytes, 0, static_cast<std::size_t>(c.zeros));
  }
  Copies& copies_of_thread() { return copies_[static_cast<std::size_t>(thread())]; }

  inline static Multiprocessor* current_ = nullptr;
  emulated::Machine machine_{1};
  dim3 grid_;
  uint3 block_{};
  unsigned threads_ = 0;
  std::size_t dynamic_bytes_ = 0;
  std::uint64_t random_ = 1;
  std::vector<int> votes_ = std::vector<int>(emulated::Machine::most_threads);
  std::vector<Copies> copies_ = std::vector<Copies>(emulated::Machine::most_threads);
};

inline Multiprocessor& here() { return Multiprocessor::current(); }

/// The value that lane `from` of the running thread's warp brings to the same call.
template <class T>
T of_lane(T value, int from) {
  const int thread = here().thread();
  return here().machine().take(thread, thread / 32 * 32 + from, value);
}

/// f(lane): what that lane of the running thread's warp brings to the same call.
template <class T>
auto of_warp(const T& value) {
  return here().machine().of_warp(here().thread(), value);
}

}  // namespace cuda_on_host

#define threadIdx (uint3{static_cast<unsigned>(::cuda_on_host::here().thread()), 0, 0})
#define blockIdx (::cuda_on_host::here().block())
#define gridDim (::cuda_on_host::here().grid())
#define blockDim (dim3{::cuda_on_host::here().threads()})

inline void __syncthreads() {
  cuda_on_host::here().machine().fibers().barrier(cuda_on_host::here().thread());
}
inline void __syncwarp(unsigned = ~0u) {
  cuda_on_host::here().machine().fibers().warp_barrier(cuda_on_host::here().thread());
}
inline int __syncthreads_count(bool vote) {
  auto& votes = cuda_on_host::here().votes();
  votes[static_cast<std::size_t>(cuda_on_host::here().thread())] = vote;
  __syncthreads();
  int count = 0;
  for (unsigned i = 0; i < cuda_on_host::here().threads(); ++i) count += votes[i];
  __syncthreads();
  return count;
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return cuda_on_host::of_lane(value, lane & 31);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int by) {
  return cuda_on_host::of_lane(value, cuda_on_host::here().lane() ^ by);
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned by) {
  const int lane = cuda_on_host::here().lane(), from = lane + static_cast<int>(by);
  return cuda_on_host::of_lane(value, from < 32 ? from : lane);
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const auto brought = cuda_on_host::of_warp(value);
  for (int lane = 0; lane < 32; ++lane) value = std::max(value, brought(lane));
  return value;
}
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  const auto brought = cuda_on_host::of_warp(value);
  for (int lane = 0; lane < 32; ++lane) value = std::min(value, brought(lane));
  return value;
}
inline unsigned __match_any_sync(unsigned, int value) {
  return cuda_on_host::here().machine().match(cuda_on_host::here().thread(), value);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  const unsigned same = __match_any_sync(~0u, vote);
  return vote ? same : ~same;
}
inline int atomicAdd(int* to, int value) { return (*to += value) - value; }
inline int atomicMin(int* to, int value) {
  const int before = *to;
  *to = std::min(before, value);
  return before;
}
inline void __threadfence_system() {}

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return result;
}
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}

// Of the runtime: what launches ask. Nothing fails here but by an exception.
enum cudaError_t { cudaSuccess };
using cudaStream_t = void*;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 0;
inline std::map<const void*, int>& dynamic_bytes_allowed() {
  static std::map<const void*, int> allowed;
  return allowed;
}
inline cudaError_t cudaFuncSetAttribute(auto kernel, int, int bytes) {
  dynamic_bytes_allowed()[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaMalloc(auto** memory, std::size_t bytes) {
  *reinterpret_cast<void**>(memory) = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*memory) throw std::bad_alloc();
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
