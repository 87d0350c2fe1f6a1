#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/projection.hpp>
#include <limits>

#include "fixture.hpp"
#include "fp8_variants.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

struct CheckedPerTensor : PerTensor {
  static constexpr bool checked = true;
};
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float none = std::numeric_limits<float>::quiet_NaN();

template <class C, class D>
bool same(const Quantized<C>& a, const Quantized<D>& b) {
  return same_bits(as_const(a.codes), as_const(b.codes)) &&
         same_bits(View<const scale_t<const C>, 2>(a.scales.data, a.scales.extents),
                   View<const scale_t<const D>, 2>(b.scales.data, b.scales.extents));
}

}  // namespace

TEST_CASE_TEMPLATE("Projection::normalize has the bits of RmsNorm::forward, then of input", P, Fp8,
                   PerTensor, Checked) {
  using In = float;
  using T = bf16;
  Cpu backend(2);
  Memory memory;
  const Projection<P> projection;
  const RmsNorm<In, T, bf16> norm{1e-6};
  constexpr Index tokens = 5, features = 259;
  const auto x = memory.random<In>({tokens, features}, 3);
  const auto weight = memory.random<bf16>({features});
  const auto n = memory.empty<T>({tokens, features}), plain = memory.empty<T>({tokens, features});
  for (const Route route : {Route::dense, Route::dispatch})
    for (const bool keeps_values : {false, true}) {
      norm.forward(backend, {weight}, x, n);
      const auto expected = projection.input(backend, "n", as_const(n), route, memory.arena);
      const auto y = Projection<P>::take_operand(memory.arena, tokens, features);
      projection.normalize(backend, "x", norm, as_const(weight), as_const(x), y,
                           keeps_values ? plain : View<T, 2>{}, route, memory.arena);
      CHECK(same(y, expected));
      if (keeps_values) CHECK(same_bits(plain, n));
    }
}

TEST_CASE("Projection::normalize names a weight that does not fit") {
  Cpu backend(1);
  Memory memory;
  const auto x = memory.random<float>({3, 7});
  const auto weight = memory.random<bf16>({6});
  const auto y = Projection<Fp8>::take_operand(memory.arena, 3, 7);
  CHECK_THROWS_WITH_AS(
      Projection<Fp8>{}.normalize(backend, "x", RmsNorm<float, bf16, bf16>{}, as_const(weight),
                                  as_const(x), y, {}, Route::dense, memory.arena),
      "Projection::normalize: size of weight (6) must equal columns of x (7)",
      std::invalid_argument);
}

TEST_CASE("A projection on codes of double is a linear layer to the bit") {
  Cpu backend(2);
  Memory memory;
  constexpr Index tokens = 5, in = 37, out = 11;
  const Projection<Identity> codes;
  const Projection<Fp64> plain;
  const auto x = memory.random<double>({tokens, in}), w = memory.random<double>({out, in});
  const auto dy = memory.random<double>({tokens, out});
  const auto wq = take_quantized<double>(memory.arena, out, in, 128, 128);
  quantize_weights(backend, as_const(w), wq, {});
  const auto y = memory.empty<double>({tokens, out}), y2 = memory.empty<double>({tokens, out});
  const auto dx = memory.zeros<double>({tokens, in}), dx2 = memory.zeros<double>({tokens, in});
  const auto dw = memory.zeros<double>({out, in}), dw2 = memory.zeros<double>({out, in});
  constexpr auto dense = Route::dense;
  auto& arena = memory.arena;
  const auto xq = codes.input(backend, "x", as_const(x), dense, arena);
  codes.forward(backend, as_const(wq), xq, y, arena);
  plain.forward(backend, as_const(w), as_const(x), y2, arena);
  CHECK(same_bits(y, y2));
  const Index used = arena.used();
  const auto columns = codes.input_columns(backend, {}, xq, dense, arena);
  const Index after = arena.used();
  codes.backward(backend, "dy", QuantizedWeight<const double>(as_const(wq), {}), columns,
                 as_const(dy), dense, dx, Output::overwrite, dw, arena);
  CHECK(arena.used() == after);
  CHECK(after > used);
  plain.backward(backend, "dy", as_const(w), as_const(x), as_const(dy), dense, dx2,
                 Output::overwrite, dw2, arena);
  CHECK(same_bits(dx, dx2));
  CHECK(same_bits(dw, dw2));
}

