#include <doctest/doctest.h>

#include "../../examples/fp8_study/probe.hpp"
#include "../../examples/fp8_study/variants.hpp"

using namespace example;
using dsv3::Arena;
using dsv3::bf16;
using dsv3::Output;
using dsv3::Quantized;
using dsv3::Route;

namespace {

constexpr const char* o_proj = "model.layers.2.self_attn.o_proj.weight";

// A linear layer and memory to work in.
template <class P, class Backend>
struct Layer {
  using Code = typename P::code;
  using Views = dsv3::WeightViews<dsv3::operand_t<P>>;
  Backend backend{1};
  alignas(64) std::byte memory[1 << 16] = {};
  Arena arena{memory, sizeof memory};
  dsv3::Projection<P> projection;
  View<float, 2> weight, gradient;
  typename Views::Projection codes;

  Layer(Index out, Index in, const std::vector<float>& values)
      : weight(arena.take<float>({out, in})),
        gradient(arena.take<float>({out, in})),
        codes(Views::take_projection(arena, out, in)) {
    std::copy(values.begin(), values.end(), weight.data);
    quantize_weights(backend, View<const float, 2>(weight), codes,
                     dsv3::Projection<P>::rule(Route::dense));
  }

  View<const bf16, 2> matrix(Index rows, Index columns, const std::vector<float>& values) {
    const auto m = arena.take<bf16>({rows, columns});
    for (std::size_t i = 0; i < values.size(); ++i) m.data[i] = bf16(values[i]);
    return m;
  }

  Quantized<const Code> input(View<const bf16, 2> x) {
    return projection.input(backend, input_site("", codes), x, Route::dense, arena);
  }

  // The three products, the first two in float.
  void run(View<const bf16, 2> x, View<const bf16, 2> dy, View<float, 2> y, View<float, 2> dx) {
    const auto q = input(x);
    projection.forward(backend, as_const(codes), q, y, arena);
    const auto columns = projection.input_columns(backend, {}, q, Route::dense, arena);
    projection.backward(backend, "", {as_const(codes), codes.history}, columns, dy, Route::dense,
                        dx, Output::overwrite, gradient, arena);
  }
};

std::vector<float> made_up(Index n, double phase) {
  std::vector<float> values;
  for (Index i = 0; i < n; ++i)
    values.push_back(static_cast<float>(std::sin(phase + 2.7 * static_cast<double>(i)) *
                                        std::exp(std::cos(1.3 * static_cast<double>(i)))));
  return values;
}

// |computed - sum over k of a(i, k) b(j, k)| / |sum|, in the Frobenius norm.
double relative_error(View<const float, 2> computed, Index depth, auto&& a, auto&& b) {
  double error = 0, norm = 0;
  for (Index i = 0; i < computed.extent(0); ++i)
    for (Index j = 0; j < computed.extent(1); ++j) {
      double sum = 0;
      for (Index k = 0; k < depth; ++k) sum += double(a(i, k)) * double(b(j, k));
      error += (double(computed(i, j)) - sum) * (double(computed(i, j)) - sum);
      norm += sum * sum;
    }
  return std::sqrt(error / norm);
}

}  // namespace

TEST_CASE_TEMPLATE("the probe's error of y is the one that a hand computes", P, dsv3::Fp8,
                   HopperNone) {
  // 448 makes every scale 1. The code of 17 is 16, a tie, and that of 2^-11 is 0.
  Layer<P, Probe> layer(2, 3, {448, 1, 0, 0, 3, 1});
  layer.backend.know(o_proj, layer.weight, layer.codes, layer.gradient);
  const auto y = layer.arena.template take<float>({1, 2});
  layer.projection.forward(layer.backend, as_const(layer.codes),
                           layer.input(layer.matrix(1, 3, {448, 17, 0x1p-11f})), y, layer.arena);
  const Measurements m = layer.backend.finish();
  CHECK(y(0, 0) == 448 * 448 + 16);
  CHECK(y(0, 1) == 48);
  REQUIRE(m.layers.size() == 1);
  CHECK(m.layers[0].place == Place{2, "", "o"});
  const double exact[] = {448 * 448 + 17, 51 + 0x1p-11}, error[] = {1, 3 + 0x1p-11};
  CHECK(m.layers[0].products[0].relative() ==
        doctest::Approx(std::hypot(error[0], error[1]) / std::hypot(exact[0], exact[1]))
            .epsilon(1e-14));
  CHECK(std::isnan(m.layers[0].products[1].relative()));  // there was no such product
  CHECK(m.unknown == 0);

  const CodeCounts& input = m.kinds[static_cast<std::size_t>(Kind::input_of_o)];
  CHECK(input.codes == 3);
  CHECK(input.underflow == 1);
  CHECK(input.saturated == 1);
  CHECK(input.amax == 448);
  CHECK(input.by_exponent == std::map<int, Index>{{4, 1}, {8, 1}});
  const CodeCounts& weights = m.kinds[static_cast<std::size_t>(Kind::weights)];
  CHECK(weights.codes == 6);
  CHECK(weights.underflow == 0);  // zeros are no underflow
  CHECK(weights.by_exponent == std::map<int, Index>{{0, 2}, {1, 1}, {8, 1}});
}

