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
// stands for an overflow in Overflow::propagate. Spec 7.1. All functions are free of branches, so
// that loops over them vectorise and every instruction set gives the same codes.
template <int exponent_bits, int mantissa, std::uint32_t max_code, std::uint32_t overflow_code>
struct NarrowFloat {
  static constexpr int bias = (1 << (exponent_bits - 1)) - 1;
  static constexpr std::uint32_t sign_bit = 1u << (exponent_bits + mantissa);
  static constexpr std::uint32_t nan_code = sign_bit - 1;
  static constexpr std::uint32_t largest = max_code;
  /// The code of infinity; a value that no magnitude has where the format has none.
  static constexpr std::uint32_t infinite_code =
      overflow_code == nan_code ? 2 * sign_bit : overflow_code;
  static constexpr int shift = 23 - mantissa;
  static constexpr std::uint32_t half = 1u << (shift - 1);
  static constexpr std::uint32_t offset = static_cast<std::uint32_t>(127 - bias) << mantissa;
  static constexpr std::uint32_t least_normal = static_cast<std::uint32_t>(128 - bias) << 23;
  static constexpr float least_subnormal =
      __builtin_bit_cast(float, static_cast<std::uint32_t>(128 - bias - mantissa) << 23);

  /// To nearest, ties to even.
  DSV3_HD static constexpr std::uint32_t encode(float value, Overflow overflow) {
    const auto u = __builtin_bit_cast(std::uint32_t, value);
    const std::uint32_t magnitude = u & 0x7FFFFFFFu;
    const std::uint32_t bounded = magnitude < largest_bits ? magnitude : largest_bits;
    // One step of the format at this value's binade is 2^(exponent - mantissa); subnormals have
    // that of the least normal number. Beside 2^23 steps an addition rounds to whole steps.
    const std::uint32_t exponent = bounded & 0x7F800000u;
    const std::uint32_t binade = exponent > least_normal ? exponent : least_normal;
    const std::uint32_t anchor = binade + (static_cast<std::uint32_t>(shift) << 23);
    const float sum = __builtin_bit_cast(float, bounded) + __builtin_bit_cast(float, anchor);
    const std::uint32_t steps = __builtin_bit_cast(std::uint32_t, sum) - anchor;
    const std::uint32_t code = steps + (binade >> shift) - (least_normal >> shift);
    return finish(u,
                  overflow == Overflow::propagate && magnitude > last_tie ? overflow_code : code);
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
    const std::uint32_t lower =
        whole + (fraction * 16777216.0f > static_cast<float>(random >> 8) ? 1u : 0u);
    const std::uint32_t code = subnormal ? lower : upper;
    return finish(u, code > max_code ? max_code : code);
  }

  /// Selections are of integers and the one subtraction is for all codes, so that loops vectorise:
  /// a subnormal is read with the exponent of the least normal number, which is then taken off.
  DSV3_HD static constexpr float decode(std::uint32_t code) {
    const std::uint32_t sign = (code & sign_bit) << (31 - exponent_bits - mantissa);
    const std::uint32_t magnitude = code & nan_code;
    const bool subnormal = magnitude >> mantissa == 0;
    const std::uint32_t read = magnitude + offset + (subnormal ? 1u << mantissa : 0u);
    const float finite = __builtin_bit_cast(float, read << shift) -
                         __builtin_bit_cast(float, subnormal ? least_normal : 0u);
    const std::uint32_t beyond = magnitude == infinite_code ? 0x7F800000u : 0x7FC00000u;
    const std::uint32_t bits =
        magnitude > max_code ? beyond : __builtin_bit_cast(std::uint32_t, finite);
    return __builtin_bit_cast(float, sign | bits);
  }

 private:
  // The largest finite value; beyond last_tie a magnitude is nearer to what would follow it.
  static constexpr std::uint32_t largest_bits = (max_code + offset) << shift;
  static constexpr std::uint32_t last_tie = largest_bits + half - (max_code & 1u);

  DSV3_HD static constexpr std::uint32_t finish(std::uint32_t u, std::uint32_t code) {
    const bool is_nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
    return (is_nan ? nan_code : code) | (u >> 31 << (exponent_bits + mantissa));
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
