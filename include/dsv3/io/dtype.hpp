// The element types of safetensors files, and conversion from their bytes.
#pragma once

#include <array>
#include <cstring>
#include <dsv3/core/scalar.hpp>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace dsv3 {

/// Element types in the order of their rank, by which safetensors files are sorted.
///
/// Source   safetensors, safetensors/src/tensor.rs; spec 9.5. Types that DeepSeek models do not
///          use are left out.
enum class DType { u8, f8_e5m2, f8_e4m3, f8_e8m0, f16, bf16, i32, f32, f64, i64 };

namespace detail {

struct DTypeFacts {
  DType dtype;
  const char* name;
  Index bytes;
};

inline constexpr std::array<DTypeFacts, 10> dtypes = {{{DType::u8, "U8", 1},
                                                       {DType::f8_e5m2, "F8_E5M2", 1},
                                                       {DType::f8_e4m3, "F8_E4M3", 1},
                                                       {DType::f8_e8m0, "F8_E8M0", 1},
                                                       {DType::f16, "F16", 2},
                                                       {DType::bf16, "BF16", 2},
                                                       {DType::i32, "I32", 4},
                                                       {DType::f32, "F32", 4},
                                                       {DType::f64, "F64", 8},
                                                       {DType::i64, "I64", 8}}};

}  // namespace detail

/// As files spell it: "BF16".
constexpr const char* dtype_name(DType dtype) {
  return detail::dtypes[static_cast<std::size_t>(dtype)].name;
}

/// Bytes of one element.
constexpr Index dtype_bytes(DType dtype) {
  return detail::dtypes[static_cast<std::size_t>(dtype)].bytes;
}

constexpr bool is_integer(DType dtype) {
  return dtype == DType::u8 || dtype == DType::i32 || dtype == DType::i64;
}

/// The type of this name, or nothing.
constexpr std::optional<DType> parse_dtype(std::string_view name) {
  for (const detail::DTypeFacts& facts : detail::dtypes)
    if (name == facts.name) return facts.dtype;
  return std::nullopt;
}

/// The element type whose bytes are those of T.
template <class T>
constexpr DType dtype_of() {
  using U = std::remove_const_t<T>;
  if constexpr (std::is_same_v<U, double>) return DType::f64;
  if constexpr (std::is_same_v<U, float>) return DType::f32;
  if constexpr (std::is_same_v<U, bf16>) return DType::bf16;
  if constexpr (std::is_same_v<U, e4m3>) return DType::f8_e4m3;
  if constexpr (std::is_same_v<U, e5m2>) return DType::f8_e5m2;
  if constexpr (std::is_integral_v<U>) {
    static_assert(std::is_same_v<U, std::uint8_t> || (std::is_signed_v<U> && sizeof(U) >= 4),
                  "dtype_of: the integer types of files are uint8_t, int32_t and int64_t");
    return sizeof(U) == 1 ? DType::u8 : sizeof(U) == 4 ? DType::i32 : DType::i64;
  }
}

namespace detail {

// IEEE half precision. Source: IEEE 754-2008, binary16: 5 exponent bits of bias 15.
constexpr float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 31u, mantissa = half & 0x3FFu;
  if (exponent == 0) {  // a multiple of 2^-24
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -value : value;
  }
  const std::uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

// 2^(code - 127), code 255 is NaN.
constexpr float e8m0_to_float(std::uint8_t code) {
  if (code == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>(code == 0 ? 0x00400000u : static_cast<std::uint32_t>(code) << 23);
}

// to[i] = decode(the i-th Stored at `from`), which need not be aligned. The two do not overlap:
// only where it knows that does a compiler vectorise at every level of optimisation.
template <class Stored, class To>
void decode_elements(const std::byte* __restrict from, To* __restrict to, Index n, auto decode) {
  for (Index i = 0; i < n; ++i) {
    Stored stored;
    std::memcpy(&stored, from + i * static_cast<Index>(sizeof(Stored)), sizeof(Stored));
    to[i] = decode(stored);
  }
}

template <class Stored, class To>
void decode_integers(const std::byte* from, To* to, Index n) {
  decode_elements<Stored>(from, to, n, [](Stored value) {
    const auto wide = static_cast<std::int64_t>(value);
    if (wide < static_cast<std::int64_t>(std::numeric_limits<To>::min()) ||
        wide > static_cast<std::int64_t>(std::numeric_limits<To>::max()))
      throw std::invalid_argument("value (" + std::to_string(wide) + ") does not fit into " +
                                  dtype_name(dtype_of<To>()));
    return static_cast<To>(value);
  });
}

}  // namespace detail

/// Converts n elements of type `dtype` at `from`, aligned or not. Real types become real types
/// (rounded to nearest where To is narrower), integers become integers.
///
/// Types    To: double, float, bf16, e4m3 (saturating); uint8_t, int32_t, int64_t.
/// Errors   std::invalid_argument, without a name of where, where one is real and the other is an
///          integer, or an integer does not fit.
template <class To>
void convert_elements(DType dtype, const std::byte* from, To* to, Index n) {
  if (is_integer(dtype) != std::is_integral_v<To>)
    throw std::invalid_argument(std::string("dtype ") + dtype_name(dtype) + " must be " +
                                (std::is_integral_v<To> ? "an integer" : "a real") + " type");
  if (dtype == dtype_of<To>()) {
    if (n > 0) std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(To));
    return;
  }
  if constexpr (std::is_integral_v<To>) {
    if (dtype == DType::u8) detail::decode_integers<std::uint8_t>(from, to, n);
    if (dtype == DType::i32) detail::decode_integers<std::int32_t>(from, to, n);
    if (dtype == DType::i64) detail::decode_integers<std::int64_t>(from, to, n);
  } else {
    const auto real = [&]<class Stored>(Stored, auto widen) {
      detail::decode_elements<Stored>(from, to, n,
                                      [&](Stored s) { return To(accum_t<To>(widen(s))); });
    };
    const auto as_float = [](auto value) { return float(value); };
    switch (dtype) {
      case DType::f8_e5m2:
        return real(e5m2{}, as_float);
      case DType::f8_e4m3:
        return real(e4m3{}, as_float);
      case DType::f8_e8m0:
        return real(std::uint8_t{}, detail::e8m0_to_float);
      case DType::f16:
        return real(std::uint16_t{}, detail::half_to_float);
      case DType::bf16:
        return real(bf16{}, as_float);
      case DType::f32:
        return real(float{}, as_float);
      default:
        return real(double{}, [](double value) { return value; });
    }
  }
}

}  // namespace dsv3