TEST_CASE_TEMPLATE("the probe compares y, dX and dW with products of the values before the codes",
                   P, dsv3::Fp8, E5m2Gradients, GradientBlocks, PerTensor, Delayed, Hopper128) {
  constexpr Index tokens = 5, out = 7, in = 37;
  const auto w = made_up(out * in, 0);
  Layer<P, Probe> probed(out, in, w);
  Layer<P, dsv3::Cpu> plain(out, in, w);
  const auto x = probed.matrix(tokens, in, made_up(tokens * in, 1));
  const auto dy = probed.matrix(tokens, out, made_up(tokens * out, 2));
  const auto y = plain.arena.template take<float>({tokens, out});
  const auto dx = plain.arena.template take<float>({tokens, in});
  plain.run(x, dy, y, dx);
  const auto probed_y = probed.arena.template take<float>({tokens, out});
  const auto probed_dx = probed.arena.template take<float>({tokens, in});
  probed.backend.know(o_proj, probed.weight, probed.codes, probed.gradient);
  probed.run(x, dy, probed_y, probed_dx);
  const Measurements m = probed.backend.finish();
  CHECK(m.unknown == 0);
  const auto same = [](const auto& a, const auto& b) {
    return std::equal(a.data, a.data + a.size(), b.data);
  };
  CHECK(same(y, probed_y));  // it looks, and changes nothing
  CHECK(same(dx, probed_dx));
  CHECK(same(plain.gradient, probed.gradient));
  const auto& weight = plain.weight;
  const double expected[] = {
      relative_error(y, in, x, weight),
      relative_error(dx, out, dy, [&](Index j, Index k) { return weight(k, j); }),
      relative_error(
          plain.gradient, tokens, [&](Index i, Index k) { return float(dy(k, i)); },
          [&](Index j, Index k) { return float(x(k, j)); })};
  for (int role = 0; role < 3; ++role) {
    CAPTURE(role_names[static_cast<std::size_t>(role)]);
    CHECK(expected[role] > 0.001);
    CHECK(m.layers[0].products[static_cast<std::size_t>(role)].relative() ==
          doctest::Approx(expected[role]).epsilon(1e-9));  // sums in double, in another order
  }
}

TEST_CASE("the probe counts products of codes whose origin it does not know") {
  Layer<dsv3::Fp8, Probe> layer(2, 3, {448, 1, 0, 0, 3, 1});
  const auto y = layer.arena.take<float>({1, 2});
  const auto before = layer.input(layer.matrix(1, 3, {1, 2, 3}));
  layer.backend.know(o_proj, layer.weight, layer.codes, layer.gradient);
  layer.projection.forward(layer.backend, as_const(layer.codes), before, y, layer.arena);
  const Measurements m = layer.backend.finish();
  CHECK(m.unknown == 1);
  CHECK(std::isnan(m.layers[0].products[0].relative()));
}

TEST_CASE("codes that are written over others replace what these stood for") {
  std::vector<dsv3::e4m3> memory(100);
  const auto codes = [&](Index from, Index rows) {
    return View<dsv3::e4m3, 2>(memory.data() + from, {rows, 10});
  };
  const auto matrix = [](Index rows) {
    return PlainMatrix(rows, 10, [](Index, Index) { return 1.0; });
  };
  PlainValues known;
  known.put(codes(0, 3), matrix(3));
  known.put(codes(30, 3), matrix(3));
  known.put(codes(60, 3), matrix(3));
  CHECK(known.find(codes(30, 3)));
  CHECK_FALSE(known.find(codes(30, 2)));  // another shape
  known.put(codes(25, 1), matrix(1));     // the end of the first, the beginning of the second
  CHECK_FALSE(known.find(codes(0, 3)));
  CHECK_FALSE(known.find(codes(30, 3)));
  CHECK(known.find(codes(25, 1)));
  CHECK(known.find(codes(60, 3)));
  known.put(codes(60, 3), std::nullopt);
  CHECK_FALSE(known.find(codes(60, 3)));
}

TEST_CASE("a weight's name says which linear layer it is of, and what its input is") {
  const std::string layer = "model.layers.12.";
  CHECK(Place::of(layer + "self_attn.kv_a_proj_with_mqa.weight") == Place{12, "", "kv_a"});
  CHECK(Place::of(layer + "mlp.gate_proj.weight") == Place{12, "", "gate"});
  CHECK(Place::of(layer + "mlp.experts.31.down_proj.weight") == Place{12, "experts", "down"});
  CHECK(Place::of(layer + "mlp.shared_experts.up_proj.weight") == Place{12, "shared", "up"});
  CHECK(Place{12, "experts", "up"}.name() == "experts up");
  CHECK(Place{0, "", "q_a"}.input() == Kind::input_of_a);
  CHECK(Place{0, "", "q"}.input() == Kind::input_of_a);  // without a query latent
  CHECK(Place{0, "", "kv_b"}.input() == Kind::input_of_kv_b);
  CHECK(Place{0, "experts", "gate"}.input() == Kind::input_of_gate);
}
