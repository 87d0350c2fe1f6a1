// Vectors of values and of codes in registers.
#pragma once

#include <dsv3/backend/cuda/fused_columns.hpp>

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

// Four codes, by scales that all have inverses.
template <class C>
__device__ __forceinline__ std::uint32_t encode_four(const float* values, const float* scales,
                                                     const float* inverses, bool power_of_two) {
  float q[4];
  if (power_of_two) {  // then the product is the quotient
#pragma unroll
    for (int i = 0; i < 4; ++i) q[i] = values[i] * inverses[i];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) q[i] = CodeDivisor(scales[i], inverses[i]).quotient(values[i]);
  }
  return encode_pair<C>(q[0], q[1]) | encode_pair<C>(q[2], q[3]) << 16;
}

}  // namespace dsv3::detail
