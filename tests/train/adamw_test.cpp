#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/train/adamw.hpp>
#include <limits>

#include "../nn/fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

constexpr Index chunks(Index n) {
  return (n + detail::optimizer_chunk - 1) / detail::optimizer_chunk;
}

// AdamW as spec 8 writes it, in double.
struct Reference {
  double m = 0, v = 0;

  double step(const AdamW& rule, int t, double w, double g) {
    m = rule.beta1 * m + (1 - rule.beta1) * g;
    v = rule.beta2 * v + (1 - rule.beta2) * g * g;
    const double first = m / (1 - std::pow(rule.beta1, t));
    const double second = v / (1 - std::pow(rule.beta2, t));
    return w - rule.lr * (first / (std::sqrt(second) + rule.eps) + rule.weight_decay * w);
  }
};

AdamW at_step(AdamW rule, int t) {
  rule.correction1 = 1 - std::pow(rule.beta1, t);
  rule.correction2 = 1 - std::pow(rule.beta2, t);
  return rule;
}

}  // namespace

TEST_CASE("The first step of AdamW moves each weight by the learning rate") {
  // m / c1 = g and sqrt(v / c2) = |g|, so that the update is the sign of the gradient.
  double w[] = {1, 1, 1}, m[3] = {}, v[3] = {};
  const double g[] = {3, -1e-3, 0}, norm[] = {1, 1};
  EigenCpu backend;
  const AdamW rule = at_step({.lr = 0.25, .eps = 1e-12, .weight_decay = 0}, 1);
  for_each_row(backend, 1,
               detail::AdamWRow<double, double, double>{
                   {&rule, {1}}, {norm, {2}}, {w, {3}}, {g, {3}}, {m, {3}}, {v, {3}}, {}});
  CHECK(w[0] == doctest::Approx(0.75).epsilon(1e-9));
  CHECK(w[1] == doctest::Approx(1.25).epsilon(1e-8));
  CHECK(w[2] == 1.0);
  CHECK(m[0] == doctest::Approx(0.3).epsilon(1e-15));
  CHECK(v[0] == doctest::Approx(0.45).epsilon(1e-15));
}

TEST_CASE("Weight decay is decoupled: it does not pass through the moments") {
  double w[] = {2}, m[1] = {}, v[1] = {};
  const double g[] = {0}, norm[] = {1, 1};
  EigenCpu backend;
  const AdamW rule = at_step({.lr = 0.5, .weight_decay = 0.1}, 1);
  for_each_row(backend, 1,
               detail::AdamWRow<double, double, double>{
                   {&rule, {1}}, {norm, {2}}, {w, {1}}, {g, {1}}, {m, {1}}, {v, {1}}, {}});
  CHECK(w[0] == doctest::Approx(1.9).epsilon(1e-15));  // 2 - 0.5 * 0.1 * 2
  CHECK(m[0] == 0.0);
}

TEST_CASE_TEMPLATE("AdamW over several chunks and steps follows the definition", T, double, float) {
  Cpu backend(2);
  Memory memory;
  const Index n = detail::optimizer_chunk + 77;
  const auto w = memory.random<T>({n}), g = memory.empty<T>({n});
  const auto m = memory.zeros<T>({n}), v = memory.zeros<T>({n});
  const auto operand = memory.empty<bf16>({n});
  std::vector<Reference> reference(static_cast<std::size_t>(n));
  std::vector<double> expected(w.data, w.data + n);
  const AdamW rule{.lr = 1e-2, .weight_decay = 0.1};
  for (int t = 1; t <= 6; ++t) {
    fill(g, static_cast<std::uint64_t>(t) + 50, std::pow(10.0, -t));
    const double norm[] = {4, t == 3 ? 0.25 : 1};  // the third step is clipped
    const AdamW now = at_step(rule, t);
    for_each_row(
        backend, chunks(n),
        detail::AdamWRow<T, T, bf16>{{&now, {1}}, {norm, {2}}, w, as_const(g), m, v, operand});
    for (std::size_t i = 0; i < expected.size(); ++i)
      expected[i] = reference[i].step(rule, t, expected[i], norm[1] * double(g.data[i]));
  }
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    keep_largest(worst, std::abs(double(w.data[i]) - expected[i]));
    REQUIRE(operand.data[i].bits == bf16(w.data[i]).bits);
  }
  // Six steps of a few roundings of numbers below 1.
  CHECK(worst < 20 * double(std::numeric_limits<T>::epsilon()));
}

