// Scalars narrower than float: bf16, and the storage types e4m3, e5m2, e5m6 and ue8m0.
#pragma once

#include <dsv3/core/view.hpp>

namespace dsv3 {

/// bfloat16: the upper half of a float. Rounds to nearest, ties to even; NaN stays NaN.
struct bf16 {
  std::uint16_t bits;

  bf16() = default;
  DSV3_HD constexpr explicit bf16(float value) : bits(round(value)) {}
  DSV3_HD constexpr explicit bf16(double value) : bf16(static_cast<float>(value)) {}
  DSV3_HD constexpr explicit operator float() const {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
  }
  DSV3_HD constexpr explicit operator double() const { return static_cast<float>(*this); }

 private:
  DSV3_HD static constexpr std::uint16_t round(float value) {
    const auto u = __builtin_bit_cast(std::uint32_t, value);
    const std::uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    const std::uint32_t quiet = (u >> 16) | 0x40u;  // keeps the sign and the upper payload
    return static_cast<std::uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
  }
};

/// What happens to a value beyond the largest finite code of a narrow format.
enum class Overflow {
  saturate,  ///< becomes the largest finite value; NaN stays NaN. What every FP8 recipe uses
  propagate  ///< becomes NaN (e4m3) or infinity (the others), as plain IEEE rounding would have it
};

namespace detail {

// One narrow format: bits of exponent and mantissa, the largest finite code, and the code that
// stands for an overflow in Overflow::propagate, which is the next. Spec 7.1.
//
// Loops over encode and decode vectorise, and every instruction set gives the same codes, because
// there is one path: a compiler makes a branch of a choice between two values, and may not
// vectorise floating-point arithmetic on either side of it. So bounds are minima, and what must not
// count is made zero.
template <int exponent_bits, int mantissa, std::uint32_t max_code, std::uint32_t overflow_code>
struct NarrowFloat {
  static_assert(overflow_code == max_code + 1);
  static constexpr int bias = (1 << (exponent_bits - 1)) - 1;
  static constexpr int width = exponent_bits + mantissa;  // without the sign
  static constexpr std::uint32_t first_normal = 1u << mantissa;
  static constexpr std::uint32_t sign_bit = 1u << width;
  static constexpr std::uint32_t nan_code = sign_bit - 1;
  static constexpr std::uint32_t largest = max_code;
  static constexpr int shift = 23 - mantissa;
  static constexpr std::uint32_t half = 1u << (shift - 1);
  static constexpr std::uint32_t offset = static_cast<std::uint32_t>(127 - bias) << mantissa;
  static constexpr std::uint32_t least_normal = static_cast<std::uint32_t>(128 - bias) << 23;
  static constexpr float least_subnormal =
      __builtin_bit_cast(float, static_cast<std::uint32_t>(128 - bias - mantissa) << 23);
  static constexpr float at_subnormals = least_subnormal * 8388608.0f;

  /// To nearest, ties to even.
  DSV3_HD static constexpr std::uint32_t encode(float value, Overflow overflow) {
    const auto u = __builtin_bit_cast(std::uint32_t, value);
    const std::uint32_t magnitude = u & 0x7FFFFFFFu;
    const std::uint32_t below = magnitude < least_normal ? magnitude : least_normal;
    const std::uint32_t above = magnitude - below + least_normal;
    const std::uint32_t odd = (above >> shift) & 1u;
    const std::uint32_t upper = ((above + (half - 1) + odd) >> shift) - offset;
    // Beside 2^23 times the smallest subnormal, an addition rounds to a multiple of the latter.
    const float sum = __builtin_bit_cast(float, below) + at_subnormals;
    const std::uint32_t lower =
        __builtin_bit_cast(std::uint32_t, sum) - __builtin_bit_cast(std::uint32_t, at_subnormals);
    return finish(u, lower + upper - first_normal, overflow);  // one of the two is first_normal
  }

  /// Up or down with the probability that makes the expected value exact, by 32 uniform bits.
  DSV3_HD static constexpr std::uint32_t encode_stochastic(float value, std::uint32_t random) {
    const auto u = __builtin_bit_cast(std::uint32_t, value);
    const std::uint32_t magnitude = u & 0x7FFFFFFFu;
    const bool subnormal = magnitude < least_normal;
    const std::uint32_t upper = ((magnitude + (random >> (32 - shift))) >> shift) - offset;
    const float steps =
        __builtin_bit_cast(float, subnormal ? magnitude : 0u) * (1.0f / least_subnormal);
    const auto whole = static_cast<std::uint32_t>(steps);
    const float fraction = steps - static_cast<float>(whole);
    // In 24 bits, cut off: what is below 2^-24 of a step stays zero, as groups without scale need.
    const auto chance = static_cast<std::int32_t>(fraction * 16777216.0f);
    const std::uint32_t lower = whole + (chance > static_cast<std::int32_t>(random >> 8) ? 1u : 0u);
    return finish(u, subnormal ? lower : upper, Overflow::saturate);
  }

  DSV3_HD static constexpr float decode(std::uint32_t code) {
    const std::uint32_t sign = (code & sign_bit) << (31 - width);
    const std::uint32_t magnitude = code & nan_code;
    // A subnormal code is the first normal one with its mantissa, less the smallest normal value.
    const std::uint32_t subnormal = 1u - ((magnitude + (sign_bit - first_normal)) >> width);
    const std::uint32_t upper = (magnitude + offset + (subnormal << mantissa)) << shift;
    const std::uint32_t excess = (0u - subnormal) & least_normal;
    const float finite = __builtin_bit_cast(float, upper) - __builtin_bit_cast(float, excess);
    // Beyond the largest code the exponent is that of infinity.
    const std::uint32_t beyond = (magnitude + (nan_code - largest)) >> width;
    return __builtin_bit_cast(
        float, sign | __builtin_bit_cast(std::uint32_t, finite) | ((0u - beyond) & 0x7F800000u));
  }