TEST_CASE("A policy with a short accumulator multiplies with it, in all three directions") {
  Cpu backend(2);
  Memory memory;
  constexpr Index tokens = 5, in = 137, out = 11;
  const Projection<Hopper> projection;
  const Accumulation rule = Hopper::accumulation;
  auto& arena = memory.arena;
  const auto x = memory.random<bf16>({tokens, in}), dy = memory.random<bf16>({tokens, out});
  const auto w = memory.random<float>({out, in});
  const auto offsets = memory.empty<Index>({3});
  offsets(0) = 0, offsets(1) = 3, offsets(2) = 5;
  const View<const Index, 1> at = offsets;
  const auto wq = take_quantized<e4m3>(arena, out, in, 128, 128);
  quantize_weights(backend, as_const(w), wq, {});
  const QuantizedStack<const e4m3> both(View<const e4m3, 3>(wq.codes.data, {1, out, in}), wq.scales,
                                        128, 128);
  const auto one = [&](Index last) { return View<const Index, 1>(&offsets(last - 1), {2}); };
  const auto xq = projection.input(backend, "x", as_const(x), Route::dense, arena);
  const auto dyq = projection.gradient(backend, "dy", as_const(dy), Route::dense, arena);
  const auto xt = projection.columns<e4m3>(backend, {}, xq, at, Route::dense, arena);
  const auto dyt = projection.columns<e4m3>(backend, {}, as_const(dy), at, Route::dense, arena);
  const auto x1 = projection.input_columns(backend, {}, xq, Route::dense, arena);
  const auto dy1 = projection.columns<e4m3>(backend, {}, as_const(dy), {}, Route::dense, arena);
  const auto check = [&](const auto& shape, auto ours, auto theirs) {
    const auto a = memory.zeros<float>(shape), b = memory.zeros<float>(shape);
    ours(a);
    theirs(b);
    CHECK(same_bits(a, b));
  };
  const Index y_shape[] = {tokens, out}, x_shape[] = {tokens, in}, w_shape[] = {out, in};
  const Index experts_shape[] = {2, out, in};
  constexpr auto overwrite = Output::overwrite;
  check(
      y_shape, [&](auto y) { projection.forward(backend, as_const(wq), xq, y, arena); },
      [&](auto y) { emulated_gemm(backend, nt, xq, as_const(wq), y, overwrite, rule, arena); });
  check(
      x_shape,
      [&](auto dx) { projection.backward_input(backend, as_const(wq), dyq, dx, overwrite, arena); },
      [&](auto dx) { emulated_gemm(backend, nn, dyq, as_const(wq), dx, overwrite, rule, arena); });
  check(
      w_shape, [&](auto dw) { projection.backward_weight(backend, dy1, x1, dw, arena); },
      [&](auto dw) { emulated_gemm(backend, tn, dy1, x1, dw, overwrite, rule, arena); });
  check(
      y_shape,
      [&](auto y) {
        projection.forward(backend, both, xq.rows(0, 3), one(1), y.rows(0, 3), arena);
      },
      [&](auto y) {
        emulated_grouped_gemm(backend, nt, xq.rows(0, 3), both, y.rows(0, 3), one(1), overwrite,
                              rule, arena);
      });
  check(
      x_shape,
      [&](auto dx) {
        projection.backward_input(backend, both, dyq.rows(0, 3), one(1), dx.rows(0, 3), overwrite,
                                  arena);
      },
      [&](auto dx) {
        emulated_grouped_gemm(backend, nn, dyq.rows(0, 3), both, dx.rows(0, 3), one(1), overwrite,
                              rule, arena);
      });
  check(
      experts_shape, [&](auto dw) { projection.backward_weight(backend, dyt, xt, at, dw, arena); },
      [&](auto dw) {
        emulated_grouped_gemm(backend, tn, dyt, xt, dw, at, overwrite, rule, arena);
      });
}

// --- The checked mode ---

TEST_CASE_TEMPLATE("The checked mode says where the first number that is none stands", P, Checked,
                   CheckedPerTensor) {
  Cpu backend(2);
  Memory memory;
  const Projection<P> projection;
  const auto x = memory.random<bf16>({4, 9});
  const Index used = memory.arena.used();
  const auto input = [&] {
    const ArenaScope scope(memory.arena);
    projection.input(backend, "input of o_proj", as_const(x), Route::dense, memory.arena);
  };
  const auto gradient = [&] {
    const ArenaScope scope(memory.arena);
    projection.gradient(backend, "gradient of o_proj's output", as_const(x), Route::dense,
                        memory.arena);
  };
  CHECK_NOTHROW(input());
  CHECK_NOTHROW(gradient());
  x(3, 0) = bf16(none);
  x(2, 7) = bf16(-infinity);
  x(2, 8) = bf16(infinity);
  CHECK_THROWS_WITH_AS(input(), "input of o_proj [2, 7] (-inf) must be finite", NonFinite);
  x(0, 1) = bf16(none);
  CHECK_THROWS_WITH_AS(gradient(), "gradient of o_proj's output [0, 1] (nan) must be finite",
                       NonFinite);
  x(0, 0) = bf16(none);
  CHECK_THROWS_WITH_AS(input(), "input of o_proj [0, 0] (nan) must be finite", NonFinite);
  CHECK(memory.arena.used() == used);
}

