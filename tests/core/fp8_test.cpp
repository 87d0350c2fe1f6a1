#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <dsv3/backend/host.hpp>
#include <dsv3/core/philox.hpp>
#include <dsv3/core/scalar.hpp>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

using namespace dsv3;

namespace {

float from_bits(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float none = std::numeric_limits<float>::quiet_NaN();

// A format as spec 7.1 tabulates it, and the value of every finite code from the definition.
struct Table {
  int mantissa, bias;
  unsigned max_code, overflow_code, sign_bit;
  std::vector<double> value;  // of the codes 0 ... max_code and of the one that would follow

  Table(int exponent_bits, int m, unsigned max, unsigned overflow)
      : mantissa(m),
        bias((1 << (exponent_bits - 1)) - 1),
        max_code(max),
        overflow_code(overflow),
        sign_bit(1u << (exponent_bits + m)) {
    for (unsigned code = 0; code <= max + 1; ++code) {
      const int exponent = static_cast<int>(code >> m);
      const double fraction = static_cast<double>(code & ((1u << m) - 1)) / (1 << m);
      value.push_back(exponent == 0 ? std::ldexp(fraction, 1 - bias)
                                    : std::ldexp(1 + fraction, exponent - bias));
    }
  }

  // Half way between a code and the next.
  double middle(unsigned code) const { return (value[code] + value[code + 1]) / 2; }
  unsigned nan_code() const { return sign_bit - 1; }
};

template <class Code>
const Table& table();
template <>
const Table& table<e4m3>() {
  static const Table t(4, 3, 0x7E, 0x7F);
  return t;
}
template <>
const Table& table<e5m2>() {
  static const Table t(5, 2, 0x7B, 0x7C);
  return t;
}
template <>
const Table& table<e5m6>() {
  static const Table t(5, 6, 0x7BF, 0x7C0);
  return t;
}

// The nearest codes, ties to even, of magnitudes that come in ascending order.
struct Nearest {
  const Table& table;
  unsigned at = 0;  // max_code + 1: beyond the largest

  unsigned next(double magnitude, Overflow overflow) {
    while (at <= table.max_code &&
           (magnitude > table.middle(at) || (magnitude == table.middle(at) && at % 2 == 1)))
      ++at;
    if (at <= table.max_code) return at;
    return overflow == Overflow::saturate ? table.max_code : table.overflow_code;
  }
};

template <class Code, Overflow overflow>
[[gnu::noinline]] Code encode_alone(float x) {
  return Code(x, overflow);
}

// How often a code is not that of the table, among the float bits begin, begin + step, ... below
// end, all of one sign. A loop as kernels have it, and calls one by one.
template <class Code, Overflow overflow>
Index mistakes(std::uint64_t begin, std::uint64_t end, std::uint64_t step) {
  constexpr Index block = 1024;
  float x[block];
  Code codes[block];
  Nearest nearest{table<Code>()};
  Index wrong = 0;
  for (std::uint64_t bits = begin; bits < end; bits += block * step) {
    for (Index i = 0; i < block; ++i)
      x[i] = from_bits(static_cast<std::uint32_t>(bits + static_cast<std::uint64_t>(i) * step));
    SerialTeam{}.each(block, [&](Index i) { codes[i] = Code(x[i], overflow); });
    for (Index i = 0; i < block && bits + static_cast<std::uint64_t>(i) * step < end; ++i) {
      const unsigned size = std::isnan(x[i]) ? nearest.table.nan_code()
                                             : nearest.next(std::abs(double(x[i])), overflow);
      const unsigned expected = size | (std::signbit(x[i]) ? nearest.table.sign_bit : 0u);
      wrong += codes[i].code != expected;
      wrong += encode_alone<Code, overflow>(x[i]).code != expected;
    }
  }
  return wrong;
}

// The same over the bits 0, step, 2 step, ... of both signs, by all threads of the machine.
template <class Code, Overflow overflow>
Index mistakes_of_all(std::uint64_t step) {
  const std::uint64_t parts = 16, each = (std::uint64_t{1} << 32) / parts;  // 8 of either sign
  std::vector<Index> wrong(parts);
  std::vector<std::thread> threads;
  const std::uint64_t workers = std::max(1u, std::thread::hardware_concurrency());
  for (std::uint64_t worker = 0; worker < workers; ++worker)
    threads.emplace_back([&, worker] {
      for (std::uint64_t part = worker; part < parts; part += workers) {
        const std::uint64_t begin = (part * each + step - 1) / step * step;
        wrong[part] = mistakes<Code, overflow>(begin, (part + 1) * each, step);
      }
    });
  for (auto& thread : threads) thread.join();
  Index total = 0;
  for (const Index n : wrong) total += n;
  return total;
}

}  // namespace

TEST_CASE_TEMPLATE("Encoding takes the nearest code for every float, ties to even", Code, e4m3,
                   e5m2, e5m6) {
  // Every 257th bit pattern, or all of them. 257 is odd: every exponent and both signs occur, with
  // ever other low bits.
  const std::uint64_t step = std::getenv("DSV3_LONG_TESTS") ? 1 : 257;
  CHECK((mistakes_of_all<Code, Overflow::saturate>(step)) == 0);
  CHECK((mistakes_of_all<Code, Overflow::propagate>(step)) == 0);
}

TEST_CASE_TEMPLATE("Encoding takes the nearest code for every bf16, ties among them", Code, e4m3,
                   e5m2, e5m6) {
  CHECK((mistakes_of_all<Code, Overflow::saturate>(65536)) == 0);
  CHECK((mistakes_of_all<Code, Overflow::propagate>(65536)) == 0);
}

TEST_CASE_TEMPLATE("Between two codes the midpoint decides, and the floats beside it", Code, e4m3,
                   e5m2, e5m6) {
  const Table& t = table<Code>();
  for (unsigned code = 0; code <= t.max_code; ++code) {
    const auto middle = static_cast<float>(t.middle(code));
    REQUIRE(double(middle) == t.middle(code));
    const auto encode = [](float x) { return unsigned{Code(x, Overflow::propagate).code}; };
    const unsigned above = code == t.max_code ? t.overflow_code : code + 1;
    CAPTURE(code);
    CHECK(encode(from_bits(bits_of(middle) - 1)) == code);
    CHECK(encode(middle) == (code % 2 == 0 ? code : above));
    CHECK(encode(from_bits(bits_of(middle) + 1)) == above);
    CHECK(encode(-middle) == (t.sign_bit | encode(middle)));
  }
}

TEST_CASE("e5m6 has 12 bits, of which 6 are mantissa") {
  const std::pair<float, unsigned> vectors[] = {
      {0.0f, 0x000},       {-0.0f, 0x800},  // sign
      {1.0f, 0x3C0},       {1.015625f, 0x3C1},  {-2.0f, 0xC00},
      {1.0078125f, 0x3C0}, {1.0234375f, 0x3C2},                  // ties, to even
      {65024, 0x7BF},      {65279, 0x7BF},      {65280, 0x7BF},  // the last one a tie
      {1e9f, 0x7BF},       {-infinity, 0xFBF},                   // saturates
      {0x1p-14f, 0x040},   {0x1p-20f, 0x001},   {0x1p-21f, 0x000},
      {0x1.8p-20f, 0x002}, {0x1.ffp-15f, 0x040}};
  for (const auto& [x, code] : vectors) {
    const auto value = x;
    CAPTURE(value);
    CHECK(unsigned{e5m6(x).code} == code);
  }
  CHECK(unsigned{e5m6(65279, Overflow::propagate).code} == 0x7BF);
  CHECK(unsigned{e5m6(65280, Overflow::propagate).code} == 0x7C0);
  CHECK(unsigned{e5m6(-infinity, Overflow::propagate).code} == 0xFC0);
  CHECK(unsigned{e5m6(none).code} == 0x7FF);
}

TEST_CASE("All 4096 codes of e5m6 decode by the definition and come back") {
  const Table& t = table<e5m6>();
  for (unsigned code = 0; code < 4096; ++code) {
    CAPTURE(code);
    e5m6 x;
    x.code = static_cast<std::uint16_t>(code);
    const unsigned size = code & 0x7FF;
    if (size > 0x7C0) {
      REQUIRE(std::isnan(float(x)));
    } else if (size == 0x7C0) {
      REQUIRE(float(x) == (code & 0x800 ? -infinity : infinity));
      REQUIRE(e5m6(float(x), Overflow::propagate).code == code);
    } else {
      REQUIRE(std::abs(double(float(x))) == t.value[size]);
      REQUIRE(std::signbit(float(x)) == (code >= 0x800));
      REQUIRE(e5m6(float(x)).code == code);
    }
  }
}

TEST_CASE("ue8m0 rounds a positive scale up to a power of two") {
  CHECK(int(ue8m0(1.0f).code) == 127);
  CHECK(int(ue8m0(1.0000001f).code) == 128);
  CHECK(int(ue8m0(0.75f).code) == 127);
  CHECK(int(ue8m0(3.0f).code) == 129);
  CHECK(int(ue8m0(1e-4f / 448).code) == 105);
  for (int exponent = -126; exponent < 128; ++exponent) {
    const float power = std::ldexp(1.0f, exponent);
    CAPTURE(exponent);
    CHECK(int(ue8m0(power).code) == exponent + 127);
    CHECK(float(ue8m0(power)) == power);
    CHECK(int(ue8m0(from_bits(bits_of(power) - 1)).code) == std::max(exponent + 127, 1));
    CHECK(int(ue8m0(from_bits(bits_of(power) + 1)).code) == std::min(exponent + 128, 254));
  }
}

TEST_CASE("ue8m0 keeps to codes 1 to 254, and NaN") {
  CHECK(int(ue8m0(0.0f).code) == 1);
  CHECK(int(ue8m0(from_bits(1)).code) == 1);  // the smallest subnormal
  CHECK(int(ue8m0(std::numeric_limits<float>::max()).code) == 254);
  CHECK(int(ue8m0(infinity).code) == 254);
  CHECK(int(ue8m0(none).code) == 255);
  CHECK(std::isnan(float(ue8m0(none))));
  ue8m0 least;
  least.code = 0;
  CHECK(float(least) == 0x1p-127f);
}

// --- Stochastic rounding ---

namespace {

// Rounds x with n random words: both neighbours of x and nothing else occur, the upper one (away
// from zero) as often as x lies up between them. The count of n independent trials of probability
// p has standard deviation sqrt(n p (1 - p)); five of them are exceeded once in two million cases.
// Words spread evenly over their range round up n p times to within one.
void check_unbiased(double x, double lower, double upper, auto round, int random_bits) {
  constexpr std::uint32_t n = 1 << 16;
  const double p = (x - lower) / (upper - lower);
  const Philox philox(11, 4);
  for (const bool even : {false, true}) {
    std::uint32_t up = 0, elsewhere = 0;
    for (std::uint32_t i = 0; i < n; ++i) {
      const std::uint32_t word = even ? i << (random_bits - 16) : philox(i).word[0];
      const double y = round(static_cast<float>(x), word);
      elsewhere += y != lower && y != upper;
      up += y == upper;
    }
    CAPTURE(x);
    CHECK(elsewhere == 0);
    const double mean = n * p, deviation = std::sqrt(n * p * (1 - p));
    CHECK(std::abs(up - mean) <= (even ? 1 : 5 * deviation));
  }
}

}  // namespace

TEST_CASE_TEMPLATE("Stochastic rounding is exact in the mean, for normal and subnormal values",
                   Code, e4m3, e5m2, e5m6) {
  const Table& t = table<Code>();
  const auto round = [](float x, std::uint32_t word) {
    Code code;
    code.code = static_cast<decltype(code.code)>(Code::format::encode_stochastic(x, word));
    return double(float(code));
  };
  // Among the first codes are zero, subnormals, and the step to normals.
  const unsigned first_normal = 1u << t.mantissa;
  for (const unsigned code : {0u, 1u, first_normal - 1, first_normal, first_normal + 1,
                              5 * first_normal + 1, t.max_code - 1})
    for (const double p : {0.125, 0.3, 0.75, 0.998})
      for (const double sign : {1.0, -1.0}) {
        const double lower = t.value[code], upper = t.value[code + 1];
        const double x = float(lower + p * (upper - lower));
        check_unbiased(sign * x, sign * lower, sign * upper, round, 32);
      }
}

TEST_CASE_TEMPLATE("Stochastic rounding keeps what a code holds, and saturates", Code, e4m3, e5m2,
                   e5m6) {
  const Table& t = table<Code>();
  for (const std::uint32_t word : {0u, 1u, 0x7FFFFFFFu, 0x80000000u, 0xFFFFFFFFu}) {
    const auto encode = [&](float x) { return Code::format::encode_stochastic(x, word); };
    CAPTURE(word);
    for (unsigned code = 0; code <= t.max_code; ++code) {
      REQUIRE(encode(float(t.value[code])) == code);
      REQUIRE(encode(-float(t.value[code])) == (t.sign_bit | code));
    }
    for (const float x : {float(t.middle(t.max_code)), 1e30f, infinity}) {
      CHECK(encode(x) == t.max_code);
      CHECK(encode(-x) == (t.sign_bit | t.max_code));
    }
    CHECK((encode(none) & t.nan_code()) == t.nan_code());
    CHECK(encode(from_bits(1)) == 0);  // 2^-149 has no chance among 2^32 words
    CHECK(encode(-1e-30f) == t.sign_bit);
  }
}

TEST_CASE("bf16_stochastic is exact in the mean, keeps bf16 numbers, infinity and NaN") {
  const auto round = [](float x, std::uint32_t word) { return double(bf16_stochastic(x, word)); };
  for (const std::uint32_t bits : {0x3F80u, 0x4049u, 0x0001u, 0x007Fu, 0x0000u, 0x7F7Eu}) {
    const double lower = from_bits(bits << 16), upper = from_bits((bits + 1) << 16);
    for (const double p : {0.125, 0.3, 0.75, 0.998}) {
      const double x = float(lower + p * (upper - lower));
      check_unbiased(x, lower, upper, round, 16);
      check_unbiased(-x, -lower, -upper, round, 16);
    }
  }
  for (std::uint32_t b = 0; b < 65536; ++b)
    for (const std::uint32_t word : {0u, 0x8000u, 0xFFFFFFFFu}) {
      const bf16 y = bf16_stochastic(from_bits(b << 16), word);
      if ((b & 0x7FFF) > 0x7F80)
        REQUIRE(std::isnan(float(y)));
      else
        REQUIRE(y.bits == b);
    }
}
