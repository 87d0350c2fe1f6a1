// Vectors of values and of codes in registers.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/backend/cuda/exact_arithmetic.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3::detail {

// Whether rows of T lie at multiples of `bytes` bytes, and so do pieces of that size within.
template <class T>
bool aligned_rows(const View<T, 2>& x, Index bytes) {
  const Index each = bytes / Index{sizeof(T)};
  return reinterpret_cast<std::uintptr_t>(x.data) % static_cast<std::uintptr_t>(bytes) == 0 &&
         x.strides[0] % each == 0 && x.extent(1) % each == 0;
}

// Two codes side by side in memory become floats.
template <class C>
__device__ __forceinline__ void decode_pair(std::uint32_t codes, float& low, float& high) {
#if __CUDA_ARCH__ >= 890
  std::uint32_t halves;
  if constexpr (std::is_same_v<C, e4m3>)
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<std::uint16_t>(codes)));
  else
    asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(static_cast<std::uint16_t>(codes)));
  asm("{.reg .b16 l, h;\n\t"
      "mov.b32 {l, h}, %2;\n\t"
      "cvt.f32.f16 %0, l;\n\t"
      "cvt.f32.f16 %1, h;}"
      : "=f"(low), "=f"(high)
      : "r"(halves));
#else
  low = C::format::decode(codes & 0xFFu);
  high = C::format::decode(codes >> 8 & 0xFFu);
#endif
}

// The larger of a magnitude and |x|, NaN above all: one operation. Its bits order as magnitudes do.
__device__ __forceinline__ float larger_magnitude(float most, float x) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(most), "f"(fabsf(x)));
  return larger;
}

// The codes of two values that are not NaN, as they lie in memory.
template <class C>
__device__ __forceinline__ std::uint32_t encode_pair(float low, float high) {
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

// Four codes, by CodeDivisors that need no division.
template <class C>
__device__ __forceinline__ std::uint32_t encode_four(const float* values, const float* high,
                                                     const float* low) {
  float q[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) q[i] = CodeDivisor::quotient(values[i], high[i], low[i]);
  return encode_pair<C>(q[0], q[1]) | encode_pair<C>(q[2], q[3]) << 16;
}

}  // namespace dsv3::detail
