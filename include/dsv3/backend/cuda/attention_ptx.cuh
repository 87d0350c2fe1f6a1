// Instructions of attention's kernels on shared memory, by its 32-bit addresses: a kernel that
// fills the registers has none to spare for pointers.
#pragma once

#include <dsv3/backend/cuda/mma.cuh>

namespace dsv3::detail {

// load_matrices and load_transposed of mma.cuh.
__device__ inline void load_matrices_at(std::uint32_t (&r)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}
__device__ inline void load_transposed_at(std::uint32_t (&r)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}

// 16 or 4 bytes from device memory; zeros where `inside` is false, when nothing is read.
__device__ inline void copy_async_at(std::uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(inside ? 16 : 0));
}
__device__ inline void copy_word_async_at(std::uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
               "r"(inside ? 4 : 0));
}

__device__ inline void store_shared_at(std::uint32_t to, const std::uint32_t (&words)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}
__device__ inline void load_pair_at(float& first, float& second, std::uint32_t from) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(first), "=f"(second) : "r"(from));
}

// The same value, of which the compiler knows nothing: what follows from it is computed anew at
// each use, instead of waiting in registers.
__device__ inline Index reread(Index x) {
  asm volatile("" : "+l"(x));
  return x;
}
__device__ inline int reread_thread() {
  int thread = static_cast<int>(threadIdx.x);
  asm volatile("" : "+r"(thread));
  return thread;
}

// 2^x, to 2 ulp; 1 for 0, 0 for minus infinity.
__device__ inline float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace dsv3::detail
