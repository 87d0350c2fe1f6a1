// The training step of a 64 M-parameter model: tokens a second against this machine's own peak, and
// the memory of the process.
//
//     train_bench fp32|bf16|fp8 [--threads N] [--no-head]
//
// fp8 is measured beside our own bf16, step by step in turn, in speed and in planned memory.
//
// Sizes are those of a transformers DeepseekV3 model of 64.0 M parameters without MTP, B = 4,
// T = 512. Work is counted as 177 MFLOP a token, with causal attention.
#include <sys/resource.h>

#include <dsv3/model.hpp>
#include <dsv3/plan.hpp>
#include <string>

#include "model_64m.hpp"
#include "peak.hpp"
#include "table.hpp"

namespace {

using bench::config;

// Goals are those of two threads; one thread is printed without one.
template <class P, class Kernel>
int run(int threads, bool head, double goal) {
  using dsv3::Index;
  const Index B = 4, T = 512;
  dsv3::Cpu backend(threads);
  dsv3::Model<P, dsv3::Cpu, config> model(backend, {.seed = 1, .init_std = 0.02});
  dsv3::Trainer trainer(model, {.peak_lr = 1e-3});
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(B * (T + 1)));
  const dsv3::Philox philox(7, 0);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>(philox(i).word[0] % 8192);
  std::vector<double> speed, peak;
  for (int step = 0; step < 8; ++step) {
    peak.push_back(bench::arithmetic_peak<Kernel>(threads));
    const auto report = trainer.step(dsv3::View<const std::int32_t, 2>(tokens.data(), {B, T + 1}));
    if (step > 0) speed.push_back(report.tokens_per_second);  // the first one touches new memory
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const std::string name = std::string("training step ") + P::name;
  const std::string where = ", T = " + std::to_string(threads);
  const double gflop_per_token = dsv3::plan::training_flops_per_token(config, T) * 1e-9;
  const double tokens_per_second = bench::median(speed);
  bench::Table table(head);
  table.at_least(name + where, tokens_per_second, "tok/s", "of the peak",
                 *std::max_element(peak.begin(), peak.end()) / gflop_per_token,
                 threads == 2 ? goal : 0);
  table.at_most(name + where + ", memory", static_cast<double>(usage.ru_maxrss) / 1024.0, "MiB",
                "limit", 1620, threads == 2 ? 1 : 0);
  return table.status();
}

// One model that trains on the same tokens again and again.
template <class P>
struct Training {
  using Model = dsv3::Model<P, dsv3::Cpu, config>;
  Model model;
  dsv3::Trainer<Model> trainer;
  std::vector<double> speed;

  explicit Training(dsv3::Cpu& backend)
      : model(backend, {.seed = 1, .init_std = 0.02}), trainer(model, {.peak_lr = 1e-3}) {}

  void step(dsv3::View<const std::int32_t, 2> tokens) {
    speed.push_back(trainer.step(tokens).tokens_per_second);
  }
  double weights_and_optimizer() const {
    return static_cast<double>(dsv3::plan::weight_bytes<P>(config) +
                               dsv3::plan::optimizer_bytes<P>(config)) /
           (1 << 20);
  }
  double pass() const { return static_cast<double>(model.measured_bytes()) / (1 << 20); }
};

int compare_fp8(int threads, bool head) {
  using dsv3::Index;
  const Index B = 4, T = 512;
  dsv3::Cpu backend(threads);
  Training<dsv3::Bf16> bf16(backend);
  Training<dsv3::Fp8> fp8(backend);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(B * (T + 1)));
  const dsv3::Philox philox(7, 0);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>(philox(i).word[0] % 8192);
  for (int step = 0; step < 8; ++step) {
    bf16.step({tokens.data(), {B, T + 1}});
    fp8.step({tokens.data(), {B, T + 1}});
  }
  bf16.speed.erase(bf16.speed.begin());  // the first one touches new memory
  fp8.speed.erase(fp8.speed.begin());
  const std::string where = ", T = " + std::to_string(threads);
  bench::Table table(head);
  table.at_least("training step fp8" + where, bench::median(fp8.speed), "tok/s", "own bf16",
                 bench::median(bf16.speed), 0.75);
  table.at_most("memory of a pass, fp8" + where, fp8.pass(), "MiB", "own bf16", bf16.pass(), 0.85);
  table.at_most("memory of training, fp8" + where, fp8.pass() + fp8.weights_and_optimizer(), "MiB",
                "own bf16", bf16.pass() + bf16.weights_and_optimizer(), 0.85);
  return table.status();
}

}  // namespace

int main(int argc, char** argv) {
  std::string precision;
  int threads = 2;
  bool head = true;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--no-head")
      head = false;
    else if (argument == "--threads" && i + 1 < argc)
      threads = std::stoi(argv[++i]);
    else
      precision = argument;
  }
  using dsv3::detail::Bf16Kernel;
  using dsv3::detail::FmaKernel;
  if (precision == "fp32") return run<dsv3::Fp32, FmaKernel<float>>(threads, head, 0.34);
  if (precision == "bf16") return run<dsv3::Bf16, Bf16Kernel>(threads, head, 0.26);
  if (precision == "fp8") return compare_fp8(threads, head);
  std::fprintf(stderr, "usage: train_bench fp32|bf16|fp8 [--threads N] [--no-head]\n");
  return 2;
}