 private:
  DSV3_HD static constexpr std::uint32_t finish(std::uint32_t u, std::uint32_t code,
                                                Overflow overflow) {
    const std::uint32_t beyond = overflow == Overflow::saturate ? max_code : overflow_code;
    const std::uint32_t bounded = code < beyond ? code : beyond;
    const bool is_nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
    return bounded | (is_nan ? nan_code : 0u) | (u >> 31 << width);
  }
};

}  // namespace detail

/// FP8 with 4 exponent and 3 mantissa bits, the "fn" variant: no infinity, largest value 448.
struct e4m3 {
  using format = detail::NarrowFloat<4, 3, 0x7E, 0x7F>;
  static constexpr float max = 448;
  std::uint8_t code;

  e4m3() = default;
  DSV3_HD constexpr explicit e4m3(float value, Overflow overflow = Overflow::saturate)
      : code(static_cast<std::uint8_t>(format::encode(value, overflow))) {}
  DSV3_HD constexpr explicit operator float() const { return format::decode(code); }
};

/// FP8 with 5 exponent and 2 mantissa bits: infinity 0x7C, largest value 57344.
struct e5m2 {
  using format = detail::NarrowFloat<5, 2, 0x7B, 0x7C>;
  static constexpr float max = 57344;
  std::uint8_t code;

  e5m2() = default;
  DSV3_HD constexpr explicit e5m2(float value, Overflow overflow = Overflow::saturate)
      : code(static_cast<std::uint8_t>(format::encode(value, overflow))) {}
  DSV3_HD constexpr explicit operator float() const { return format::decode(code); }
};

/// Twelve bits with 5 exponent and 6 mantissa bits, exponent 31 reserved as in FP16: infinity
/// 0x7C0, largest value 65024. DeepSeek-V3 stores attention outputs so; its layout is not public,
/// this one is ours (spec 7.1). A matrix of them packs two into 3 bytes: see PackedE5m6.
struct e5m6 {
  using format = detail::NarrowFloat<5, 6, 0x7BF, 0x7C0>;
  static constexpr float max = 65024;
  std::uint16_t code;  // the lower 12 bits

  e5m6() = default;
  DSV3_HD constexpr explicit e5m6(float value, Overflow overflow = Overflow::saturate)
      : code(static_cast<std::uint16_t>(format::encode(value, overflow))) {}
  DSV3_HD constexpr explicit operator float() const { return format::decode(code); }
};

/// A power of two from 2^-127 to 2^127 as its exponent alone, code 127 for 1; 255 is NaN. A scale,
/// never a value: it has neither zero nor sign.
struct ue8m0 {
  std::uint8_t code;

  ue8m0() = default;
  /// The least power of two that is not below a positive value; bounded to codes 1 ... 254.
  DSV3_HD constexpr explicit ue8m0(float value) : code(round_up(value)) {}
  DSV3_HD constexpr explicit operator float() const {
    const std::uint32_t power = code == 0 ? 0x00400000u : static_cast<std::uint32_t>(code) << 23;
    return __builtin_bit_cast(float, code == 255 ? 0x7FC00000u : power);
  }

 private:
  DSV3_HD static constexpr std::uint8_t round_up(float value) {
    const auto u = __builtin_bit_cast(std::uint32_t, value);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return 255;
    const std::uint32_t up = (u + 0x7FFFFFu) >> 23;
    return static_cast<std::uint8_t>(up < 1 ? 1 : up > 254 ? 254 : up);
  }
};

/// The bf16 nearest to a double, ties to even: rounded once, where the way over float rounds twice.
DSV3_HD constexpr bf16 bf16_nearest(double value) {
  auto u = __builtin_bit_cast(std::uint32_t, static_cast<float>(value));
  // The float lies halfway between two bf16 and the double does not: step to the double's side.
  const double rounded = static_cast<double>(__builtin_bit_cast(float, u));
  if ((u & 0xFFFFu) == 0x8000u && rounded != value) {
    const bool away = value < 0 ? value < rounded : value > rounded;
    u = away ? u + 1 : u - 1;
  }
  return bf16(__builtin_bit_cast(float, u));
}

/// bf16 of a float, up or down with the probability that makes the expected value exact, by 16
/// uniform bits. Infinity and NaN as bf16(float) has them.
DSV3_HD constexpr bf16 bf16_stochastic(float value, std::uint32_t random) {
  const auto u = __builtin_bit_cast(std::uint32_t, value);
  bf16 result(value);
  if ((u & 0x7F800000u) != 0x7F800000u)
    result.bits = static_cast<std::uint16_t>((u + (random & 0xFFFFu)) >> 16);
  return result;
}

/// True for the types whose values mean nothing without a scale.
template <class T>
inline constexpr bool is_fp8 =
    std::is_same_v<std::remove_const_t<T>, e4m3> || std::is_same_v<std::remove_const_t<T>, e5m2>;

/// The type in which arithmetic on T is done: double for double, float for anything narrower.
template <class T>
using accum_t = std::conditional_t<std::is_same_v<std::remove_const_t<T>, double>, double, float>;

}  // namespace dsv3
