#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <dsv3/core/math.hpp>
#include <initializer_list>
#include <limits>

using namespace dsv3;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float none = std::numeric_limits<float>::quiet_NaN();

// Distance of a float from the exact value, in units of the spacing of floats there; infinity
// counts as the number that would follow the largest.
double ulps(float value, double exact) {
  int exponent = 0;
  std::frexp(exact, &exponent);
  const double spacing = std::ldexp(1.0, std::max(exponent - 24, -149));
  const double x = std::isinf(value) ? std::copysign(0x1p128, value) : double(value);
  const double y = std::abs(exact) > 0x1p128 ? std::copysign(0x1p128, exact) : exact;
  return std::abs(x - y) / spacing;
}

// The largest error over every 257th bit pattern, or, where DSV3_LONG_TESTS is set, over all of
// them. 257 is odd: every exponent and both signs occur, with ever other low bits.
template <class Function, class Exact>
double worst_error(Function function, Exact exact) {
  const std::uint64_t step = std::getenv("DSV3_LONG_TESTS") ? 1 : 257;
  double worst = 0;
  float at = 0;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += step) {
    const float x = __builtin_bit_cast(float, static_cast<std::uint32_t>(bits));
    const float value = function(x);
    const double expected = exact(double(x));
    if (std::isnan(expected)) {
      if (!std::isnan(value)) FAIL_CHECK("a number at ", x);
      continue;
    }
    if (std::isnan(value)) FAIL_CHECK("not a number at ", x);
    if (std::isinf(expected) && value == expected) continue;
    const double error = ulps(value, expected);
    if (error > worst) {
      worst = error;
      at = x;
    }
  }
  MESSAGE("largest error ", worst, " ulp at ", at);
  return worst;
}

}  // namespace

TEST_CASE("exp is within 2 ulp of the exact value for every float") {
  CHECK(worst_error([](float x) { return dsv3::exp(x); }, [](double x) { return std::exp(x); }) <=
        2);
}

TEST_CASE("log is within 2 ulp of the exact value for every float") {
  CHECK(worst_error([](float x) { return dsv3::log(x); }, [](double x) { return std::log(x); }) <=
        2);
}

TEST_CASE("sigmoid is within 2 ulp of the exact value for every float") {
  CHECK(worst_error([](float x) { return dsv3::sigmoid(x); },
                    [](double x) { return 1 / (1 + std::exp(-x)); }) <= 2);
}

TEST_CASE("exp at its special values") {
  CHECK(dsv3::exp(0.0f) == 1.0f);
  CHECK(dsv3::exp(-0.0f) == 1.0f);
  CHECK(dsv3::exp(-infinity) == 0.0f);
  CHECK(dsv3::exp(-104.0f) == 0.0f);
  CHECK(dsv3::exp(-103.9f) == 0x1p-149f);  // the smallest subnormal
  CHECK(dsv3::exp(-3e38f) == 0.0f);
  CHECK(dsv3::exp(88.72f) < infinity);
  CHECK(dsv3::exp(88.73f) == infinity);
  CHECK(dsv3::exp(infinity) == infinity);
  CHECK(std::isnan(dsv3::exp(none)));
  CHECK(std::isnan(dsv3::exp(-none)));
  CHECK(dsv3::exp(1.0) == std::exp(1.0));
}

TEST_CASE("log at its special values") {
  CHECK(dsv3::log(1.0f) == 0.0f);
  CHECK(dsv3::log(0.0f) == -infinity);
  CHECK(dsv3::log(-0.0f) == -infinity);
  CHECK(dsv3::log(infinity) == infinity);
  for (const float x : {-1.0f, -0x1p-149f, -0.5f, -infinity, none, -none})
    CHECK(std::isnan(dsv3::log(x)));
  for (int e = -149; e < 128; ++e)
    CHECK(dsv3::log(std::ldexp(1.0f, e)) == doctest::Approx(e * std::log(2.0)).epsilon(1e-7));
  CHECK(dsv3::log(2.0) == std::log(2.0));
}

TEST_CASE("sigmoid at its special values") {
  CHECK(dsv3::sigmoid(0.0f) == 0.5f);
  CHECK(dsv3::sigmoid(-0.0f) == 0.5f);
  CHECK(dsv3::sigmoid(infinity) == 1.0f);
  CHECK(dsv3::sigmoid(-infinity) == 0.0f);
  CHECK(dsv3::sigmoid(-100.0f) > 0.0f);
  CHECK(std::isnan(dsv3::sigmoid(none)));
  CHECK(dsv3::sigmoid(0.0) == 0.5);
  CHECK(dsv3::sigmoid(-700.0) == doctest::Approx(std::exp(-700.0)).epsilon(1e-15));
  CHECK(dsv3::sigmoid(700.0) == 1.0);
}

TEST_CASE("Probabilities stay probabilities: exp(-x) <= 1 <= exp(x), 0 <= sigmoid <= 1") {
  for (std::uint32_t bits = 0; bits < 0x7F800000u; bits += 1021) {
    const float x = __builtin_bit_cast(float, bits);
    REQUIRE(dsv3::exp(-x) <= 1.0f);
    REQUIRE(dsv3::exp(x) >= 1.0f);
    REQUIRE(dsv3::sigmoid(-x) >= 0.0f);
    REQUIRE(dsv3::sigmoid(-x) <= 0.5f);
    REQUIRE(dsv3::sigmoid(x) >= 0.5f);
    REQUIRE(dsv3::sigmoid(x) <= 1.0f);
  }
}

TEST_CASE("fma rounds once where the machine has the instruction") {
  // Volatile: a compiler that knows the values may fuse them while it compiles.
  const volatile float from_a = 1 + 0x1p-12f, from_c = -(1 + 0x1p-11f);
  const float a = from_a, c = from_c;
#if defined(__FMA__)
  CHECK(dsv3::fma(a, a, c) == 0x1p-24f);
#else
  CHECK(dsv3::fma(a, a, c) == 0.0f);  // the tie was rounded to even before the addition
#endif
  CHECK(dsv3::fma(2.0, 3.0, 4.0) == 10.0);
  CHECK(dsv3::sqrt(9.0f) == 3.0f);
  CHECK(dsv3::sqrt(2.0) == std::sqrt(2.0));
}
