// Dense products at the sizes of DeepSeek-V3, in bf16 and of codes with the scales of blocks.
#include "data.cuh"
#include "vendor.hpp"

namespace gpu_bench {
namespace {

// A projection: y [tokens, out] of x [tokens, in].
struct Layer {
  const char* name;
  Index out, in;
};
constexpr Layer layers[] = {{"q_a+kv_a", 2112, 7168},       {"q_b", 24576, 1536},
                            {"kv_b", 32768, 512},           {"o", 7168, 16384},
                            {"gate+up", 4096, 7168},        {"down", 7168, 2048},
                            {"dense gate+up", 36864, 7168}, {"dense down", 7168, 18432}};

std::string sizes(Index tokens, const Layer& layer) {
  return std::string(layer.name) + " " + std::to_string(tokens) + " x " +
         std::to_string(layer.out) + " x " + std::to_string(layer.in);
}

double flop(Index tokens, const Layer& layer) {
  return 2.0 * static_cast<double>(tokens) * static_cast<double>(layer.out) *
         static_cast<double>(layer.in);
}

void forward_bf16(Run& run, Index tokens, const Layer& layer) {
  run.work(flop(tokens, layer), "TFLOP/s");
  run.torch("mm " + std::to_string(tokens) + " " + std::to_string(layer.out) + " " +
                std::to_string(layer.in),
            0.95);
  const Index sets = Run::sets(2.0 * static_cast<double>(layer.out * layer.in));
  std::vector<View<bf16, 2>> x, w, y;
  for (Index s = 0; s < sets; ++s) {
    const auto seed = static_cast<std::uint32_t>(2 * s);
    x.push_back(random<bf16>(run, {tokens, layer.in}, seed));
    w.push_back(random<bf16>(run, {layer.out, layer.in}, seed + 1));
    y.push_back(run.take<bf16>({tokens, layer.out}));
  }
  const auto at = [](const auto& views, Index i) { return views[static_cast<std::size_t>(i)]; };
  const auto product = [&](Index i) {
    gemm(run.cuda, dsv3::nt, as_const(at(x, i)), as_const(at(w, i)), at(y, i), Output::overwrite);
  };
  product(0);
  check_product<Product::nt>(run, "y", as_const(x[0]), as_const(w[0]), y[0]);
  run.measure(sets, product);
  measure_vendor(
      run, "cuBLASLt", 0.95, VendorPeer::Kind::bf16, tokens, layer.out, layer.in, sets,
      [&](Index i) { return at(x, i).data; }, [&](Index i) { return at(w, i).data; },
      [&](Index i) { return at(y, i).data; });
}

void forward_fp8(Run& run, Index tokens, const Layer& layer) {
  run.work(flop(tokens, layer), "TFLOP/s");
  const Index sets = Run::sets(static_cast<double>(layer.out * layer.in));
  std::vector<Quantized<e4m3>> x, w;
  std::vector<View<bf16, 2>> y;
  for (Index s = 0; s < sets; ++s) {
    const auto seed = static_cast<std::uint32_t>(4 * s);
    x.push_back(run.arena_for([&](dsv3::Arena& arena) {
      return dsv3::take_quantized<e4m3>(arena, tokens, layer.in, 1, 128);
    }));
    w.push_back(run.arena_for([&](dsv3::Arena& arena) {
      return dsv3::take_quantized<e4m3>(arena, layer.out, layer.in, 128, 128);
    }));
    randomize(run, x.back(), seed, 1e-2f);
    randomize(run, w.back(), seed + 2, 1e-2f);
    y.push_back(run.take<bf16>({tokens, layer.out}));
  }
  const auto at = [](const auto& views, Index i) { return views[static_cast<std::size_t>(i)]; };
  const auto product = [&](Index i) {
    gemm(run.cuda, dsv3::nt, as_const(at(x, i)), as_const(at(w, i)), at(y, i), Output::overwrite);
  };
  product(0);
  check_product<Product::nt>(run, "y", as_const(x[0]), as_const(w[0]), y[0]);
  run.measure(sets, product);
  measure_vendor(
      run, "cuBLASLt block scales", 0.8, VendorPeer::Kind::fp8_block, tokens, layer.out, layer.in,
      sets, [&](Index i) { return at(x, i).codes.data; },
      [&](Index i) { return at(w, i).codes.data; }, [&](Index i) { return at(y, i).data; });
}

// dX = dY W and dW += dY^T X of codes; the peer is cuBLASLt's forward product of as many FLOP,
// which is the only form that it has.
void backward_input_fp8(Run& run, Index tokens, const Layer& layer) {
  run.work(flop(tokens, layer), "TFLOP/s");
  const auto dy = run.arena_for([&](dsv3::Arena& arena) {
    return dsv3::take_quantized<e4m3>(arena, tokens, layer.out, 1, 128);
  });
  const auto w = run.arena_for([&](dsv3::Arena& arena) {
    return dsv3::take_quantized<e4m3>(arena, layer.out, layer.in, 128, 128);
  });
  randomize(run, dy, 1, 1e-2f);
  randomize(run, w, 3, 1e-2f);
  const auto dx = run.take<bf16>({tokens, layer.in});
  const auto product = [&](Index) {
    gemm(run.cuda, dsv3::nn, as_const(dy), as_const(w), dx, Output::overwrite);
  };
  product(0);
  check_product<Product::nn>(run, "dx", as_const(dy), as_const(w), dx);
  run.measure(product);
  measure_vendor(
      run, "cuBLASLt block scales, nt", 0.8, VendorPeer::Kind::fp8_block, tokens, layer.in,
      layer.out, 1, [&](Index) { return dy.codes.data; }, [&](Index) { return w.codes.data; },
      [&](Index) { return dx.data; });
}

void backward_weight_fp8(Run& run, Index tokens, const Layer& layer) {
  run.work(flop(tokens, layer), "TFLOP/s");
  const auto dy = run.arena_for([&](dsv3::Arena& arena) {
    return dsv3::take_segments<e4m3>(arena, tokens, layer.out, 1, 128);
  });
  const auto x = run.arena_for([&](dsv3::Arena& arena) {
    return dsv3::take_segments<e4m3>(arena, tokens, layer.in, 1, 128);
  });
  randomize(run, dy, 1, 1e-2f);
  randomize(run, x, 3, 1e-2f);
  const auto dw = run.take<float>({layer.out, layer.in});
  fill_zero(run.cuda, dw.data, dw.size() * Index{sizeof(float)});
  const auto product = [&](Index) {
    gemm(run.cuda, dsv3::tn, as_const(dy), as_const(x), dw, Output::add);
  };
  product(0);
  check_product<Product::tn>(run, "dw", as_const(dy), as_const(x), dw);
  run.measure(product);
  measure_vendor(
      run, "cuBLASLt block scales, nt", 0.7, VendorPeer::Kind::fp8_block_add, layer.out, layer.in,
      tokens, 1, [&](Index) { return dy.codes.data; }, [&](Index) { return x.codes.data; },
      [&](Index) { return dw.data; });
}

// The same in bf16, as cuBLASLt has it: what a training step calls.
void backward_weight_bf16(Run& run, Index tokens, const Layer& layer) {
  run.work(flop(tokens, layer), "TFLOP/s");
  const auto dy = random<bf16>(run, {tokens, layer.out}, 1);
  const auto x = random<bf16>(run, {tokens, layer.in}, 2);
  const auto dw = run.take<float>({layer.out, layer.in});
  fill_zero(run.cuda, dw.data, dw.size() * Index{sizeof(float)});
  const auto product = [&](Index) {
    gemm(run.cuda, dsv3::tn, as_const(dy), as_const(x), dw, Output::add);
  };
  product(0);
  check_product<Product::tn>(run, "dw", as_const(dy), as_const(x), dw);
  run.measure(product);
  measure_vendor(
      run, "cuBLASLt, nt", 0, VendorPeer::Kind::bf16_add, layer.out, layer.in, tokens, 1,
      [&](Index) { return dy.data; }, [&](Index) { return x.data; },
      [&](Index) { return dw.data; });
}

}  // namespace

void gemm_cases(Cases& cases) {
  for (const Index tokens : {Index{4096}, Index{128}})
    for (const Layer& layer : layers) {
      if (tokens == 128 && layer.out * layer.in > Index{7168} * 16384) continue;
      const auto name = sizes(tokens, layer);
      cases.push_back({"fp8 " + name, [=](Run& run) { forward_fp8(run, tokens, layer); }});
      cases.push_back({"bf16 " + name, [=](Run& run) { forward_bf16(run, tokens, layer); }});
    }
  for (const Layer& layer : {layers[3], layers[4]}) {
    const auto name = sizes(4096, layer);
    cases.push_back({"fp8 dX " + name, [=](Run& run) { backward_input_fp8(run, 4096, layer); }});
    cases.push_back({"fp8 dW " + name, [=](Run& run) { backward_weight_fp8(run, 4096, layer); }});
    cases.push_back({"bf16 dW " + name, [=](Run& run) { backward_weight_bf16(run, 4096, layer); }});
  }
}

}  // namespace gpu_bench
