// What C++ has no words for, of every GPU from compute capability 8.0 on: loads from shared memory,
// asynchronous copies, products of 16 x 8 x 16, conversions. Addresses of shared memory have 32
// bits: a kernel that fills the registers has none to spare for pointers.
#pragma once

#include <dsv3/core/scalar.hpp>

namespace dsv3::detail {

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// The dynamic shared memory of a block.
__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char dynamic_memory[];
  return dynamic_memory;
}

// Four 8 x 8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8 and
// receives of each matrix the elements (l / 4, 2 (l % 4)) and the next one.
__device__ inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}
// The same, each matrix transposed.
__device__ inline void load_transposed(std::uint32_t (&r)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}
__device__ inline void load_matrices(std::uint32_t (&r)[4], const void* row) {
  load_matrices(r, shared_address(row));
}
__device__ inline void load_transposed(std::uint32_t (&r)[4], const void* row) {
  load_transposed(r, shared_address(row));
}

// c += a b of bf16: a [16, 16], b [16, 8], c [16, 8]. With g = lane / 4 and i = 2 (lane % 4), in
// pairs of neighbours: a (g, i), (g + 8, i), (g, i + 8), (g + 8, i + 8); b of columns g: (i, g),
// (i + 8, g); c (g, i), (g, i + 1), (g + 8, i), (g + 8, i + 1).
__device__ inline void multiply_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                     std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same of fp16.
__device__ inline void multiply_fp16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                     std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 or 4 bytes from device memory to shared memory; zeros where `inside` is false, when nothing is
// read. Both addresses are multiples of as many bytes.
__device__ inline void copy_async(std::uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(inside ? 16 : 0));
}
__device__ inline void copy_word_async(std::uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
               "r"(inside ? 4 : 0));
}
__device__ inline void copy_async(void* to, const void* from, bool inside) {
  copy_async(shared_address(to), from, inside);
}
// The first `bytes` of 16 bytes; the others become zeros and are not read.
__device__ inline void copy_bytes_async(std::uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(bytes)
               : "memory");
}
__device__ inline void copies_end_group() { asm volatile("cp.async.commit_group;"); }
// Waits until at most `pending` groups of this thread's copies are on their way.
template <int pending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending));
}

__device__ inline void load_16_bytes(std::uint32_t (&r)[4], std::uint32_t from) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
__device__ inline void store_16_bytes(std::uint32_t to, std::uint32_t x, std::uint32_t y,
                                      std::uint32_t z, std::uint32_t w) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}
__device__ inline void store_16_bytes(std::uint32_t to, const std::uint32_t (&words)[4]) {
  store_16_bytes(to, words[0], words[1], words[2], words[3]);
}
__device__ inline void load_two_floats(float& first, float& second, std::uint32_t from) {
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

// Two floats as neighbours of bf16, `low` at the lower address.
__device__ inline std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// Two products of fp16.
__device__ inline std::uint32_t multiply_halves(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// The larger of a magnitude and |x|, NaN above all: one operation. Its bits order as magnitudes do.
__device__ inline float larger_magnitude(float most, float x) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(most), "f"(fabsf(x)));
  return larger;
}

// 2^x, to 2 ulp; 1 for 0, 0 for minus infinity.
__device__ inline float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

#if __CUDA_ARCH__ >= 890
// Two codes side by side in memory as neighbours of fp16, which has all their values.
template <class C>
__device__ inline std::uint32_t halves_of(std::uint32_t codes) {
  std::uint32_t halves;
  if constexpr (std::is_same_v<C, e4m3>)
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<std::uint16_t>(codes)));
  else
    asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(static_cast<std::uint16_t>(codes)));
  return halves;
}
#endif

// Two codes side by side in memory become floats.
template <class C>
__device__ inline void decode_pair(std::uint32_t codes, float& low, float& high) {
#if __CUDA_ARCH__ >= 890
  asm("{.reg .b16 l, h;\n\t"
      "mov.b32 {l, h}, %2;\n\t"
      "cvt.f32.f16 %0, l;\n\t"
      "cvt.f32.f16 %1, h;}"
      : "=f"(low), "=f"(high)
      : "r"(halves_of<C>(codes)));
#else
  low = C::format::decode(codes & 0xFFu);
  high = C::format::decode(codes >> 8 & 0xFFu);
#endif
}

// The codes of two values that are not NaN, as they lie in memory.
template <class C>
__device__ inline std::uint32_t encode_pair(float low, float high) {
#if __CUDA_ARCH__ >= 890
  std::uint16_t codes;
  if constexpr (std::is_same_v<C, e4m3>)
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  else
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
#else
  return C(low).code | static_cast<std::uint32_t>(C(high).code) << 8;
#endif
}

}  // namespace dsv3::detail
