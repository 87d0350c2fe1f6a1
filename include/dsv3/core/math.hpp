// Elementary functions for kernels: branch-free in float and always inlined, so that loops over
// them vectorise without -ffast-math and every backend gets the same bits; std in double.
#pragma once

#include <cmath>
#include <dsv3/core/view.hpp>

namespace dsv3 {

// a * b + c with one rounding where the target has the instruction, else with two. Kernels write it
// instead of a * b + c, so that the compiler's freedom to contract changes no bit.
#if defined(__FMA__) || defined(__CUDA_ARCH__) || defined(__ARM_FEATURE_FMA)
DSV3_HD inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DSV3_HD inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
DSV3_HD constexpr float fma(float a, float b, float c) { return a * b + c; }
DSV3_HD constexpr double fma(double a, double b, double c) { return a * b + c; }
#endif

namespace detail {

// exp(x) = 2^n exp(r) with x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by a polynomial of degree 7 (the
// Taylor coefficients suffice: the first one left out is below 2^-28); times 2^n in two steps, so
// that subnormal results are rounded once. `exact_sum` keeps what r and the last addition round
// off: five more operations, and half the error.
template <bool exact_sum>
[[gnu::always_inline]] DSV3_HD inline float exp_float(float x) {
  const float below = x < 128.0f ? x : 128.0f;  // NaN too, which has no integer
  const float bounded = below > -120.0f ? below : -120.0f;
  constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = fma(bounded, 1.44269504088896341f, to_integer) - to_integer;
  constexpr float ln2_high = 0.693145751953125f;  // exact times n
  constexpr float ln2_low = 1.42860682030941723e-6f;
  const float r_high = fma(n, -ln2_high, bounded);
  const float r = fma(n, -ln2_low, r_high);
  float p = 1.9841269841e-4f;
  p = fma(p, r, 1.3888888889e-3f);
  p = fma(p, r, 8.3333333333e-3f);
  p = fma(p, r, 4.1666666667e-2f);
  p = fma(p, r, 1.6666666667e-1f);
  p = fma(p, r, 0.5f);
  if constexpr (exact_sum) {
    const float r_low = fma(n, -ln2_low, r_high - r), sum = 1.0f + r;
    p = sum + ((r - (sum - 1.0f)) + fma(p * r, r, r_low));
  } else {
    p = fma(p * r, r, r) + 1.0f;
  }
  const auto k = static_cast<std::int32_t>(n);
  const std::int32_t half = k >> 1;
  const float first = __builtin_bit_cast(float, (half + 127) << 23);
  const float second = __builtin_bit_cast(float, (k - half + 127) << 23);
  const float result = p * first * second;
  return x != x ? x : result;
}

}  // namespace detail

/// exp(x), at most 2 ulp from the exact value; 0 below -104, infinity above 88.73, NaN for NaN.
[[gnu::always_inline]] DSV3_HD inline float exp(float x) { return detail::exp_float<false>(x); }
DSV3_HD inline double exp(double x) { return std::exp(x); }

/// Natural logarithm, at most 2 ulp; -infinity for 0, NaN below 0, infinity for infinity.
///
/// x = 2^e m with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh(s), s = (m - 1) / (m + 1), whose odd
/// series in s (|s| < 0.1716) needs the terms up to s^9.
[[gnu::always_inline]] DSV3_HD inline float log(float x) {
  const bool tiny = x < 1.17549435e-38f;  // subnormal: scale by 2^23 first
  const float scaled = tiny ? x * 8388608.0f : x;
  const auto u = __builtin_bit_cast(std::uint32_t, scaled);
  const auto shifted = static_cast<std::int32_t>(u - 0x3F3504F3u);  // bits of sqrt(1/2)
  const std::int32_t e = shifted >> 23;
  const float m = __builtin_bit_cast(float, u - (static_cast<std::uint32_t>(e) << 23));
  const float exponent = static_cast<float>(e) - (tiny ? 23.0f : 0.0f);
  const float f = m - 1.0f;
  const float s = f / (2.0f + f);
  const float z = s * s;
  float p = 0.2222222222f;
  p = fma(p, z, 0.2857142857f);
  p = fma(p, z, 0.4f);
  p = fma(p, z, 0.6666666667f);
  // ln(1 + f) = f - f^2/2 + s (f^2/2 + R), R = z p: the leading terms are nearly exact.
  const float half_f = 0.5f * f;
  const float tail = fma(s, fma(half_f, f, z * p), exponent * 1.42860682030941723e-6f);
  const float result = fma(exponent, 0.693145751953125f, f - fma(half_f, f, -tail));
  const float infinity = __builtin_bit_cast(float, 0x7F800000);
  const float nan = __builtin_bit_cast(float, 0x7FC00000);
  const float at_zero = x == 0.0f ? -infinity : result;
  const float finite = x < 0.0f || x != x ? nan : at_zero;
  return x == infinity ? infinity : finite;
}
DSV3_HD inline double log(double x) { return std::log(x); }

/// 1 / (1 + exp(-x)), at most 2 ulp. The exponential sees only -|x|, so nothing overflows.
template <class A>
[[gnu::always_inline]] DSV3_HD inline A sigmoid(A x) {
  const A minus = x < A(0) ? x : -x;
  A e;
  if constexpr (std::is_same_v<A, float>)
    e = detail::exp_float<true>(minus);
  else
    e = exp(minus);
  const A large = A(1) / (A(1) + e);
  // e / (1 + e) as e - e^2 / (1 + e): where e is small, what 1 + e rounds off does not matter.
  const A small = fma(-e, e / (A(1) + e), e);
  return x < A(0) ? small : large;
}

DSV3_HD inline float sqrt(float x) { return std::sqrt(x); }
DSV3_HD inline double sqrt(double x) { return std::sqrt(x); }

}  // namespace dsv3