TEST_CASE("A factor of 0 skips the step: weights, moments and operands keep their bits") {
  Cpu backend(1);
  Memory memory;
  const auto w = memory.random<float>({9}), g = memory.random<float>({9});
  const auto m = memory.random<float>({9}), v = memory.random<float>({9});
  const auto operand = memory.random<bf16>({9});
  g(4) = std::numeric_limits<float>::quiet_NaN();
  const auto* bytes = static_cast<const std::byte*>(memory.buffer.data());
  const std::vector<std::byte> before(bytes, bytes + memory.arena.used());
  const double norm[] = {std::numeric_limits<double>::quiet_NaN(), 0};
  const AdamW rule = at_step({}, 1);
  for_each_row(backend, 1,
               detail::AdamWRow<float, float, bf16>{
                   {&rule, {1}}, {norm, {2}}, w, as_const(g), m, v, operand});
  CHECK(std::vector<std::byte>(bytes, bytes + memory.arena.used()) == before);
}

TEST_CASE_TEMPLATE("A block of codes has the bits of AdamWRow, then of quantize_weights", Moment,
                   bf16, float) {
  Cpu backend(2);
  constexpr Index rows = 131, columns = 259, n = rows * columns;
  for (const Index block : {128, 32, 0})
    for (const double factor : {1.0, 0.25, 0.0}) {
      Memory memory(Index{1} << 23);
      const auto w = memory.random<float>({rows, columns}),
                 g = memory.random<float>({rows, columns});
      const auto m = memory.zeros<Moment>({rows, columns}),
                 v = memory.zeros<Moment>({rows, columns});
      const auto w2 = memory.empty<float>({rows, columns});
      const auto m2 = memory.zeros<Moment>({rows, columns}),
                 v2 = memory.zeros<Moment>({rows, columns});
      std::copy(w.data, w.data + n, w2.data);
      const auto q = take_quantized<e4m3>(memory.arena, rows, columns, block, block);
      const auto q2 = take_quantized<e4m3>(memory.arena, rows, columns, block, block);
      const ScaleRule scale{1e-4, false};
      quantize_weights(backend, as_const(w), q, scale);
      const double norm[] = {4, factor};
      for (int t = 1; t <= 3; ++t) {
        const AdamW rule = at_step({.lr = 1e-2}, t);
        for_each_row(backend, q.scales.extents[0] * q.scales.extents[1],
                     detail::AdamWBlock<float, Moment, e4m3>{
                         {&rule, {1}}, {norm, {2}}, w, as_const(g), m, v, q, scale});
        for_each_row(backend, chunks(n),
                     detail::AdamWRow<float, Moment, bf16>{{&rule, {1}},
                                                           {norm, {2}},
                                                           w2.flat(),
                                                           as_const(g.flat()),
                                                           m2.flat(),
                                                           v2.flat(),
                                                           {}});
      }
      quantize_weights(backend, as_const(w2), q2, scale);
      CAPTURE(block);
      CAPTURE(factor);
      CHECK(same_bits(w, w2));
      CHECK(same_bits(m, m2));
      CHECK(same_bits(v, v2));
      CHECK(same_bits(q.codes, q2.codes));
      for (Index i = 0; i < q.scales.extents[0] * q.scales.extents[1]; ++i)
        REQUIRE(q.scales.data[i] == q2.scales.data[i]);
    }
}

TEST_CASE("The gradient norm is over all tensors, in double, and clips by min(1, c / (n + 1e-6))") {
  Cpu backend(2);
  Memory memory;
  const Index n = 2 * detail::optimizer_chunk + 1;
  const auto g = memory.zeros<float>({n});
  g(0) = 3;
  g(detail::optimizer_chunk) = -4;
  g(n - 1) = 12;
  const auto partial = memory.empty<double>({chunks(n)});
  const auto norm = memory.empty<double>({2});
  const auto run = [&](double clip) {
    for_each_row(backend, chunks(n), detail::SquaredNormRow<float>{as_const(g), partial});
    for_each_row(backend, 1, detail::ClipRow{partial, clip, norm});
  };
  run(1);
  CHECK(norm(0) == 13.0);
  CHECK(norm(1) == 1 / (13 + 1e-6));
  run(20);
  CHECK(norm(1) == 1.0);
  SUBCASE("gradients whose squares overflow float") {
    g(5) = 1e30f;
    run(1);
    CHECK(norm(0) == doctest::Approx(1e30).epsilon(1e-7));
    CHECK(norm(1) == doctest::Approx(1e-30).epsilon(1e-7));
  }
  SUBCASE("zero") {
    fill(g, 0, 0);
    run(1);
    CHECK(norm(0) == 0.0);
    CHECK(norm(1) == 1.0);
  }
  SUBCASE("infinity and numbers that are none") {
    for (const float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN()}) {
      g(7) = bad;
      run(1);
      CHECK(norm(1) == 0.0);
      CHECK_FALSE(std::isfinite(norm(0)));
    }
  }
}
