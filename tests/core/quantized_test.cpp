#include <doctest/doctest.h>

#include <cmath>
#include <dsv3/core/quantized.hpp>
#include <limits>
#include <vector>

using namespace dsv3;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float none = std::numeric_limits<float>::quiet_NaN();

// Codes whose values are 1, so that an element is its scale.
std::vector<e4m3> ones(Index n) {
  return std::vector<e4m3>(static_cast<std::size_t>(n), e4m3(1.0f));
}

}  // namespace

TEST_CASE("An element of Quantized is its code times the scale of its group") {
  const std::vector<e4m3> codes = {e4m3(1.0f), e4m3(2.0f), e4m3(3.0f),  //
                                   e4m3(4.0f), e4m3(5.0f), e4m3(6.0f),  //
                                   e4m3(7.0f), e4m3(8.0f), e4m3(9.0f)};
  const float scales[] = {1, 10, 100, 1000};
  const Quantized<const e4m3> q({codes.data(), {3, 3}}, {scales, 2, 2}, 2, 2);
  const float expected[3][3] = {{1, 2, 30}, {4, 5, 60}, {700, 800, 9000}};
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 3; ++j) CHECK(q(i, j) == expected[i][j]);
  SUBCASE("rows begin at a group") {
    const auto last = q.rows(2, 1);
    CHECK(last.extent(0) == 1);
    CHECK(last.scales.extents[0] == 1);
    CHECK(last(0, 0) == 700.0f);
    CHECK(last(0, 2) == 9000.0f);
  }
  SUBCASE("scales may lie column by column") {
    auto by_column = q;
    by_column.scales.strides[0] = 1, by_column.scales.strides[1] = 2;
    CHECK(by_column(0, 2) == 300.0f);
    CHECK(by_column(2, 0) == 70.0f);
    CHECK(by_column.rows(2, 1)(0, 2) == 9000.0f);
  }
}

TEST_CASE("Groups of rows begin anew at each segment, and segments share no scale") {
  // Segments of 0, 3, 1, 0, 4 and 0 rows in groups of 2: rows 0 1 | 2, 3, 4 5 | 6 7.
  const Index offsets[] = {0, 0, 3, 4, 4, 8, 8};
  const auto codes = ones(8);
  std::vector<float> scales(8 / 2 + 6, none);
  const Quantized<const e4m3> q({codes.data(), {8, 1}}, {scales.data(), 10, 1}, 2, 1);
  float next = 1;
  for (Index e = 0; e < 6; ++e) {
    const Index count = offsets[e + 1] - offsets[e];
    const auto part = q.segment(e, offsets[e], count);
    CHECK(part.scales.extents[0] == (count + 1) / 2);
    for (Index g = 0; g < part.scales.extents[0]; ++g) {
      auto& scale = const_cast<float&>(part.scales(g, 0));
      CHECK(std::isnan(scale));  // no other segment has it
      scale = next++;
    }
  }
  CHECK(q.segment(1, 0, 3)(1, 0) == 1.0f);
  CHECK(q.segment(1, 0, 3)(2, 0) == 2.0f);
  CHECK(q.segment(2, 3, 1)(0, 0) == 3.0f);
  CHECK(q.segment(4, 4, 4)(3, 0) == 5.0f);
  SUBCASE("one scale serves all segments") {
    scales[0] = 7;
    const Quantized<const e4m3> whole({codes.data(), {8, 1}}, {scales.data(), 1, 1}, 8, 1);
    for (Index e = 0; e < 5; ++e) CHECK(whole.segment(e, offsets[e], 3)(2, 0) == 7.0f);
  }
}

TEST_CASE("The scales of a stack lie expert by expert") {
  const auto codes = ones(2 * 3 * 5);
  const float scales[] = {1, 2, 3, 4, 5, 6, 7, 8};  // 2 experts of 2 x 2 groups
  const QuantizedStack<const e4m3> stack({codes.data(), {2, 3, 5}}, {scales, 4, 2}, 2, 3);
  CHECK(stack[0](0, 0) == 1.0f);
  CHECK(stack[0](2, 4) == 4.0f);
  CHECK(stack[1](0, 0) == 5.0f);
  CHECK(stack[1](1, 3) == 6.0f);
  CHECK(stack[1](2, 4) == 8.0f);
  CHECK(stack[1].scales.extents[0] == 2);
}

