#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/rms_norm.hpp>
#include <stdexcept>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

TEST_CASE("RmsNorm::forward divides each row by sqrt(mean square + eps)") {
  const double x[] = {3, 4};  // mean square 12.5
  const double weight[] = {1, 10};
  double y[2];
  EigenCpu backend;
  RmsNorm<double>{.eps = 3.5}.forward(backend, {{weight, {2}}}, {x, {1, 2}}, {y, {1, 2}});
  CHECK(y[0] == 0.75);  // 3 / sqrt(16)
  CHECK(y[1] == 10.0);  // 4 / sqrt(16) * 10
}

TEST_CASE("RmsNorm::backward of a hand-checked row") {
  // mean(x^2) = 4 and eps = 0, so rstd = 1/2; u = dy, mean(u x) = 1;
  // dx = (dy - x / 4 * 1) / 2.
  const double x[] = {2, -2}, weight[] = {1, 1}, dy[] = {3, 2};
  double dx[2], dweight[] = {100, 200};
  EigenCpu backend;
  Memory memory;
  RmsNorm<double>{.eps = 0}.backward(backend, {{weight, {2}}}, {x, {1, 2}}, {dy, {1, 2}},
                                     {dx, {1, 2}}, Output::overwrite, {{dweight, {2}}},
                                     memory.arena);
  CHECK(dx[0] == 1.25);
  CHECK(dx[1] == 1.25);
  CHECK(dweight[0] == 103);  // added: dy x rstd = 3
  CHECK(dweight[1] == 198);
}

TEST_CASE_TEMPLATE("RmsNorm::backward agrees with central differences", Backend, EigenCpu, Cpu) {
  Backend backend;
  // Rows beyond one partial sum of the weight's gradient, columns beyond one strip.
  for (const auto& shape : {std::pair<Index, Index>{3, 37}, {131, 5}, {2, 301}}) {
    const Index tokens = shape.first, features = shape.second;
    CAPTURE(tokens);
    Memory memory;
    const auto x = memory.random<double>({tokens, features});
    const auto weight = memory.random<double>({features});
    const auto dy = memory.random<double>({tokens, features});
    const auto y = memory.empty<double>({tokens, features});
    const auto dx = memory.empty<double>({tokens, features});
    const auto dweight = memory.zeros<double>({features});
    const RmsNorm<double> norm{.eps = 0.01};
    norm.backward(backend, {weight}, as_const(x), as_const(dy), dx, Output::overwrite, {dweight},
                  memory.arena);
    const auto loss = [&] {
      norm.forward(backend, {weight}, as_const(x), y);
      return weighted_sum(y, dy);
    };
    check_differences("x", x.flat(), dx.flat(), loss, 200);
    check_differences("weight", weight, dweight, loss, 100);

    const auto added = memory.zeros<double>({tokens, features});
    for (Index i = 0; i < added.size(); ++i) added.data[i] = 1000;
    norm.backward(backend, {weight}, as_const(x), as_const(dy), added, Output::add, {dweight},
                  memory.arena);
    double worst = 0;  // 1000 + dx is rounded to 1e-13
    for (Index i = 0; i < added.size(); ++i)
      keep_largest(worst, std::abs(added.data[i] - 1000 - dx.data[i]));
    CHECK(worst < 1e-12);
  }
}

TEST_CASE("RmsNorm works on columns of a wider matrix and leaves the rest alone") {
  EigenCpu backend;
  Memory memory;
  const auto wide = memory.random<float>({3, 20}), result = memory.zeros<float>({3, 20});
  const auto packed = memory.empty<float>({3, 7}), y = memory.empty<float>({3, 7});
  const auto weight = memory.random<float>({7});
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 7; ++j) packed(i, j) = wide(i, 5 + j);
  const RmsNorm<float> norm;
  norm.forward(backend, {weight}, as_const(packed), y);
  norm.forward(backend, {weight}, as_const(wide.cols(5, 7)), result.cols(11, 7));
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 20; ++j) CHECK(result(i, j) == (j >= 11 && j < 18 ? y(i, j - 11) : 0.0f));
}

TEST_CASE("RmsNorm in bf16 rounds once: within half a unit in the last place of double") {
  Cpu backend;
  Memory memory;
  const auto x = memory.random<bf16>({5, 37});
  const auto weight = memory.random<bf16>({37});
  const auto y = memory.empty<bf16>({5, 37});
  RmsNorm<bf16>{}.forward(backend, {weight}, as_const(x), y);
  for (Index t = 0; t < 5; ++t) {
    double mean_square = 0;
    for (Index j = 0; j < 37; ++j) mean_square += double(x(t, j)) * double(x(t, j)) / 37;
    for (Index j = 0; j < 37; ++j) {
      const double exact = double(x(t, j)) / std::sqrt(mean_square + 1e-6) * double(weight(j));
      // Half a unit is at most 2^-8 of the value; float adds a few 2^-24.
      CHECK(std::abs(double(y(t, j)) - exact) <= std::abs(exact) * (0x1p-8 + 0x1p-20));
    }
  }
}

TEST_CASE("RmsNorm names extents that disagree") {
  EigenCpu backend;
  Memory memory;
  const auto x = memory.random<float>({3, 37}), y = memory.empty<float>({3, 36});
  const auto weight = memory.random<float>({36});
  CHECK_THROWS_WITH_AS(RmsNorm<float>{}.forward(backend, {weight}, as_const(x), y),
                       "RmsNorm::forward: size of weight (36) must equal columns of x (37)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(RmsNorm<float>{}.backward(backend, {weight}, as_const(y), as_const(x), y,
                                                 Output::overwrite, {weight}, memory.arena),
                       "RmsNorm::backward: columns of dy (37) must equal columns of x (36)",
                       std::invalid_argument);
}
