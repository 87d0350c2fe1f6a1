// Scalars narrower than float: bf16, and the storage types e4m3 and e5m2.
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

/// What happens to a value beyond the largest finite code of an FP8 format.
enum class Overflow {
  saturate,  ///< becomes the largest finite value; NaN stays NaN. What every FP8 recipe uses
  propagate  ///< becomes NaN (e4m3) or infinity (e5m2), as plain IEEE rounding would have it
};

namespace detail {

// One FP8 format: `mantissa` explicit bits, exponent bias, largest finite code, and the code that
// stands for an overflow in Overflow::propagate. Spec 7.1.
template <int mantissa, int bias, unsigned max_code, unsigned overflow_code>
struct Float8 {
  DSV3_HD static constexpr std::uint8_t encode(float value, Overflow overflow) {
    const auto u = __builtin_bit_cast(std::uint32_t, value);
    const auto sign = static_cast<std::uint8_t>((u >> 24) & 0x80u);
    const std::uint32_t magnitude = u & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return static_cast<std::uint8_t>(sign | 0x7Fu);  // NaN
    const int exponent = static_cast<int>(magnitude >> 23) - 127;
    std::uint32_t code;
    if (exponent < 1 - bias) {  // subnormal: a multiple of 2^(1 - bias - mantissa)
      const int shift = 23 - mantissa + (1 - bias - exponent);
      if (shift > 31) {
        code = 0;
      } else {
        const std::uint64_t m = (magnitude & 0x7FFFFFu) | 0x800000u;
        code = round_shift(exponent == -127 ? 0 : m, shift);
      }
    } else {
      code = round_shift(magnitude - (static_cast<std::uint32_t>(127 - bias) << 23), 23 - mantissa);
    }
    if (code > max_code) code = overflow == Overflow::saturate ? max_code : overflow_code;
    return static_cast<std::uint8_t>(sign | code);
  }

  DSV3_HD static constexpr float decode(std::uint8_t code) {
    const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80u) << 24;
    const std::uint32_t magnitude = code & 0x7Fu;
    if (magnitude > max_code) {
      const bool infinite = overflow_code != 0x7Fu && magnitude == overflow_code;
      return __builtin_bit_cast(float, sign | (infinite ? 0x7F800000u : 0x7FC00000u));
    }
    if ((magnitude >> mantissa) == 0) {
      const float step =
          __builtin_bit_cast(float, static_cast<std::uint32_t>(127 + 1 - bias - mantissa) << 23);
      const float value = static_cast<float>(magnitude) * step;
      return sign ? -value : value;
    }
    return __builtin_bit_cast(float, sign | ((magnitude << (23 - mantissa)) +
                                             (static_cast<std::uint32_t>(127 - bias) << 23)));
  }

 private:
  // value / 2^shift, to nearest, ties to even.
  DSV3_HD static constexpr std::uint32_t round_shift(std::uint64_t value, int shift) {
    const std::uint64_t half = std::uint64_t{1} << (shift - 1);
    const std::uint64_t odd = (value >> shift) & 1u;
    return static_cast<std::uint32_t>((value + (half - 1) + odd) >> shift);
  }
};

}  // namespace detail

/// FP8 with 4 exponent and 3 mantissa bits, the "fn" variant: no infinity, largest value 448.
struct e4m3 {
  using format = detail::Float8<3, 7, 0x7E, 0x7F>;
  std::uint8_t code;

  e4m3() = default;
  DSV3_HD constexpr explicit e4m3(float value, Overflow overflow = Overflow::saturate)
      : code(format::encode(value, overflow)) {}
  DSV3_HD constexpr explicit operator float() const { return format::decode(code); }
};

/// FP8 with 5 exponent and 2 mantissa bits: infinity 0x7C, largest value 57344.
struct e5m2 {
  using format = detail::Float8<2, 15, 0x7B, 0x7C>;
  std::uint8_t code;

  e5m2() = default;
  DSV3_HD constexpr explicit e5m2(float value, Overflow overflow = Overflow::saturate)
      : code(format::encode(value, overflow)) {}
  DSV3_HD constexpr explicit operator float() const { return format::decode(code); }
};

/// The type in which arithmetic on T is done: double for double, float for anything narrower.
template <class T>
using accum_t = std::conditional_t<std::is_same_v<std::remove_const_t<T>, double>, double, float>;

}  // namespace dsv3