TEST_CASE("Storage has one scale for each group, and for each segment's last group") {
  std::vector<std::byte> memory(1 << 16);
  Arena arena(memory.data(), 1 << 16);
  const auto groups = [](const auto& q) {
    return std::vector<Index>{q.scales.extents[0], q.scales.extents[1], q.group_rows,
                              q.group_columns};
  };
  using List = std::vector<Index>;
  CHECK(groups(take_quantized<e4m3>(arena, 3, 300, 1, 128)) == List{3, 3, 1, 128});
  CHECK(groups(take_quantized<e4m3>(arena, 130, 7, 128, 128)) == List{2, 1, 128, 128});
  CHECK(groups(take_quantized<e4m3>(arena, 3, 7, 0, 0)) == List{1, 1, 3, 7});
  CHECK(groups(take_segments<e4m3>(arena, 300, 7, 4, 128)) == List{6, 7, 128, 1});
  CHECK(groups(take_segments<e4m3>(arena, 300, 7, 4, 0)) == List{1, 1, 300, 7});
  CHECK(groups(take_quantized_stack<e4m3>(arena, 4, 130, 7, 128, 128)) == List{8, 1, 128, 128});
  CHECK(groups(take_quantized_stack<e4m3>(arena, 4, 130, 7, 0, 0)) == List{4, 1, 130, 7});
}

TEST_CASE("A scale maps the largest magnitude to the format's largest value") {
  const ScaleRule train;
  CHECK(train.scale<e4m3>(448) == 1.0f);
  CHECK(train.scale<e4m3>(3) == 3.0f / 448);
  CHECK(train.scale<e5m2>(57344 * 4) == 4.0f);
  CHECK(train.scale<e5m6>(65024) == 1.0f);
  CHECK(train.scale<double>(1e30) == 1.0);
  const ScaleRule power{.amax_min = 0, .power_of_two = true};
  CHECK(power.scale<e4m3>(448) == 1.0f);
  CHECK(power.scale<e4m3>(449) == 2.0f);
  CHECK(power.scale<e4m3>(3) == 0x1p-7f);  // 3 / 448 = 0.86 * 2^-7
}

TEST_CASE("Where the scale would be zero or subnormal it is 1") {
  const ScaleRule train, power{.amax_min = 0, .power_of_two = true};
  const float least = 448 * std::numeric_limits<float>::min();  // whose scale is the least normal
  for (const ScaleRule& rule : {train, power}) {
    CHECK(rule.scale<e4m3>(0) == 1.0f);
    CHECK(rule.scale<e4m3>(std::numeric_limits<float>::denorm_min()) == 1.0f);
    CHECK(rule.scale<e4m3>(std::nextafter(least, 0.0f)) == 1.0f);
    CHECK(rule.scale<e4m3>(least) == std::numeric_limits<float>::min());
  }
}

TEST_CASE("amax_min bounds the scale from below") {
  const ScaleRule parity{.amax_min = 1e-4}, power{.amax_min = 1e-4, .power_of_two = true};
  CHECK(parity.scale<e4m3>(0) == 1e-4f / 448);
  CHECK(parity.scale<e4m3>(1e-5f) == 1e-4f / 448);
  CHECK(parity.scale<e4m3>(2e-4f) == 2e-4f / 448);
  CHECK(power.scale<e4m3>(0) == 0x1p-22f);
}

TEST_CASE("Scales of NaN and infinity are NaN and infinity") {
  for (const bool power_of_two : {false, true})
    for (const double amax_min : {0.0, 1e-4}) {
      const ScaleRule rule{amax_min, power_of_two};
      CHECK(rule.scale<e4m3>(infinity) == infinity);
      CHECK(std::isnan(rule.scale<e4m3>(none)));
    }
}
