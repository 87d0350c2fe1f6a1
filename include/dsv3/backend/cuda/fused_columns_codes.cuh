// Vectors of values and of codes in registers.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/backend/cuda/exact_arithmetic.hpp>
#include <dsv3/backend/cuda/ptx.cuh>
#include <dsv3/core/quantized.hpp>

namespace dsv3::detail {

// Whether rows of T lie at multiples of `bytes` bytes, and so do pieces of that size within.
template <class T>
bool aligned_rows(const View<T, 2>& x, Index bytes) {
  const Index each = bytes / Index{sizeof(T)};
  return reinterpret_cast<std::uintptr_t>(x.data) % static_cast<std::uintptr_t>(bytes) == 0 &&
         x.strides[0] % each == 0 && x.extent(1) % each == 0;
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
