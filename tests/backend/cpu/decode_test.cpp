#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <dsv3/backend/cpu/decode.hpp>
#include <vector>

using namespace dsv3;

namespace {

std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }
std::uint32_t bits_of(bf16 x) { return x.bits; }

// Decodes n codes that lie `skew` bytes behind an aligned address and begin with `first`; returns
// how many differ from those decoded one by one, or lie beyond the end.
template <class Code, class To>
Index differences(Index n, Index skew, unsigned first) {
  alignas(64) Code from[512];
  alignas(64) To to[512];
  const To untouched(-7.0f);
  for (Index i = 0; i < 512; ++i) {
    from[i].code = static_cast<std::uint8_t>(first + static_cast<unsigned>(i - skew));
    to[i] = untouched;
  }
  detail::decode_row(from + skew, to + skew, n);
  Index wrong = 0;
  for (Index i = 0; i < 512; ++i) {
    const float value = float(from[i]);
    if (i < skew || i >= skew + n)
      wrong += bits_of(to[i]) != bits_of(untouched);
    else if (std::isnan(value))
      wrong += !std::isnan(float(to[i]));
    else
      wrong += bits_of(to[i]) != bits_of(To(value));
  }
  return wrong;
}

template <class Code, class To>
void check_decode() {
  Index wrong = 0;
  for (Index n = 0; n <= 200; ++n)  // whole vectors of every width, and every tail
    for (Index skew = 0; skew < 64; skew += skew < 4 ? 1 : 15)
      wrong += differences<Code, To>(n, skew, static_cast<unsigned>(37 * n));
  for (unsigned first = 0; first < 256; ++first)  // every code in every lane
    wrong += differences<Code, To>(256, 1, first);
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("decode_row is the decoding of each code: finite ones to the bit, NaN as NaN") {
  SUBCASE("e4m3 to bf16") { check_decode<e4m3, bf16>(); }
  SUBCASE("e4m3 to float") { check_decode<e4m3, float>(); }
  SUBCASE("e5m2 to bf16") { check_decode<e5m2, bf16>(); }
  SUBCASE("e5m2 to float") { check_decode<e5m2, float>(); }
}

TEST_CASE("bf16 holds every code exactly") {
  for (unsigned i = 0; i < 256; ++i) {
    e4m3 a;
    e5m2 b;
    a.code = b.code = static_cast<std::uint8_t>(i);
    if (!std::isnan(float(a))) CHECK(float(bf16(float(a))) == float(a));
    if (!std::isnan(float(b))) CHECK(float(bf16(float(b))) == float(b));
  }
}
