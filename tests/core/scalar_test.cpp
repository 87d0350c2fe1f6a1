#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <dsv3/core/scalar.hpp>
#include <initializer_list>
#include <limits>
#include <utility>

using namespace dsv3;

namespace {

float from_bits(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float none = std::numeric_limits<float>::quiet_NaN();

// The value of a code as spec 7.1 defines it, in double; codes of infinities and NaN aside.
double value_of(unsigned code, int mantissa, int bias) {
  const int exponent = static_cast<int>(code & 0x7F) >> mantissa;
  const double m = static_cast<double>(code & ((1u << mantissa) - 1)) / (1 << mantissa);
  const double size = exponent == 0 ? std::ldexp(m, 1 - bias) : std::ldexp(1 + m, exponent - bias);
  return code & 0x80 ? -size : size;
}

// The nearest finite value of a format, ties to the even code, by search over all codes.
unsigned nearest(double x, int mantissa, int bias, unsigned max_code) {
  unsigned best = 0;
  x = std::copysign(std::min(std::abs(x), value_of(max_code, mantissa, bias)), x);
  for (unsigned code = 1; code <= max_code; ++code) {
    const double before = std::abs(value_of(best, mantissa, bias) - std::abs(x));
    const double now = std::abs(value_of(code, mantissa, bias) - std::abs(x));
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(x) ? 0x80u : 0u);
}

}  // namespace

TEST_CASE("bf16 has the published vectors: nearest, ties to even") {
  CHECK(bf16(1.00390625f).bits == 0x3F80);
  CHECK(bf16(1.01171875f).bits == 0x3F82);
  CHECK(bf16(3.1415927f).bits == 0x4049);
  CHECK(bf16(0.0f).bits == 0);
  CHECK(bf16(-0.0f).bits == 0x8000);
  CHECK(bf16(infinity).bits == 0x7F80);
  CHECK(bf16(-infinity).bits == 0xFF80);
  CHECK(bf16(std::numeric_limits<float>::max()).bits == 0x7F80);  // rounds up to infinity
  CHECK(float(bf16(3.3895314e38f)) == 3.3895314e38f);             // the largest
  CHECK(bf16(from_bits(0x00010000)).bits == 1);                   // the smallest subnormal
  CHECK(bf16(from_bits(0x00008000)).bits == 0);                   // half of it: a tie
  CHECK(bf16(from_bits(0x00008001)).bits == 1);
  static_assert(bf16(1.5f).bits == 0x3FC0);
}

TEST_CASE("Every bf16 comes back from float, and lies between its neighbours' midpoints") {
  for (std::uint32_t b = 0; b < 65536; ++b) {
    bf16 x;
    x.bits = static_cast<std::uint16_t>(b);
    const float value = float(x);
    CAPTURE(b);
    if (std::isnan(value)) {
      REQUIRE(std::isnan(float(bf16(value))));
      REQUIRE((bf16(value).bits & 0x8000) == (b & 0x8000));
      continue;
    }
    REQUIRE(bf16(value).bits == b);
    REQUIRE(double(x) == double(value));
    if ((b & 0x7FFF) >= 0x7F80) continue;
    // Up to the midpoint it is this number, beyond it the next; the tie goes to the even one.
    const std::uint32_t low = b << 16;
    REQUIRE(bf16(from_bits(low + 0x7FFF)).bits == b);
    REQUIRE(bf16(from_bits(low + 0x8001)).bits == b + 1);
    REQUIRE(bf16(from_bits(low + 0x8000)).bits == b + (b & 1));
  }
}

TEST_CASE("No NaN becomes infinity in bf16") {
  for (const std::uint32_t bits : {0x7F800001u, 0x7FFFFFFFu, 0xFF800001u, 0xFFFFFFFFu, 0x7F80FFFFu})
    CHECK(std::isnan(float(bf16(from_bits(bits)))));
}

TEST_CASE("e4m3 has the published vectors") {
  const std::pair<float, int> vectors[] = {
      {1.0f, 0x38},    {1.0625f, 0x38}, {1.1875f, 0x3A},      {0.1f, 0x1D},
      {-0.3f, 0xAA},   {3.3f, 0x45},    {17, 0x58},           {19, 0x5A},
      {-250, 0xF8},    {0x1p-9f, 0x01}, {0x1p-10f, 0x00},     {1.01f * 0x1p-10f, 0x01},
      {0x1.8p-9f, 02}, {464, 0x7E},     {464.1f, 0x7E},       {1e9f, 0x7E},
      {-1e9f, 0xFE},   {-0.0f, 0x80},   {infinity, 0x7E},     {-infinity, 0xFE},
      {448, 0x7E},     {1e-30f, 0x00},  {from_bits(1), 0x00}, {0x1p-6f, 0x08}};
  for (const auto& vector : vectors) {
    const auto x = vector.first;
    const auto code = vector.second;
    CAPTURE(x);
    CHECK(int(e4m3(x).code) == code);
  }
  CHECK(int(e4m3(464, Overflow::propagate).code) == 0x7E);
  CHECK(int(e4m3(464.1f, Overflow::propagate).code) == 0x7F);
  CHECK(int(e4m3(infinity, Overflow::propagate).code) == 0x7F);
  CHECK(int(e4m3(-infinity, Overflow::propagate).code) == 0xFF);
  CHECK((e4m3(none).code & 0x7F) == 0x7F);
  CHECK(float(e4m3(0.1f)) == 0.1015625f);
  static_assert(e4m3(2.0f).code == 0x40);
}

TEST_CASE("e5m2 has the published vectors") {
  CHECK(int(e5m2(0.1f).code) == 0x2E);
  CHECK(int(e5m2(480).code) == 0x60);
  CHECK(float(e5m2(480)) == 512.0f);
  CHECK(int(e5m2(1e9f).code) == 0x7B);
  CHECK(int(e5m2(1e9f, Overflow::propagate).code) == 0x7C);
  CHECK(int(e5m2(-infinity, Overflow::propagate).code) == 0xFC);
  CHECK(int(e5m2(-infinity).code) == 0xFB);
  CHECK(int(e5m2(61439).code) == 0x7B);  // below the midpoint to 65536
  CHECK(int(e5m2(61439, Overflow::propagate).code) == 0x7B);
  CHECK(int(e5m2(61440, Overflow::propagate).code) == 0x7C);  // the tie: to even, infinity
  CHECK(std::isnan(float(e5m2(none))));
  CHECK(int(e5m2(0x1p-16f).code) == 1);
  CHECK(int(e5m2(0x1p-17f).code) == 0);
}

TEST_CASE("All 256 codes of e4m3 decode by the definition and come back") {
  int finite = 0;
  for (unsigned code = 0; code < 256; ++code) {
    CAPTURE(code);
    e4m3 x;
    x.code = static_cast<std::uint8_t>(code);
    if ((code & 0x7F) == 0x7F) {
      CHECK(std::isnan(float(x)));
      CHECK(e4m3(float(x)).code == code);
      continue;
    }
    ++finite;
    CHECK(double(float(x)) == value_of(code, 3, 7));
    CHECK(std::signbit(float(x)) == (code >= 128));
    CHECK(e4m3(float(x)).code == code);
    CHECK(e4m3(float(x), Overflow::propagate).code == code);
  }
  CHECK(finite == 254);
}

TEST_CASE("All 256 codes of e5m2 decode by the definition and come back") {
  for (unsigned code = 0; code < 256; ++code) {
    CAPTURE(code);
    e5m2 x;
    x.code = static_cast<std::uint8_t>(code);
    if ((code & 0x7F) > 0x7C) {
      CHECK(std::isnan(float(x)));
    } else if ((code & 0x7F) == 0x7C) {
      CHECK(float(x) == (code & 0x80 ? -infinity : infinity));
      CHECK(e5m2(float(x), Overflow::propagate).code == code);
    } else {
      CHECK(double(float(x)) == value_of(code, 2, 15));
      CHECK(e5m2(float(x)).code == code);
    }
  }
}

TEST_CASE("FP8 takes the nearest code for every bf16, for midpoints and for their neighbours") {
  const auto check = [](float x) {
    CAPTURE(x);
    REQUIRE(int(e4m3(x).code) == int(nearest(x, 3, 7, 0x7E)));
    REQUIRE(int(e5m2(x).code) == int(nearest(x, 2, 15, 0x7B)));
  };
  for (std::uint32_t b = 0; b < 65536; b += 7) {
    const float x = from_bits(b << 16);
    if (!std::isnan(x) && !std::isinf(x)) check(x);
  }
  for (unsigned code = 0; code < 0x7E; ++code) {
    const auto middle = [&](int mantissa, int bias) {
      return static_cast<float>(
          (value_of(code, mantissa, bias) + value_of(code + 1, mantissa, bias)) / 2);
    };
    for (const float x : {middle(3, 7), code < 0x7B ? middle(2, 15) : 1.0f})
      for (const float y : {x, -x, from_bits(bits_of(x) + 1), from_bits(bits_of(x) - 1)}) check(y);
  }
}

TEST_CASE("Arithmetic is in float, and in double for double") {
  static_assert(std::is_same_v<accum_t<double>, double>);
  static_assert(std::is_same_v<accum_t<const double>, double>);
  static_assert(std::is_same_v<accum_t<float>, float>);
  static_assert(std::is_same_v<accum_t<bf16>, float>);
  static_assert(sizeof(bf16) == 2 && sizeof(e4m3) == 1 && sizeof(e5m2) == 1);
  static_assert(std::is_trivially_copyable_v<bf16> && std::is_trivial_v<bf16>);
}

TEST_CASE("bf16_nearest rounds a double once") {
  const double tie = 1 + 0x1p-8;  // halfway between the bf16 1 and 1 + 2^-7
  CHECK(double(bf16_nearest(tie)) == 1);
  CHECK(double(bf16_nearest(tie + 0x1p-40)) == 1 + 0x1p-7);  // float would see the tie
  CHECK(double(bf16_nearest(-tie - 0x1p-40)) == -1 - 0x1p-7);
  const double odd = 1 + 0x1p-7 + 0x1p-8;  // the even neighbour is above
  CHECK(double(bf16_nearest(odd)) == 1 + 0x1p-6);
  CHECK(double(bf16_nearest(odd - 0x1p-40)) == 1 + 0x1p-7);
  CHECK(double(bf16_nearest(-odd + 0x1p-40)) == -1 - 0x1p-7);
  CHECK(bf16_nearest(-0.0).bits == 0x8000);
  CHECK(bf16_nearest(1e300).bits == 0x7F80);
  CHECK(bf16_nearest(std::numeric_limits<double>::quiet_NaN()).bits == 0x7FC0);
}
