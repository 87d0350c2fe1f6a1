// Divisions and sigmoids of the fused kernels beside those that they replace: the same bits.
#include <doctest/doctest.h>

#include <cmath>
#include <dsv3/backend/cuda/exact_arithmetic.hpp>
#include <dsv3/core/math.hpp>
#include <dsv3/core/philox.hpp>
#include <limits>

using namespace dsv3;
using namespace dsv3::detail;

namespace {

float from_bits(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }

// How many codes by one division differ from those by a division each; with the float on the other
// side of the reciprocal too, which a GPU may take.
template <class C>
std::size_t wrong_codes(float scale, float value) {
  std::size_t wrong = 0;
  const float nearest = 1.0f / scale;
  const bool above = static_cast<double>(nearest) > 1.0 / static_cast<double>(scale);
  for (const float y : {nearest, std::nextafter(nearest, above ? 0.0f : INFINITY)}) {
    const CodeDivisor divisor(scale, y);
    if (divisor.high == 0) return 0;
    for (const float v : {value, -value}) wrong += C(divisor.quotient(v)).code != C(v / scale).code;
  }
  return wrong;
}

template <class C>
void check_scales() {
  const ScaleRule rules[] = {{}, {1e-4, false}, {0, true}, {1e-4, true}};
  std::size_t wrong = 0;
  for (const ScaleRule& rule : rules) {
    const auto check = [&](std::uint32_t bits) {
      const float amax = from_bits(bits), expected = rule.scale<C>(amax);
      wrong += bits_of(scale_of<C>(rule, amax)) != bits_of(expected);
    };
    for (std::uint32_t bits = 0; bits < 0x7F800000u; bits += 997) check(bits);
    for (const float edge : {0.0f, 0x1p-149f, 0x1p-60f, 0x1p120f, 1e-4f, 448.0f, INFINITY})
      for (std::uint32_t step = 0; step < 3 && bits_of(edge) + step <= 0x7F800000u; ++step)
        check(bits_of(edge) + step);
    CHECK(std::isnan(scale_of<C>(rule, NAN)));
  }
  CHECK(wrong == 0);
}

}  // namespace

// Every 89th; all of them have been tried.
TEST_CASE("exp and sigmoid within 87 have the bits of core/math.hpp") {
  std::size_t wrong = 0;
  for (std::uint32_t bits = 0; bits <= bits_of(87.0f); bits += 89) {
    const float x = from_bits(bits);
    wrong += bits_of(exp_above_minus_87(-x)) != bits_of(exp_float<true>(-x));
    wrong += bits_of(sigmoid_within_87(x)) != bits_of(sigmoid(x));
    wrong += bits_of(sigmoid_within_87(-x)) != bits_of(sigmoid(-x));
  }
  CHECK(wrong == 0);
  CHECK(bits_of(exp_above_minus_87(-87.0f)) == bits_of(exp_float<true>(-87.0f)));
  CHECK(bits_of(sigmoid_within_87(-87.0f)) == bits_of(sigmoid(-87.0f)));
}

TEST_CASE("scales without a division have the bits of ScaleRule") {
  check_scales<e4m3>();
  check_scales<e5m2>();
}

TEST_CASE("one division serves all codes of a scale") {
  const Philox philox(3, 0);
  std::size_t wrong = 0;
  for (std::uint32_t i = 0; i < 200000; ++i) {
    const auto random = philox(i);
    const int power = static_cast<int>(random.word[1] % 160) - 80;
    std::uint32_t significand = random.word[0] & 0x7FFFFFu;
    if (i % 2)  // close to a number of 4 bits
      significand = ((significand & 0x700000u) + random.word[1] % 512 - 256) & 0x7FFFFFu;
    const float scale = std::ldexp(from_bits(significand | 0x3F800000u), power);
    const float ratio = std::ldexp(from_bits((random.word[2] & 0x7FFFFFu) | 0x3F800000u),
                                   static_cast<int>(random.word[3] % 26) - 18);
    wrong += wrong_codes<e4m3>(scale, ratio * scale) + wrong_codes<e5m2>(scale, ratio * scale);
    // Values around every kind of tie.
    const float tie = std::round(std::ldexp(ratio, 18)) / 262144.0f;
    const std::uint32_t coarse = bits_of(ratio) & 0xFFF80000u;
    for (const float at : {tie, from_bits(coarse)}) {
      const std::uint32_t middle = bits_of(at * scale);
      for (std::uint32_t step = 0; step < 5; ++step) {
        const float value = from_bits(middle + step - 2);
        wrong += wrong_codes<e4m3>(scale, value) + wrong_codes<e5m2>(scale, value);
      }
    }
    for (const float value : {0.0f, 1e-40f, 1e-30f})
      wrong += wrong_codes<e4m3>(scale, value) + wrong_codes<e5m2>(scale, value);
  }
  CHECK(wrong == 0);
}

TEST_CASE("what needs a division says so, and a zero keeps its sign") {
  for (const float scale : {0.0f, 0x1p-81f, 0x1p81f, 1.0f + 0x1p-23f, 1.0f + 0x1p-18f,
                            1.125f - 0x1p-23f, INFINITY, NAN})
    CHECK(CodeDivisor(scale).high == 0);
  for (const float scale : {0x1p-80f, 0.7f, 1.0f, 1.125f, 3.0f, 448.0f, 0x1p80f}) {
    const CodeDivisor divisor(scale);
    CHECK(divisor.high > 0);
    CHECK(divisor.low >= 0);
    CHECK(std::signbit(divisor.quotient(-0.0f)));
    CHECK_FALSE(std::signbit(divisor.quotient(0.0f)));
  }
}
