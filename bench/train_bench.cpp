// The training step of a 64 M-parameter model: tokens a second, and process peak.
//
//     train_bench fp32|bf16 THREADS [STEPS]
//
// Sizes are those of a transformers DeepseekV3 model of 64.0 M parameters without MTP, B = 4,
// T = 512; about 177 MFLOP a trained token with causal attention.
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <dsv3/model.hpp>
#include <dsv3/plan.hpp>
#include <string>

namespace {

inline constexpr dsv3::ModelConfig config = [] {
  dsv3::ModelConfig c;
  c.vocab_size = 8192;
  c.hidden_size = 512;
  c.num_hidden_layers = 8;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = c.num_key_value_heads = 8;
  c.q_lora_rank = 256;
  c.kv_lora_rank = 128;
  c.qk_nope_head_dim = 64;
  c.qk_rope_head_dim = 32;
  c.v_head_dim = 64;
  c.n_routed_experts = 16;
  c.num_experts_per_tok = 4;
  c.n_group = 4;
  c.topk_group = 2;
  c.moe_intermediate_size = 256;
  c.intermediate_size = 1536;
  return c;
}();

template <class P>
void run(int threads, int steps) {
  using dsv3::Index;
  const Index B = 4, T = 512;
  dsv3::Cpu backend(threads);
  dsv3::Model<P, dsv3::Cpu, config> model(backend, {.seed = 1, .init_std = 0.02});
  dsv3::Trainer trainer(model, {.peak_lr = 1e-3});
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(B * (T + 1)));
  const dsv3::Philox philox(7, 0);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>(philox(i).word[0] % 8192);
  std::vector<double> speed;
  for (int s = 0; s < steps; ++s) {
    const auto report = trainer.step(dsv3::View<const std::int32_t, 2>(tokens.data(), {B, T + 1}));
    if (s > 0) speed.push_back(report.tokens_per_second);
  }
  std::sort(speed.begin(), speed.end());
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const double flops = dsv3::plan::training_flops_per_token(config, T);
  const double median = speed[speed.size() / 2];
  std::printf(
      "train_step %s threads %d tok/s %.1f (%.1f-%.1f) gflops %.1f mflop_per_token %.1f "
      "arena_mib %.1f peak_mib %.1f\n",
      P::name, threads, median, speed.front(), speed.back(), median * flops * 1e-9, flops * 1e-6,
      static_cast<double>(model.measured_bytes()) / 1048576.0,
      static_cast<double>(usage.ru_maxrss) / 1024.0);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string precision = argc > 1 ? argv[1] : "fp32";
  const int threads = argc > 2 ? std::atoi(argv[2]) : dsv3::Cpu::default_threads();
  const int steps = argc > 3 ? std::atoi(argv[3]) : 6;
  if (threads < 1 || steps < 2 || (precision != "fp32" && precision != "bf16")) {
    std::fprintf(stderr, "usage: train_bench fp32|bf16 THREADS>=1 [STEPS>=2]\n");
    return 2;
  }
  if (precision == "fp32")
    run<dsv3::Fp32>(threads, steps);
  else
    run<dsv3::Bf16>(threads, steps);
}
