#include <algorithm>
#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/rope.hpp>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

ModelConfig rope_config(Index width) {
  ModelConfig c;
  c.qk_rope_head_dim = width;
  return c;
}

doctest::Approx digits10(double value) { return doctest::Approx(value).epsilon(6e-10); }

// The other layout: pairs (x_i, x_{i + d/2}) instead of (x_{2i}, x_{2i+1}).
std::vector<double> half_split(const std::vector<double>& x, const ModelConfig& c, Index position) {
  const auto table = rope_table<double>(c, position + 1);
  const std::size_t half = x.size() / 2, row = static_cast<std::size_t>(position) * 2 * half;
  std::vector<double> y(x.size());
  for (std::size_t i = 0; i < half; ++i) {
    const double cos = table[row + i], sin = table[row + half + i];
    y[i] = x[i] * cos - x[i + half] * sin;
    y[i + half] = x[i + half] * cos + x[i] * sin;
  }
  return y;
}

// P of spec 3.2: even elements first, then odd ones.
std::vector<double> even_then_odd(const std::vector<double>& x) {
  std::vector<double> y(x.size());
  for (std::size_t j = 0; j < x.size() / 2; ++j) {
    y[j] = x[2 * j];
    y[j + x.size() / 2] = x[2 * j + 1];
  }
  return y;
}

}  // namespace

TEST_CASE("Rope turns each pair by position times frequency") {
  // theta^(-2i/d) with d = 4 and theta = 10000: 1 and 1/100 radian per token.
  const auto frequencies = rope_frequencies(rope_config(4));
  CHECK(frequencies[0] == 1.0);
  CHECK(frequencies[1] == doctest::Approx(0.01).epsilon(1e-15));
  const auto table = rope_table<double>(rope_config(4), 8);
  const std::int32_t position[] = {7, 0};
  double x[] = {1, 0, 0, 1, 5, 6, 7, 8}, y[8];
  EigenCpu backend;
  Rope<double>{}.forward(backend, {x, {2, 1, 4}}, {table.data(), {8, 2, 2}}, {position, {2}},
                         {y, {2, 1, 4}});
  CHECK(y[0] == doctest::Approx(std::cos(7.0)).epsilon(1e-15));
  CHECK(y[1] == doctest::Approx(std::sin(7.0)).epsilon(1e-15));
  CHECK(y[2] == doctest::Approx(-std::sin(0.07)).epsilon(1e-14));
  CHECK(y[3] == doctest::Approx(std::cos(0.07)).epsilon(1e-15));
  for (int i = 4; i < 8; ++i) CHECK(y[i] == x[i]);  // position 0: nothing turns
}

TEST_CASE("Rope leaves the features before the last qk_rope_head_dim alone, and works in place") {
  Memory memory;
  EigenCpu backend;
  const auto table = rope_table<float>(rope_config(6), 5);
  const View<const float, 3> turns(table.data(), {5, 2, 3});
  const std::int32_t position[] = {4, 1, 2};
  const auto x = memory.random<float>({3, 2, 11}), y = memory.random<float>({3, 2, 11});
  const auto kept = memory.empty<float>({3, 2, 11});
  std::copy_n(y.data, y.size(), kept.data);
  Rope<float>{}.forward(backend, x, turns, {position, {3}}, y);
  Rope<float>{}.forward(backend, x, turns, {position, {3}}, x);
  for (Index t = 0; t < 3; ++t)
    for (Index head = 0; head < 2; ++head)
      for (Index d = 0; d < 11; ++d) {
        if (d < 5)
          CHECK(y(t, head, d) == kept(t, head, d));
        else
          CHECK(y(t, head, d) == x(t, head, d));
      }
}

