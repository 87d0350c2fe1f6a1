#include <doctest/doctest.h>

#include <cmath>
#include <dsv3/io/dtype.hpp>
#include <span>
#include <vector>

using namespace dsv3;

namespace {

// Converts from an address that is aligned to nothing.
template <class To, class From>
std::vector<To> convert(DType dtype, std::vector<From> values) {
  const auto all = std::as_bytes(std::span(values));
  std::vector<std::byte> bytes(1);
  bytes.insert(bytes.end(), all.begin(), all.end());
  std::vector<To> to(values.size());
  convert_elements(dtype, bytes.data() + 1, to.data(), static_cast<Index>(to.size()));
  return to;
}

using Doubles = std::vector<double>;

}  // namespace

TEST_CASE("DType has safetensors' names, sizes and order of rank") {
  CHECK(dtype_name(DType::f8_e4m3) == std::string("F8_E4M3"));
  for (std::size_t i = 0; i < detail::dtypes.size(); ++i) {
    const auto& facts = detail::dtypes[i];
    CHECK(facts.dtype == static_cast<DType>(i));
    CHECK(parse_dtype(facts.name) == facts.dtype);
  }
  CHECK(parse_dtype("BF17") == std::nullopt);
  CHECK(DType::i64 > DType::f64);
  CHECK(DType::f8_e4m3 > DType::f8_e5m2);
}

TEST_CASE("convert_elements widens every real type exactly") {
  CHECK(convert<double>(DType::f64, Doubles{0.1, -3}) == Doubles{0.1, -3});
  CHECK(convert<double>(DType::f32, std::vector<float>{0.1f, -3}) == Doubles{0.1f, -3});
  CHECK(convert<double>(DType::bf16, std::vector<std::uint16_t>{0x3F80, 0xC040}) == Doubles{1, -3});
  // One, the largest, the smallest normal, the smallest subnormal, -0.
  CHECK(convert<double>(DType::f16, std::vector<std::uint16_t>{0x3C00, 0x7BFF, 0x0400, 0x0001}) ==
        Doubles{1, 65504, 0x1p-14, 0x1p-24});
  CHECK(std::signbit(convert<float>(DType::f16, std::vector<std::uint16_t>{0x8000})[0]));
  CHECK(std::isinf(convert<float>(DType::f16, std::vector<std::uint16_t>{0x7C00})[0]));
  CHECK(std::isnan(convert<float>(DType::f16, std::vector<std::uint16_t>{0x7C01})[0]));
  using Codes = std::vector<std::uint8_t>;
  CHECK(convert<double>(DType::f8_e4m3, Codes{0x38, 0x7E, 0x81}) == Doubles{1, 448, -0x1p-9});
  CHECK(convert<double>(DType::f8_e5m2, Codes{0x3C, 0x7B}) == Doubles{1, 57344});
  CHECK(convert<double>(DType::f8_e8m0, Codes{127, 0, 254}) == Doubles{1, 0x1p-127, 0x1p127});
  CHECK(std::isnan(convert<float>(DType::f8_e8m0, Codes{255})[0]));
}

TEST_CASE("convert_elements rounds to narrower types") {
  CHECK(convert<float>(DType::f64, Doubles{0.1})[0] == 0.1f);
  CHECK(float(convert<bf16>(DType::f32, std::vector<float>{1.00390625f})[0]) == 1.0f);  // a tie
  CHECK(convert<bf16>(DType::bf16, std::vector<std::uint16_t>{0x1234})[0].bits == 0x1234);
  CHECK(convert<e4m3>(DType::f32, std::vector<float>{-1.0625f})[0].code == 0xB8);  // a tie
  CHECK(convert<e4m3>(DType::f64, Doubles{1e9})[0].code == 0x7E);
  CHECK(convert<e4m3>(DType::f8_e4m3, std::vector<std::uint8_t>{0xFF})[0].code == 0xFF);
}

TEST_CASE("convert_elements takes integers only to integers that hold them") {
  using Long = std::vector<std::int64_t>;
  CHECK(convert<std::int32_t>(DType::i64, Long{-2147483648, 2147483647}) ==
        std::vector<std::int32_t>{-2147483647 - 1, 2147483647});
  CHECK(convert<std::int64_t>(DType::u8, std::vector<std::uint8_t>{255}) == Long{255});
  CHECK(convert<Index>(DType::i64, Long{-5}) == std::vector<Index>{-5});
  CHECK_THROWS_WITH_AS(convert<std::int32_t>(DType::i64, Long{2147483648}),
                       "value (2147483648) does not fit into I32", std::invalid_argument);
  CHECK_THROWS_WITH_AS(convert<std::uint8_t>(DType::i32, std::vector<std::int32_t>{-1}),
                       "value (-1) does not fit into U8", std::invalid_argument);
  CHECK_THROWS_WITH_AS(convert<double>(DType::i64, Long{1}), "dtype I64 must be a real type",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(convert<std::int64_t>(DType::f32, std::vector<float>{1}),
                       "dtype F32 must be an integer type", std::invalid_argument);
}
