#include <dsv3/backend/cpu.hpp>
#include <dsv3/train/trainer.hpp>

#include "../nn/model_fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

// All bits that a few steps leave: weights, biases, moments, gradients, reports, logits.
template <class P>
std::vector<std::byte> run(int threads, bool recompute = false) {
  Cpu backend(threads);
  Model<P, Cpu> model(backend, wide_config(1), {.seed = 5, .init_std = 0.05});
  Trainer trainer(model, {.peak_lr = 1e-2, .recompute = recompute});
  std::vector<std::byte> bits;
  const auto add = [&](const void* data, std::size_t bytes) {
    const auto* first = static_cast<const std::byte*>(data);
    bits.insert(bits.end(), first, first + bytes);
  };
  for (std::uint64_t step = 1; step <= 4; ++step) {
    Text text(2, 70, 131, step);
    if (step == 3) text.cu = {0, 3, 70, 100, 140};
    const Batch batches[] = {text.batch(), text.batch()};
    const StepReport report = trainer.step(std::span(batches, step == 4 ? 2 : 1));
    add(&report.loss, sizeof(double));
    add(report.mtp_loss.data(), sizeof(double));
    add(&report.balance, sizeof(double));
    add(&report.grad_norm, sizeof(double));
    add(report.load.data(), report.load.size() * sizeof(Index));
  }
  const auto add_view = [&](const std::string&, auto view) {
    add(view.data, static_cast<std::size_t>(view.size()) * sizeof(*view.data));
  };
  for_each_tensor<P>(add_view, trainer.gradients());
  trainer.for_each_state_tensor(add_view);
  for_each_tensor<P>(
      [&](const std::string& name, auto operand) {
        if constexpr (requires { operand.codes; }) {
          add_view(name, operand.codes);
          add(operand.scales.data,
              static_cast<std::size_t>(operand.scales.extents[0] * operand.scales.extents[1]) *
                  sizeof(float));
        } else {
          add_view(name, operand);
        }
      },
      model.operands());
  const Text text(1, 9, 131);
  const auto logits = model.logits(text.batch());
  add(logits.data(), logits.size() * sizeof(logits[0]));
  return bits;
}

}  // namespace

TEST_CASE_TEMPLATE("Training has the same bits for 1, 2, 3 and 5 threads, and when repeated", P,
                   Fp32, Bf16, Fp8) {
  const auto one = run<P>(1);
  CHECK(one.size() > 1'000'000);
  CHECK(run<P>(1) == one);
  for (const int threads : {2, 3, 5}) {
    CAPTURE(threads);
    CHECK(run<P>(threads) == one);
  }
  CHECK(run<P>(2, true) == one);  // and when activations are recomputed
}

TEST_CASE_TEMPLATE("Training on one repeated text learns it", P, Fp64, Fp32, Bf16, Fp8) {
  Cpu backend(2);
  Model<P, Cpu> model(backend, tiny_config(1), {.seed = 1, .init_std = 0.1});
  Trainer trainer(model, {.peak_lr = 2e-2});
  const Text text(2, 12, 23);
  const double first = trainer.step(text.batch()).loss;
  StepReport last;
  for (int step = 0; step < 60; ++step) last = trainer.step(text.batch());
  CHECK(first > 3);  // near ln 23 = 3.1
  CHECK(last.loss < 0.5);
  CHECK(last.mtp_loss[0] < 1);
  CHECK(trainer.progress().skipped == 0);
}