TEST_CASE("Rope of x, permuted, is the half-split rotation of permuted x, so scores agree") {
  const ModelConfig c = rope_config(8);
  const auto table = rope_table<double>(c, 60);
  const View<const double, 3> turns(table.data(), {60, 2, 4});
  EigenCpu backend;
  Memory memory;
  const auto rotate = [&](const View<double, 1>& x, std::int32_t position) {
    std::vector<double> y(8);
    Rope<double>{}.forward(backend, {x.data, {1, 1, 8}}, turns, {&position, {1}},
                           {y.data(), {1, 1, 8}});
    return y;
  };
  const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  const auto q = memory.random<double>({8}), k = memory.random<double>({8});
  const std::vector<double> qs(q.data, q.data + 8), ks(k.data, k.data + 8);
  const auto turned_q = rotate(q, 53), turned_k = rotate(k, 20);
  const auto half_q = half_split(even_then_odd(qs), c, 53);
  const auto half_k = half_split(even_then_odd(ks), c, 20);
  for (std::size_t i = 0; i < 8; ++i)  // two products and a sum below 2: one rounding each
    CHECK(std::abs(half_q[i] - even_then_odd(turned_q)[i]) < 1e-15);
  CHECK(dot(turned_q, turned_k) == doctest::Approx(dot(half_q, half_k)).epsilon(1e-14));
  // Only the difference of positions matters. Angles up to 53 are rounded to 1e-14.
  CHECK(dot(turned_q, turned_k) == doctest::Approx(dot(rotate(q, 33), ks)).epsilon(1e-12));
}

TEST_CASE_TEMPLATE("Rope::backward agrees with central differences", Backend, EigenCpu, Cpu) {
  Backend backend;
  Memory memory;
  const auto table = rope_table<double>(rope_config(6), 9);
  const View<const double, 3> turns(table.data(), {9, 2, 3});
  const std::int32_t position[] = {0, 8, 3};
  const auto x = memory.random<double>({3, 2, 6}), dy = memory.random<double>({3, 2, 6});
  const auto y = memory.empty<double>({3, 2, 6}), dx = memory.empty<double>({3, 2, 6});
  Rope<double>{}.backward(backend, dy, turns, {position, {3}}, dx);
  check_differences("x", x.flat(), dx.flat(), [&] {
    Rope<double>{}.forward(backend, x, turns, {position, {3}}, y);
    double sum = 0;
    for (Index i = 0; i < y.size(); ++i) sum += y.data[i] * dy.data[i];
    return sum;
  });
}

TEST_CASE("YaRN has DeepSeek-V3's frequencies and scale") {
  const ModelConfig& c = presets::deepseek_v3;
  const auto f = rope_frequencies(c);
  const auto plain = rope_frequencies(rope_config(64));
  REQUIRE(f.size() == 32);
  for (std::size_t i = 0; i <= 10; ++i) CHECK(f[i] == plain[i]);
  for (std::size_t i = 23; i < 32; ++i) CHECK(f[i] == plain[i] / 40);
  const double between[] = {3.900692657e-2, 2.687936011e-2, 1.837814622e-2, 1.244795587e-2,
                            8.334508951e-3, 5.5e-3,         3.561997494e-3, 2.249365301e-3,
                            1.370513636e-3, 7.905694150e-4, 4.149903985e-4, 1.778279410e-4};
  for (std::size_t i = 0; i < 12; ++i) CHECK(f[11 + i] == digits10(between[i]));
  CHECK(yarn_mscale(40, 1) == doctest::Approx(1.3688879454113936).epsilon(1e-15));
  CHECK(softmax_scale(c) == doctest::Approx(0.1352337788608801).epsilon(1e-14));
  CHECK(rope_multiplier(c) == 1.0);
}

TEST_CASE("YaRN has DeepSeek-V2-Lite's scale, and that of a config without mscale") {
  CHECK(yarn_mscale(40, 0.707) == digits10(1.2608037774));
  CHECK(softmax_scale(presets::deepseek_v2_lite) == digits10(0.1147213868));
  ModelConfig c = presets::deepseek_v3;
  c.rope_scaling.mscale_given = false;  // then cos and sin carry it
  CHECK(softmax_scale(c) == 1 / std::sqrt(192.0));
  CHECK(rope_multiplier(c) == yarn_mscale(40, 1));
  c.rope_scaling = {};
  CHECK(softmax_scale(c) == 1 / std::sqrt(192.0));
  CHECK(rope_multiplier(c) == 1.0);
  c.rope_scaling = presets::deepseek_yarn;
  c.rope_scaling.factor = 1;  // no stretch: no temperature
  CHECK(softmax_scale(c) == 1 / std::sqrt(192.0));
}
