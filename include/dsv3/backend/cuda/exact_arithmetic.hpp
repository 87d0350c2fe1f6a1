// Divisions and sigmoids of the fused kernels: the bits of core/'s, by fewer operations. For the
// host's compiler too.
#pragma once

#include <cstdint>
#include <dsv3/core/quantized.hpp>
#include <dsv3/core/scalar.hpp>

namespace dsv3::detail {

// 1 / b by a correction of what a GPU estimates, without the branch of a division: one of the two
// floats beside it for numbers of ordinary size; rounded to nearest for b in [1, 2] or NaN.
DSV3_HD inline float reciprocal(float b) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(b));
  return __fmaf_rn(y, __fmaf_rn(-b, y, 1.0f), y);
#else
  return 1.0f / b;
#endif
}

// rule.scale<C>(amax), by two operations instead of a division where amax is of ordinary size. C's
// largest value is 7 * 2^k, so that no quotient is closer than 1/14 ulp to the middle of two
// floats.
template <class C>
DSV3_HD float scale_of(const ScaleRule& rule, float amax) {
  constexpr double exact = 1.0 / C::max;
  constexpr auto high = static_cast<float>(exact);
  constexpr auto low = static_cast<float>(exact - static_cast<double>(high));
  static_assert(C::max == 448 || C::max == 57344);
  const float least = static_cast<float>(rule.amax_min), bounded = amax < least ? least : amax;
  if (rule.power_of_two || !(bounded >= 0x1p-60f && bounded <= 0x1p120f))
    return rule.template scale<C>(amax);
  return __builtin_fmaf(bounded, high, bounded * low);
}

// What one division leaves for encoding many values by the same scale: 1 / scale as two floats, of
// which the second is not negative.
struct CodeDivisor {
  float scale, high, low;  // high 0: divide

  DSV3_HD explicit CodeDivisor(float s) : CodeDivisor(s, reciprocal(s)) {}
  // y: one of the two floats beside 1 / s.
  DSV3_HD CodeDivisor(float s, float y) : scale(s), high(0), low(0) {
    if (divides(s)) return;
    high = y;
    float rest = __builtin_fmaf(-s, high, 1.0f);  // exact
    if (rest < 0) {
      high = __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, high) - 1);
      rest = __builtin_fmaf(-s, high, 1.0f);
    }
    low = rest * high;
  }

  // A value that has the code of value / scale, where |value| is at most the scale times C::max or
  // a few ulp more. high is less than 2^-23 of itself below 1 / scale, low as much off in relation
  // to what is missing, and the product with low rounded: before the sum rounds, it is less than
  // 2^-45 of itself, or 8 * 2^-24 ulp, off. It is the quotient as division rounds it, unless the
  // exact one lies so close to the middle of two floats. A code depends on which of the two only
  // where one of them is a tie of the format. With significands as integers V and S of 24 bits and
  // M of 5, the middle beside a tie is (2^20 M +- 1) / 2^24, and V / S differs from it by D / (2 S)
  // ulp,
  //
  //     D = 2^24 V - S (2^20 M +- 1) = -+ S (mod 2^20)
  //
  // which is a multiple of 2^20 where S is, and not 0 then, and else above 64 by divides(). Both
  // terms have the sign of the value, so that a zero keeps it.
  DSV3_HD static float quotient(float value, float high, float low) {
    return __builtin_fmaf(value, high, value * low);
  }
  DSV3_HD float quotient(float value) const { return quotient(value, high, low); }

 private:
  // Scales that need a division: too close to a number of 4 bits; or of extreme size, so that a
  // term could underflow where a code depends on it; NaN and infinity.
  DSV3_HD static bool divides(float s) {
    const std::uint32_t near = __builtin_bit_cast(std::uint32_t, s) & 0xFFFFFu;
    return (near != 0 && (near <= 64 || near >= 0xFFFC0u)) || !(s >= 0x1p-80f && s <= 0x1p80f);
  }
};

// exp(x) for -87 <= x <= 0 with the bits of exp_float<true>: without bounds, and the power of two
// is added to the exponent, since no result is subnormal.
DSV3_HD inline float exp_above_minus_87(float x) {
  constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23
  const float shifted = __builtin_fmaf(x, 1.44269504088896341f, to_integer);
  const float n = shifted - to_integer;
  constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860682030941723e-6f;
  const float r_high = __builtin_fmaf(n, -ln2_high, x);
  const float r = __builtin_fmaf(n, -ln2_low, r_high);
  float p = 1.9841269841e-4f;
  p = __builtin_fmaf(p, r, 1.3888888889e-3f);
  p = __builtin_fmaf(p, r, 8.3333333333e-3f);
  p = __builtin_fmaf(p, r, 4.1666666667e-2f);
  p = __builtin_fmaf(p, r, 1.6666666667e-1f);
  p = __builtin_fmaf(p, r, 0.5f);
  const float r_low = __builtin_fmaf(n, -ln2_low, r_high - r), sum = 1.0f + r;
  p = sum + ((r - (sum - 1.0f)) + __builtin_fmaf(p * r, r, r_low));
  return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, p) +
                                       (__builtin_bit_cast(std::uint32_t, shifted) << 23));
}

// sigmoid(x) for |x| <= 87 with the bits of core/math.hpp. One correction by the exact remainder
// makes e / (1 + e) of the product: of all floats e that come, which is a matter of trying them.
DSV3_HD inline float sigmoid_within_87(float x) {
  const float e = exp_above_minus_87(-__builtin_fabsf(x));
  const float sum = 1.0f + e, large = reciprocal(sum), product = e * large;
  const float quotient = __builtin_fmaf(__builtin_fmaf(-sum, product, e), large, product);
  const float small = __builtin_fmaf(-e, quotient, e);
  return x < 0.0f ? small : large;
}

}  // namespace dsv3::detail