TEST_CASE("normalize and swiglu check what they read") {
  Cpu backend(1);
  Memory memory;
  const Projection<Checked> projection;
  const auto x = memory.random<float>({2, 5});
  const auto a = memory.random<bf16>({2, 5}), b = memory.random<bf16>({2, 5});
  const auto weight = memory.random<bf16>({5});
  const auto take = [&] { return Projection<Checked>::take_operand(memory.arena, 2, 5); };
  const auto y = take(), saved_a = take(), saved_b = take();
  x(1, 4) = infinity;
  CHECK_THROWS_WITH_AS(
      projection.normalize(backend, "input of input_layernorm", RmsNorm<float, bf16, bf16>{},
                           as_const(weight), as_const(x), y, {}, Route::dense, memory.arena),
      "input of input_layernorm [1, 4] (inf) must be finite", NonFinite);
  const auto swiglu = [&] {
    projection.swiglu(backend, {}, as_const(a), as_const(b), saved_a, saved_b, y, memory.arena);
  };
  b(0, 3) = bf16(infinity);
  CHECK_THROWS_WITH_AS(swiglu(), "output of up_proj [0, 3] (inf) must be finite", NonFinite);
  a(1, 1) = bf16(none);
  CHECK_THROWS_WITH_AS(swiglu(), "output of gate_proj [1, 1] (nan) must be finite", NonFinite);
}

TEST_CASE("An unchecked policy lets NaN pass") {
  Cpu backend(1);
  Memory memory;
  const auto x = memory.random<bf16>({2, 5});
  x(1, 1) = bf16(none);
  CHECK_NOTHROW(Projection<Fp8>{}.input(backend, "x", as_const(x), Route::dense, memory.arena));
}

// --- Stochastic rounding ---

TEST_CASE("Stochastic rounding is of gradients only, to a neighbour, and exact in the mean") {
  Cpu backend(2);
  Memory memory(Index{1} << 24);
  const Projection<Stochastic> projection;
  constexpr Index rows = 500, features = 256;
  const auto x = memory.random<bf16>({rows, features});
  for (Index t = 0; t < rows; ++t) x(t, 0) = x(t, 128) = bf16(1.75f);  // one scale: 2^-8
  constexpr auto route = Route::dispatch;
  const auto input = projection.input(backend, "x", as_const(x), route, memory.arena);
  const auto nearest = Projection<Fp8>{}.input(backend, "x", as_const(x), route, memory.arena);
  CHECK(same(input, nearest));
  const auto check = [&](const auto& q) {
    double bias = 0, variance = 0;
    Index far = 0, elsewhere = 0;
    for (Index t = 0; t < rows; ++t)
      for (Index j = 0; j < features; ++j) {
        const double value = float(x(t, j)), error = double(q(t, j)) - value;
        const double step = std::max(std::exp2(std::floor(std::log2(std::abs(value))) - 3),
                                     std::exp2(-9 - 8));  // between neighbours
        elsewhere += !(std::abs(error) < step || value == double(q(t, j)));
        far += std::abs(error) > step / 2;
        bias += error;
        // Up with probability p, down with 1 - p: the variance is p (1 - p) step^2.
        const double p = std::abs(value) / step - std::floor(std::abs(value) / step);
        variance += p * (1 - p) * step * step;
      }
    CHECK(elsewhere == 0);
    CHECK(far > rows * features / 8);  // rounding to nearest has none
    // Five standard deviations of a sum of independent errors: once in two million cases.
    CHECK(std::abs(bias) <= 5 * std::sqrt(variance));
  };
  check(projection.gradient(backend, "x", as_const(x), route, memory.arena));
  check(projection.columns<e4m3>(backend, {}, as_const(x), {}, route, memory.arena));
}

TEST_CASE("Equal values of a row round each for itself") {
  Cpu backend(1);
  Memory memory;
  constexpr Index n = 4096;
  const auto x = memory.empty<bf16>({1, n});
  for (Index j = 0; j < n; ++j) x(0, j) = bf16(j % 128 ? 1.03125f : 1.75f);  // scale 2^-8
  const auto q =
      Projection<Stochastic>{}.gradient(backend, "x", as_const(x), Route::dispatch, memory.arena);
  Index up = 0, of = 0;
  for (Index j = 0; j < n; ++j) {
    of += j % 128 != 0;
    up += j % 128 != 0 && q(0, j) == 1.125f;  // a quarter of the way from 1
  }
  // Five standard deviations.
  CHECK(std::abs(double(up) - 0.25 * double(of)) <= 5 * std::sqrt(0.1875 * double(of)));
}

TEST_CASE("A row rounds alike wherever it stands in the batch, by any number of threads") {
  Memory memory;
  const Projection<Stochastic> projection;
  Cpu one(1), three(3);
  const auto x = memory.random<bf16>({7, 259});
  const auto all = projection.gradient(three, "x", as_const(x), Route::dense, memory.arena);
  for (Index t = 0; t < 7; ++t)
    CHECK(same(projection.gradient(one, "x", as_const(x.rows(t, 1)), Route::dense, memory.arena),
               all.rows(t, 1)));
}
