// Hopper's asynchronous copies: barriers in shared memory, copies of tiles by TMA. Only in code for
// sm_90a. Addresses are of the shared window.
#pragma once

#include <cuda.h>

#include <dsv3/backend/cuda/context.hpp>

namespace dsv3::detail {

__device__ inline void barrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes the barriers known to the copy engine, before a barrier of the threads.
__device__ inline void barriers_are_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One arrival, and so many bytes that copies will bring in this phase.
__device__ inline void arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ inline void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ inline bool phase_is_over(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t over;
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
      "selp.u32 %0, 1, 0, over;\n"
      "}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over != 0;
}

// Waits until the phase of this parity is over. In the bounded form, of tests, a wait of 2^32
// clocks notes who waits in `fault` and ends the kernel with an error: a wrong barrier must not
// hang a GPU.
template <bool bounded>
__device__ inline void wait_for_phase(std::uint32_t barrier, std::uint32_t parity, int who,
                                      int where, Cuda::Fault* fault) {
  if constexpr (bounded) {
    const long long start = clock64();
    while (!phase_is_over(barrier, parity)) {
      if (clock64() - start < (1ll << 32)) continue;
      fault->row = blockIdx.x;
      fault->column = who;
      fault->value = where;
      fault->bound = parity;
      fault->set = 1;
      __threadfence_system();
      __trap();
    }
  } else {
    while (!phase_is_over(barrier, parity)) {
    }
  }
}

// A box of a tensor of two or three dimensions into shared memory; `barrier` counts its bytes.
__device__ inline void copy_box(std::uint32_t to, const CUtensorMap& map, std::uint32_t barrier,
                                int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}
__device__ inline void copy_box(std::uint32_t to, const CUtensorMap& map, std::uint32_t barrier,
                                int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// A box from shared memory into a tensor; what lies beyond the tensor is not written. Returns when
// the box is in the tensor.
__device__ inline void store_box(const CUtensorMap& map, int x, int y, int z, std::uint32_t from) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];\n"
      "cp.async.bulk.commit_group;\n"
      "cp.async.bulk.wait_group 0;" ::"l"(&map),
      "r"(x), "r"(y), "r"(z), "r"(from)
      : "memory");
}
__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// What this thread wrote to shared memory is seen by wgmma and TMA after the next synchronisation.
__device__ inline void publish_to_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Registers of a thread, for all threads of a group of four warps.
template <int count>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

// A place in a ring of `stages`, and the parity of the phase that it is in there.
template <int stages>
struct RingPlace {
  int stage = 0;
  std::uint32_t parity = 0;

  __device__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace dsv3::detail
