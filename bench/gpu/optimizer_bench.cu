// AdamW on 2^28 parameters, beside a copy of as many bytes.
#include <dsv3/core/fused_rows.hpp>
#include <dsv3/core/precision.hpp>
#include <dsv3/train/adamw.hpp>

#include "data.cuh"

namespace gpu_bench {
namespace {

constexpr Index rows = 16384, columns = 16384;
constexpr double parameters = 16384.0 * 16384;

template <class Moment>
struct State {
  View<float, 2> weight, gradient;
  View<Moment, 2> m, v;
  View<double, 1> norm;
  View<const dsv3::AdamW, 1> rule;

  explicit State(Run& run)
      : weight(random<float>(run, {rows, columns}, 1, 0.02f)),
        gradient(random<float>(run, {rows, columns}, 2, 1e-3f)),
        m(random<Moment>(run, {rows, columns}, 3, 1e-4f)),
        v(random<Moment>(run, {rows, columns}, 4, 1e-8f, 1e-6f)),
        norm(run.upload(std::vector<double>{1, 1})),
        rule(run.upload(
            std::vector<dsv3::AdamW>{{.lr = 1e-4, .correction1 = 0.5, .correction2 = 0.5}})) {}
};

void plain_case(Run& run) {
  // Weight and moments are read and written, the gradient read, the operand written.
  run.work(parameters * (3 * 8 + 4 + 2), "GB/s");
  run.against_copy(0.85);
  run.torch("adamw 268435456", 1);
  const State<float> s(run);
  const auto operand = run.take<bf16>({rows, columns});
  const auto step = [&](Index) {
    for_each_row(run.cuda, chunks_of(s.weight.size()),
                 dsv3::detail::AdamWRow<float, float, bf16>{
                     s.rule, as_const(s.norm), s.weight.flat(), as_const(s.gradient.flat()),
                     s.m.flat(), s.v.flat(), operand.flat()});
  };
  step(0);
  check_output(run, "weights", s.weight);
  check_output(run, "operand", operand);
  run.measure(step);
}

void codes_case(Run& run) {
  run.work(parameters * (8 + 2 * 4 + 4 + 1), "GB/s");
  run.against_copy(0.85);
  run.torch("adamw 268435456", 1.2);
  const State<bf16> s(run);
  const auto operand = run.arena_for([](dsv3::Arena& arena) {
    return dsv3::take_quantized<e4m3>(arena, rows, columns, 128, 128);
  });
  const auto step = [&](Index) {
    for_each_row_fused(run.cuda, rows / 128 * (columns / 128),
                       dsv3::detail::AdamWBlock<float, bf16, e4m3>{
                           s.rule, as_const(s.norm), s.weight, as_const(s.gradient), s.m, s.v,
                           operand, dsv3::ScaleRule{}});
  };
  step(0);
  check_output(run, "weights", s.weight);
  check_output(run, "codes", operand.codes);
  run.measure(step);
}

// The norm that clips: every gradient once.
void norm_case(Run& run) {
  run.work(parameters * 4, "GB/s");
  run.against_copy(0.85);
  const auto gradient = random<float>(run, {rows, columns}, 2, 1e-3f);
  const auto partial = run.take<double>({chunks_of(gradient.size())}), norm = run.take<double>({2});
  const auto measure = [&](Index) {
    for_each_row(run.cuda, partial.extent(0),
                 dsv3::detail::SquaredNormRow<float>{as_const(gradient.flat()), partial});
    for_each_row(run.cuda, 1, dsv3::detail::ClipRow{as_const(partial), 1.0, norm});
  };
  measure(0);
  check_output(run, "norm", View<double, 2>(norm.data, {1, 2}));
  run.measure(measure);
}

}  // namespace

void optimizer_cases(Cases& cases) {
  cases.push_back({"AdamW, operand of bf16, 2^28 parameters", plain_case});
  cases.push_back({"AdamW + codes of 128 x 128, 2^28 parameters", codes_case});
  cases.push_back({"gradient norm, 2^28 parameters", norm_case});
}

}  // namespace gpu_bench
