#include <doctest/doctest.h>

#include <cmath>
#include <dsv3/core/philox.hpp>
#include <initializer_list>
#include <set>

using namespace dsv3;

namespace {

void check_block(const Philox::Block& counter, std::uint32_t k0, std::uint32_t k1,
                 const Philox::Block& expected) {
  const Philox::Block block = Philox::rounds(counter, k0, k1);
  for (int i = 0; i < 4; ++i) CHECK(block.word[i] == expected.word[i]);
}

// The distribution function of the standard normal, accurate in both tails.
double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

}  // namespace

TEST_CASE("Philox 4x32-10 has its published vectors") {
  check_block({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  check_block({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  check_block({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
              {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST_CASE("A stream is the bare function of its key and counter") {
  const Philox philox(3, 4);
  const std::uint64_t counter = 0x123456789ABCDEFu;
  const auto block = philox(counter);
  check_block({{0x89ABCDEF, 0x1234567, 0, 0}}, philox.key[0], philox.key[1], block);
  constexpr Philox at_compile_time(3, 4);
  static_assert(at_compile_time(7).word[0] != at_compile_time(8).word[0]);
  CHECK(at_compile_time.key[0] == philox.key[0]);
}

TEST_CASE("Neighbouring seeds and streams have keys of their own") {
  std::set<std::uint64_t> keys;
  for (std::uint64_t seed = 0; seed < 100; ++seed)
    for (std::uint64_t stream = 0; stream < 100; ++stream) {
      const Philox philox(seed, stream);
      keys.insert(std::uint64_t{philox.key[1]} << 32 | philox.key[0]);
    }
  CHECK(keys.size() == 10'000);
}

TEST_CASE("hash_name is 64-bit FNV-1a") {
  CHECK(hash_name("") == 0xCBF29CE484222325u);
  CHECK(hash_name("a") == 0xAF63DC4C8601EC8Cu);
  CHECK(hash_name("foobar") == 0x85944171F73967E8u);
}

TEST_CASE("uniform lies in the open interval (0, 1)") {
  CHECK(uniform(0) == 0x1p-33);
  CHECK(uniform(0xFFFFFFFFu) == 1 - 0x1p-33);
  CHECK(uniform(0x80000000u) == 0.5 + 0x1p-33);
}

TEST_CASE("normal_quantile inverts the normal distribution function") {
  CHECK(normal_quantile(0.5) == 0.0f);
  CHECK(normal_quantile(0.975) == doctest::Approx(1.959963985).epsilon(1e-7));
  double worst = 0;
  const auto check = [&](double p) {
    const double x = double(normal_quantile(p));
    // One Newton step is exact to far below the tolerance, in the nearer tail.
    const double density = std::exp(-x * x / 2) / 2.5066282746310005;
    const double error = p < 0.5 ? normal_cdf(x) - p : (1 - p) - normal_cdf(-x);
    const double relative = std::abs(error / density) / std::max(std::abs(x), 1e-3);
    if (!(relative <= worst)) worst = relative;
  };
  for (int i = 1; i < 100'000; ++i) check(i / 100'000.0);
  for (int e = 2; e <= 33; ++e)
    for (const double p : {std::ldexp(1.0, -e), std::ldexp(1.3, -e)}) {
      check(p);
      check(1 - p);
    }
  MESSAGE("largest relative error ", worst);
  CHECK(worst < 1e-6);  // 1e-7 of the rational functions, then some roundings of 2^-24
}

TEST_CASE("normal is standard normal and symmetric") {
  const Philox philox(11, 0);
  double sum = 0, squares = 0, fourth = 0;
  int outside = 0;
  constexpr int n = 200'000;
  for (std::uint64_t i = 0; i < n; ++i) {
    const double x = double(normal(philox, i));
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
    outside += std::abs(x) > 1.959963985;
  }
  const double root = std::sqrt(double(n));  // four standard deviations each
  CHECK(std::abs(sum / n) < 4 / root);
  CHECK(std::abs(squares / n - 1) < 4 * std::sqrt(2.0) / root);
  CHECK(std::abs(fourth / n - 3) < 4 * std::sqrt(96.0) / root);
  CHECK(std::abs(outside / double(n) - 0.05) < 4 * std::sqrt(0.0475) / root);
  // Element i is word i % 4 of block i / 4, whoever asks for it.
  CHECK(normal(philox, 6) == normal_quantile(uniform(philox(1).word[2])));
}
