#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/mlp.hpp>
#include <stdexcept>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

TEST_CASE("Mlp::forward is down(silu(gate(x)) * up(x))") {
  // gate = ln 3, so silu(gate) = 3/4 ln 3; up = 8; down doubles.
  const double x[] = {1}, gate[] = {std::log(3.0)}, up[] = {8}, down[] = {2};
  double y[1], a[1], b[1];
  Mlp<Fp64>::Saved saved{{a, {1, 1}}, {b, {1, 1}}};
  EigenCpu backend;
  Memory memory;
  Mlp<Fp64>{}.forward(backend, {{gate, {1, 1}}, {up, {1, 1}}, {down, {1, 1}}}, {x, {1, 1}},
                      {y, {1, 1}}, saved, memory.arena);
  CHECK(y[0] == doctest::Approx(12 * std::log(3.0)).epsilon(1e-15));
  CHECK(b[0] == 8.0);
}

TEST_CASE_TEMPLATE("Mlp::backward agrees with central differences", Backend, EigenCpu, Cpu) {
  Backend backend;
  Memory memory;
  constexpr Index tokens = 3, hidden = 7, inter = 11;
  const auto params = Mlp<Fp64>::make_tensors<double>(hidden, inter, memory.arena);
  const auto grads = Mlp<Fp64>::make_tensors<double>(hidden, inter, memory.arena);
  Mlp<Fp64>::for_each_tensor(
      [&](const char*, auto weight, auto gradient) {
        fill(weight, ++memory.stream);
        fill(gradient, 0, 0);
      },
      params, grads);
  const auto x = memory.random<double>({tokens, hidden}, 2);
  const auto dy = memory.random<double>({tokens, hidden});
  const auto y = memory.empty<double>({tokens, hidden}),
             dx = memory.empty<double>({tokens, hidden});
  auto saved = Mlp<Fp64>::make_saved(memory.arena, tokens, inter);
  const Mlp<Fp64>::Tensors<const double> constants{params.gate_proj, params.up_proj,
                                                   params.down_proj};
  const auto loss = [&] {
    Mlp<Fp64>{}.forward(backend, constants, x, y, saved, memory.arena);
    return weighted_sum(y, dy);
  };
  loss();
  const Index used = memory.arena.used();
  Mlp<Fp64>{}.backward(backend, constants, x, saved, dy, dx, grads, memory.arena);
  CHECK(memory.arena.used() == used);
  check_differences("x", x.flat(), dx.flat(), loss);
  Mlp<Fp64>::for_each_tensor(
      [&](const char* name, auto weight, auto gradient) {
        check_differences(name, weight.flat(), gradient.flat(), loss);
      },
      params, grads);
}

TEST_CASE("Mlp names extents that disagree") {
  EigenCpu backend;
  Memory memory;
  const auto params = Mlp<Fp32>::make_tensors<const float>(7, 11, memory.arena);
  const auto x = memory.random<float>({3, 6}), y = memory.empty<float>({3, 7});
  auto saved = Mlp<Fp32>::make_saved(memory.arena, 3, 11);
  CHECK_THROWS_WITH_AS(Mlp<Fp32>{}.forward(backend, params, x, y, saved, memory.arena),
                       "gemm: columns of a (6) must equal columns of b (7)", std::invalid_argument);
}
