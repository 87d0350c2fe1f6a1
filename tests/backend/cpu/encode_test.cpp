#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <dsv3/backend/cpu.hpp>
#include <dsv3/core/philox.hpp>
#include <dsv3/nn/quantize.hpp>
#include <limits>
#include <vector>

using namespace dsv3;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float none = std::numeric_limits<float>::quiet_NaN();

float from_bits(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

// A matrix and its codes by quantize_rows, or by the row kernel; 5 elements between rows, and one
// scale, which are not to be touched.
template <class T, class C>
struct Case {
  Index rows, columns, width;
  std::vector<T> x;
  std::vector<C> codes;
  std::vector<float> scales;

  Case(Index r, Index c, Index w)
      : rows(r),
        columns(c),
        width(w),
        x(static_cast<std::size_t>(r * (c + 5)), T(none)),
        codes(x.size()),
        scales(static_cast<std::size_t>(r * (groups_of(c, w) + 1))) {
    const Philox philox(8, static_cast<std::uint64_t>(c));
    std::uint64_t at = 0;
    for (Index i = 0; i < r; ++i)
      for (Index j = 0; j < c; ++j) {
        const auto block = philox(at++);
        (*this)(i, j) = T((2 * uniform(block.word[0]) - 1) * std::exp2(uniform(block.word[1]) * 9));
      }
  }

  T& operator()(Index i, Index j) { return x[static_cast<std::size_t>(i * (columns + 5) + j)]; }
  View<const T, 2> view() const {
    View<const T, 2> v(x.data(), {rows, columns});
    v.strides[0] = columns + 5;
    return v;
  }
  Quantized<C> output() {
    for (C& c : codes) c.code = 0xAB;
    std::fill(scales.begin(), scales.end(), -7.0f);
    View<C, 2> v(codes.data(), {rows, columns});
    v.strides[0] = columns + 5;
    Scales<float> s(scales.data(), rows, groups_of(columns, width));
    s.strides[0] += 1;
    return {v, s, 1, width};
  }

  // Whether both have the same codes and scales, to the bit.
  bool agrees(Cpu& cpu, const ScaleRule& rule) {
    for_each_row(cpu, rows, detail::QuantizeRow<T, C, RoundNearest>{view(), output(), rule, {}});
    const auto expected = codes;
    const auto expected_scales = scales;
    quantize_rows(cpu, view(), output(), rule);
    const auto same = [](const auto& a, const auto& b) {
      return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    return same(codes, expected) && same(scales, expected_scales);
  }
};

template <class T, class C>
void compare() {
  Cpu cpu(2);
  const ScaleRule rules[] = {{}, {1e-4, false}, {0, true}};
  Index wrong = 0;
  for (const Index width : {1, 32, 64, 128, 256, 1000})
    for (const Index columns : {1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 259, 700})
      for (const ScaleRule& rule : rules) wrong += !Case<T, C>(3, columns, width).agrees(cpu, rule);
  wrong += !Case<T, C>(2, 70 * 32 + 5, 32).agrees(cpu, {});  // more than 64 groups in a row
  wrong += !Case<T, C>(0, 5, 32).agrees(cpu, {});
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("quantize_rows has the bits of the row kernel") {
  SUBCASE("bf16 to e4m3") { compare<bf16, e4m3>(); }
  SUBCASE("float to e4m3") { compare<float, e4m3>(); }
  SUBCASE("bf16 to e5m2") { compare<bf16, e5m2>(); }
  SUBCASE("float to e5m2") { compare<float, e5m2>(); }
}

TEST_CASE_TEMPLATE("So it has for zeros, subnormals, NaN and infinity", T, bf16, float) {
  Cpu cpu(1);
  Case<T, e4m3> x(6, 300, 128);
  for (Index j = 0; j < 300; ++j) {
    x(0, j) = T(j % 2 ? 0.0f : -0.0f);
    x(1, j) = T(j % 2 ? 1e-39f : -1e-37f);  // the scale would be subnormal
  }
  x(2, 77) = T(none);
  x(3, 3) = T(infinity);
  x(3, 150) = T(-infinity);
  x(4, 299) = T(-none);
  x(5, 128) = T(infinity);
  x(5, 129) = T(none);
  for (const ScaleRule& rule : {ScaleRule{}, ScaleRule{1e-4, false}, ScaleRule{0, true}})
    CHECK(x.agrees(cpu, rule));
}

TEST_CASE_TEMPLATE("At scale 1 the codes are those of the cast, for every float that has one", Code,
                   e4m3, e5m2) {
  // Every 257th bit pattern up to where the largest code ends, or all of them.
  const std::uint64_t step = std::getenv("DSV3_LONG_TESTS") ? 1 : 257;
  const auto end = std::uint64_t{__builtin_bit_cast(std::uint32_t, Code::max * 1.001f)};
  constexpr Index block = 1024;
  std::vector<float> x(block);
  std::vector<Code> codes(block);
  Index wrong = 0;
  for (std::uint64_t bits = 0; bits < end; bits += block * step)
    for (const std::uint32_t sign : {0u, 0x80000000u}) {
      for (Index i = 0; i < block; ++i) {
        const std::uint64_t at = std::min(bits + static_cast<std::uint64_t>(i) * step, end);
        x[static_cast<std::size_t>(i)] = from_bits(static_cast<std::uint32_t>(at) | sign);
      }
      detail::encode_group(x.data(), codes.data(), block, 1.0f, 0);
      for (std::size_t i = 0; i < x.size(); ++i) wrong += codes[i].code != Code(x[i]).code;
    }
  CHECK(wrong == 0);
}

TEST_CASE("The codes do not depend on threads") {
  Case<bf16, e4m3> x(37, 259, 128);
  Cpu one(1);
  const auto codes_of = [&](Cpu& cpu) {
    quantize_rows(cpu, x.view(), x.output(), {});
    return x.codes;
  };
  const auto expected = codes_of(one);
  for (const int threads : {2, 3, 5}) {
    Cpu cpu(threads);
    const auto codes = codes_of(cpu);
    CHECK(std::memcmp(codes.data(), expected.data(), codes.size()) == 0);
  }
}
