// Norms, quantising and the head with its loss at T = 4096 and DeepSeek-V3's widths, beside a copy
// of as many bytes.
#include <dsv3/nn/head.hpp>
#include <dsv3/nn/projection.hpp>

#include "data.cuh"

namespace gpu_bench {
namespace {

constexpr Index tokens = 4096, hidden = 7168;
constexpr double elements = 4096.0 * 7168;
using Fp8Projection = dsv3::Projection<dsv3::Fp8>;

void norm_forward(Run& run) {
  run.work(elements * (4 + 2), "GB/s");  // float of the residual stream in, bf16 out
  run.against_copy(0.85);
  run.torch("rms_norm 4096 7168", 1);
  const auto x = random<float>(run, {tokens, hidden}, 1);
  const auto w = random<bf16>(run, {hidden}, 2, 0.1f, 1);
  const auto y = run.take<bf16>({tokens, hidden});
  const auto norm = [&](Index) {
    dsv3::RmsNorm<float, bf16>{}.forward(run.cuda, {as_const(w)}, as_const(x), y);
  };
  norm(0);
  check_output(run, "y", y);
  run.measure(norm);
}

void norm_backward(Run& run) {
  // x and dy are read for dx and again for the weight's gradient, dx read and written.
  run.work(elements * (4 + 2 + 4 + 4), "GB/s");
  run.against_copy(0.6);
  run.torch("rms_norm_backward 4096 7168", 1);
  const auto x = random<float>(run, {tokens, hidden}, 1);
  const auto w = random<bf16>(run, {hidden}, 2, 0.1f, 1);
  const auto dy = random<bf16>(run, {tokens, hidden}, 3);
  const auto dx = run.take<float>({tokens, hidden});
  const auto dw = run.take<float>({hidden});
  fill_zero(run.cuda, dx.data, dx.size() * Index{sizeof(float)});
  fill_zero(run.cuda, dw.data, dw.size() * Index{sizeof(float)});
  const auto norm = run.planned([&](auto& backend, dsv3::Arena& scratch) {
    dsv3::RmsNorm<float, bf16>{}.backward(backend, {as_const(w)}, as_const(x), as_const(dy), dx,
                                          Output::add, {dw}, scratch);
  });
  norm();
  check_output(run, "dx", dx);
  run.measure([&](Index) { norm(); });
}

void norm_quantize(Run& run) {
  run.work(elements * (4 + 1 + 4.0 / 128), "GB/s");
  run.against_copy(0.85);
  run.torch("rms_norm_quantize 4096 7168", 1.3);
  const auto x = random<float>(run, {tokens, hidden}, 1);
  const auto w = random<bf16>(run, {hidden}, 2, 0.1f, 1);
  const auto y = run.arena_for(
      [](dsv3::Arena& arena) { return Fp8Projection::take_operand(arena, tokens, hidden); });
  const auto norm = run.planned([&](auto& backend, dsv3::Arena& scratch) {
    Fp8Projection{}.normalize(backend, {}, dsv3::RmsNorm<float, bf16>{}, as_const(w), as_const(x),
                              y, {}, dsv3::Route::dense, scratch);
  });
  norm();
  check_output(run, "codes", y.codes);
  run.measure([&](Index) { norm(); });
}

void quantize_rows_case(Run& run) {
  run.work(elements * (2 + 1 + 4.0 / 128), "GB/s");
  run.against_copy(0.85);
  const auto x = random<bf16>(run, {tokens, hidden}, 1);
  Quantized<const e4m3> q;
  const auto quantize = run.planned([&](auto& backend, dsv3::Arena& scratch) {
    q = Fp8Projection{}.input(backend, {}, as_const(x), dsv3::Route::dense, scratch);
  });
  quantize();
  check_output(run, "codes", q.codes);
  run.measure([&](Index) { quantize(); });
}

void quantize_columns_case(Run& run) {
  run.work(elements * (2 + 1 + 4.0 / 128), "GB/s");  // a second reading comes from the cache
  run.against_copy(0.85);
  const auto x = random<bf16>(run, {tokens, hidden}, 1);
  Quantized<const e4m3> q;
  const auto quantize = run.planned([&](auto& backend, dsv3::Arena& scratch) {
    q = Fp8Projection{}.gradient_columns(backend, {}, as_const(x), dsv3::Route::dense, scratch);
  });
  quantize();
  check_output(run, "codes", q.codes);
  run.measure([&](Index) { quantize(); });
}

// Codes by rows as codes by columns: what backward does to the inputs of experts.
void requantize_columns_case(Run& run) {
  run.work(elements * (1 + 1 + 8.0 / 128), "GB/s");
  run.against_copy(0.85);
  const auto x = run.arena_for(
      [](dsv3::Arena& arena) { return Fp8Projection::take_operand(arena, tokens, hidden); });
  randomize(run, x, 1, 1e-2f);
  Quantized<const e4m3> q;
  const auto quantize = run.planned([&](auto& backend, dsv3::Arena& scratch) {
    q = Fp8Projection{}.input_columns(backend, {}, as_const(x), dsv3::Route::dense, scratch);
  });
  quantize();
  check_output(run, "codes", q.codes);
  run.measure([&](Index) { quantize(); });
}

void head_case(Run& run) {
  constexpr Index vocab = 129280;
  run.work(3 * 2.0 * elements * static_cast<double>(vocab), "TFLOP/s");
  run.torch("linear_cross_entropy 4096 7168 129280", 1.2);
  const auto x = random<bf16>(run, {tokens, hidden}, 1);
  const auto w = random<bf16>(run, {vocab, hidden}, 2, 0.02f);
  const auto labels = run.take<std::int32_t>({tokens});
  for_each_row(run.cuda, chunks_of(tokens),
               RandomIntegerRow{labels, 3, static_cast<std::uint32_t>(vocab)});
  const auto nll = run.take<float>({tokens}), loss = run.take<float>({1});
  const auto dx = run.take<bf16>({tokens, hidden});
  const auto dw = run.take<float>({vocab, hidden});
  fill_zero(run.cuda, dw.data, dw.size() * Index{sizeof(float)});
  const auto head = run.planned([&](auto& backend, dsv3::Arena& scratch) {
    dsv3::Head<dsv3::Bf16>{}.loss_and_gradients(backend, as_const(w), as_const(x), as_const(labels),
                                                1.0 / tokens, 1.0 / tokens, nll, loss, dx, dw,
                                                scratch);
  });
  head();
  check_output(run, "nll", View<float, 2>(nll.data, {1, tokens}));
  check_output(run, "dx", dx);
  run.measure([&](Index) { head(); });
}

}  // namespace

void row_cases(Cases& cases) {
  cases.push_back({"norm 4096 x 7168, float to bf16", norm_forward});
  cases.push_back({"norm backward 4096 x 7168", norm_backward});
  cases.push_back({"norm + quantise 4096 x 7168", norm_quantize});
  cases.push_back({"quantise 1 x 128, 4096 x 7168", quantize_rows_case});
  cases.push_back({"quantise 128 x 1, 4096 x 7168", quantize_columns_case});
  cases.push_back({"requantise codes to 128 x 1, 4096 x 7168", requantize_columns_case});
  cases.push_back({"linear + cross-entropy 4096 x 7168 x 129280", head_case});
}

}  // namespace gpu_bench
