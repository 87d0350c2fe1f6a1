// The kind "fp8": casts, quantisers and block-scaled products, bit for bit.
#pragma once

#include <dsv3/backend/cpu.hpp>
#include <dsv3/nn/projection.hpp>
#include <filesystem>

#include "model_case.hpp"

namespace golden {

/// Equal, or both NaN.
inline bool same_value(double a, double b) { return a == b || (a != a && b != b); }

template <class Code>
bool same_code(double a, double b) {
  Code x, y;
  x.code = static_cast<std::uint8_t>(a);
  y.code = static_cast<std::uint8_t>(b);
  return x.code == y.code || (float(x) != float(x) && float(y) != float(y));
}

/// f(element) of every element of `input`, as the expected array `name` has it.
template <class F>
Array map(const dsv3::SafetensorsFile& file, const char* input, F f) {
  const std::vector<float> values = file.at(input).values<float>();
  Array array{{}, file.at(input).shape};
  for (const float value : values) array.values.push_back(f(value));
  return array;
}

inline void check_casts(const std::string& path, Counts& counts) {
  using namespace dsv3;
  const SafetensorsFile file(path + "/casts.safetensors");
  Judge judge(path, file, counts);
  Array e4m3_values{{}, {256}}, e5m2_values{{}, {256}};
  Array e4m3_codes{{}, {65536}}, e5m2_codes{{}, {65536}};
  for (unsigned i = 0; i < 256; ++i) {
    e4m3_values.values.push_back(double(e4m3::format::decode(i)));
    e5m2_values.values.push_back(double(e5m2::format::decode(i)));
  }
  for (unsigned i = 0; i < 65536; ++i) {
    bf16 x;
    x.bits = static_cast<std::uint16_t>(i);
    e4m3_codes.values.push_back(e4m3(float(x)).code);
    e5m2_codes.values.push_back(e5m2(float(x)).code);
  }
  judge.compare_each("e4m3_decode", e4m3_values, same_value);
  judge.compare_each("e5m2_decode", e5m2_values, same_value);
  judge.compare_each("bf16_to_e4m3_saturating", e4m3_codes, same_code<e4m3>);
  judge.compare_each("bf16_to_e5m2_saturating", e5m2_codes, same_code<e5m2>);
  for (const std::string name : {"f32_ties", "f32_inputs"}) {
    if (!judge.has(name)) continue;
    judge.input(name);
    const std::string stem = name == "f32_inputs" ? "f32" : name;
    const auto each = [&](const std::string& to, auto cast, auto same) {
      if (judge.has(to)) judge.compare_each(to, map(file, name.c_str(), cast), same);
    };
    for (const std::string& from : {stem, name}) {
      each(
          from + "_to_e4m3_saturating", [](float x) { return double(e4m3(x).code); },
          same_code<e4m3>);
      each(
          from + "_to_e5m2_saturating", [](float x) { return double(e5m2(x).code); },
          same_code<e5m2>);
      each(
          from + "_to_bf16", [](float x) { return double(bf16(x)); }, same_value);
      if (stem == name) break;
    }
  }
  if (judge.has("f32_scales")) {
    judge.input("f32_scales");
    judge.compare_each("f32_scales_to_ue8m0_up",
                       map(file, "f32_scales", [](float x) { return double(ue8m0(x).code); }),
                       same_value);
  }
}

/// One rule of the file: how amax is bounded, and which scales are powers of two.
template <bool parity, bool pow2>
struct RuleOf : dsv3::Fp8 {
  using activation = float;
  using residual = float;
  using weight = float;
  static constexpr double amax_min = parity ? 1e-4 : 0;
  static constexpr bool power_of_two = pow2, power_of_two_dispatch = pow2;
};

template <class P, class Backend>
void check_linear_rule(const std::string& rule, Backend& backend, const dsv3::SafetensorsFile& file,
                       Judge& judge) {
  using namespace dsv3;
  const auto& x_shape = file.at("x").shape;
  const auto& w_shape = file.at("w").shape;
  const Index tokens = x_shape.at(0), in = x_shape.at(1), out = w_shape.at(0);
  check_equal("linear.safetensors", "columns of w", w_shape.at(1), "columns of x", in);
  check_equal("linear.safetensors", "rows of dy", file.at("dy").shape.at(0), "rows of x", tokens);
  check_equal("linear.safetensors", "columns of dy", file.at("dy").shape.at(1), "rows of w", out);
  const Projection<P> projection;
  const auto run = [&](Arena& arena) {
    const auto load = [&](const char* name, Index rows, Index columns) {
      const auto view = arena.take<float>({rows, columns});
      if (!arena.counting()) {
        const auto host = file.at(name).template values<float>();
        copy_to_backend(backend, view.data, host.data(), view.size() * Index{sizeof(float)});
      }
      return View<const float, 2>(view);
    };
    const auto x = load("x", tokens, in), w = load("w", out, in), dy = load("dy", tokens, out);
    const auto wq = take_quantized<e4m3>(arena, out, in, 128, 128);
    const auto y = arena.take<float>({tokens, out}), dx = arena.take<float>({tokens, in});
    const auto dw = arena.take<float>({out, in});
    const auto go = [&](auto& b) {
      quantize_weights(b, w, wq, {P::amax_min, false});
      const auto xq = projection.input(b, "x", x, Route::dense, arena);
      const auto dyq = projection.gradient(b, "dy", dy, Route::dense, arena);
      const auto xt = projection.input_columns(b, "x", xq, Route::dense, arena);
      const auto dyt = projection.gradient_columns(b, "dy", dy, Route::dense, arena);
      projection.forward(b, as_const(wq), xq, y, arena);
      projection.backward_input(b, as_const(wq), dyq, dx, Output::overwrite, arena);
      if (!arena.counting()) fill_zero(backend, dw.data, dw.size() * Index{sizeof(float)});
      projection.backward_weight(b, dyt, xt, dw, arena);
      if (arena.counting()) return;
      const auto codes = [&](const char* name, const auto& q) {
        View<const std::uint8_t, 2> bytes(reinterpret_cast<const std::uint8_t*>(q.codes.data),
                                          {q.extent(0), q.extent(1)});
        judge.compare_each(rule + name + ".codes", widened(backend, bytes), same_code<e4m3>);
        View<const float, 2> scales(q.scales.data, {q.scales.extents[0], q.scales.extents[1]});
        judge.compare_each(rule + name + ".scale", widened(backend, scales), same_value);
      };
      codes("x", xq);
      codes("w", as_const(wq));
      codes("dy", dyq);
      codes("x_t", xt);
      codes("dy_t", dyt);
      judge.compare(rule + "y", widened(backend, y), {Rule::largest, 1e-6});
      judge.compare(rule + "dx", widened(backend, dx), {Rule::largest, 1e-6});
      judge.compare(rule + "dw", widened(backend, dw), {Rule::largest, 1e-6});
      if (rule != "train.") return;  // how far from the unquantised product, for information
      judge.compare("exact.y", widened(backend, y), {Rule::printed});
      judge.compare("exact.dx", widened(backend, dx), {Rule::printed});
      judge.compare("exact.dw", widened(backend, dw), {Rule::printed});
    };
    if (arena.counting()) {
      DryRun<Backend> dry{backend};
      go(dry);
    } else {
      go(backend);
    }
  };
  Arena counting;
  run(counting);
  Buffer<Backend> memory(backend, counting.peak());
  Arena arena(memory.data(), memory.bytes());
  run(arena);
}

template <class Backend>
void check_fp8(const std::string& path, Backend& backend, Counts& counts) {
  check_casts(path, counts);
  if (!std::filesystem::exists(path + "/linear.safetensors")) return;
  const dsv3::SafetensorsFile file(path + "/linear.safetensors");
  Judge judge(path, file, counts);
  for (const char* name : {"x", "w", "dy"}) judge.input(name);
  check_linear_rule<RuleOf<true, false>>("parity.", backend, file, judge);
  check_linear_rule<RuleOf<false, false>>("train.", backend, file, judge);
  check_linear_rule<RuleOf<false, true>>("train_pow2.", backend, file, judge);
}

}  // namespace golden
