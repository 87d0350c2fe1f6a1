// A whole model of DeepSeek-V3's shape with 1.9 billion parameters: training steps, and decoding.
#pragma once

#include <dsv3/backend/cuda.hpp>
#include <dsv3/model.hpp>
#include <dsv3/plan.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "harness.hpp"

namespace gpu_bench {

inline constexpr dsv3::ModelConfig model_config = [] {
  dsv3::ModelConfig c = dsv3::presets::deepseek_v3;
  c.vocab_size = 32768;
  c.hidden_size = 2048;
  c.intermediate_size = 6144;
  c.moe_intermediate_size = 640;
  c.num_hidden_layers = 12;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = c.num_key_value_heads = 16;
  c.q_lora_rank = 768;
  c.n_routed_experts = 32;
  c.num_experts_per_tok = 4;
  c.n_group = 4;
  c.topk_group = 2;
  c.rope_scaling = {};
  c.max_position_embeddings = 4096;
  return c;
}();

template <class P>
using BenchModel = dsv3::Model<P, dsv3::Cuda, model_config>;

inline double seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

inline std::vector<std::int32_t> random_tokens(std::uint64_t seed, Index count) {
  const dsv3::Philox philox(seed, 0);
  std::vector<std::int32_t> tokens;
  for (Index i = 0; i < count; ++i)
    tokens.push_back(
        static_cast<std::int32_t>(philox(static_cast<std::uint64_t>(i)).word[0] %
                                  static_cast<std::uint32_t>(model_config.vocab_size)));
  return tokens;
}

/// Whole steps of the trainer with its report: 4 rows of 2048 tokens. The first launch kernels and
/// record them, the others repeat the record.
template <class P>
void train_case(Run& run) {
  constexpr Index rows = 4, length = 2048;
  run.work(static_cast<double>(rows * length), "tok/s");
  run.torch("train 4 2048", 1.2);
  BenchModel<P> model(run.cuda, {.seed = 1});
  dsv3::Trainer trainer(model, {.peak_lr = 1e-4});
  const auto tokens = random_tokens(7, rows * (length + 1));
  std::vector<double> times;
  for (int step = 0; step < 8; ++step) {
    const double begin = seconds();
    const auto report =
        trainer.step(View<const std::int32_t, 2>(tokens.data(), {rows, length + 1}));
    if (step >= 3) times.push_back(seconds() - begin);
    if (!(report.loss > 0 && report.loss < 20) || report.skipped)
      throw std::runtime_error("step " + std::to_string(step) + ": the loss is " +
                               std::to_string(report.loss) + ", the gradient's norm " +
                               std::to_string(report.grad_norm));
  }
  run.record.ms = 1e3 * median(times);
  const double flop = dsv3::plan::training_flops_per_token(model_config, length) +
                      dsv3::plan::mtp_training_flops_per_token(model_config, length);
  char note[96];
  std::snprintf(note, sizeof note, "%.0f M parameters, %.0f TFLOP/s, %.1f GiB for a pass",
                static_cast<double>(dsv3::plan::total_parameters(model_config)) * 1e-6,
                flop * run.record.rate(run.record.ms) * 1e-12,
                static_cast<double>(model.measured_bytes()) / (1 << 30));
  run.record.note = note;
}

/// Bytes of weights and cache that one round reads, where `batch` sequences choose their experts
/// independently.
template <class P>
double decode_bytes(Index batch, Index context) {
  const auto& c = model_config;
  const auto d = [](Index n) { return static_cast<double>(n); };
  const double code = dsv3::QuantizedPolicy<P> ? 1 : 2;
  const double missed = 1 - d(c.num_experts_per_tok) / d(c.n_routed_experts);
  const double touched = d(c.n_routed_experts) * (1 - std::pow(missed, d(batch)));
  double bytes = 2 * d(c.vocab_size * c.hidden_size);
  for (Index layer = 0; layer < c.num_hidden_layers; ++layer) {
    bytes += code * d(dsv3::plan::attention_parameters(c));
    bytes += c.is_moe(layer)
                 ? code * (touched + d(c.n_shared_experts)) * d(dsv3::plan::expert_parameters(c)) +
                       2 * d(c.n_routed_experts * c.hidden_size)
                 : code * d(3 * c.hidden_size * c.intermediate_size);
    bytes += d(batch * context) * 2 * d(c.kv_lora_rank + c.qk_rope_head_dim);
  }
  return bytes;
}

/// Rounds of a Generator that give each of `batch` sequences behind 512 tokens its next one.
template <class P>
void generate_case(Run& run, Index batch) {
  constexpr Index prompt = 512, rounds = 24;
  run.work(static_cast<double>(batch), "tok/s");
  BenchModel<P> model(run.cuda, {.seed = 1});
  dsv3::GeneratorOptions options;
  options.max_sequences = batch;
  options.max_tokens = batch * (prompt + 64);
  options.prefill_tokens = batch * prompt;
  dsv3::Generator<BenchModel<P>> generator(model, options);
  for (Index b = 0; b < batch; ++b) {
    dsv3::GenerationRequest request;
    request.prompt = random_tokens(static_cast<std::uint64_t>(b), prompt);
    request.max_tokens = rounds + 4;
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    generator.add(std::move(request));
  }
  double begin = seconds();
  generator.step();  // the prompts, and a first token
  const double prefill = seconds() - begin;
  std::vector<double> times;
  for (Index round = 0; round < rounds; ++round) {
    begin = seconds();
    generator.step();
    times.push_back(seconds() - begin);
  }
  run.record.ms = 1e3 * median(times);
  generator.run();
  // A copy reads and writes: half the bytes take as long as reading all.
  const auto half = static_cast<Index>(decode_bytes<P>(batch, prompt) / 2);
  const auto from = run.take<std::byte>({half}), to = run.take<std::byte>({half});
  run.measure_peer("copy of its bytes", 0, 1, [&](Index) {
    dsv3::detail::check_cuda(cudaMemcpyAsync(to.data, from.data, static_cast<std::size_t>(half),
                                             cudaMemcpyDeviceToDevice, run.cuda.stream()),
                             "decoding", "cudaMemcpyAsync");
  });
  if (generator.result(0).tokens.size() != static_cast<std::size_t>(rounds + 4))
    throw std::runtime_error("a sequence has " + std::to_string(generator.result(0).tokens.size()) +
                             " tokens");
  char note[96];
  std::snprintf(note, sizeof note, "prompts %.0f tok/s",
                static_cast<double>(batch * prompt) / prefill);
  run.record.note = note;
}

template <class P>
void add_train_cases(Cases& cases) {
  cases.push_back({std::string("training step, ") + P::name + ", 4 x 2048 tokens", train_case<P>});
}

template <class P>
void add_generate_cases(Cases& cases) {
  for (const Index batch : {Index{1}, Index{32}})
    cases.push_back(
        {std::string("decoding, ") + P::name + ", B = " + std::to_string(batch) + ", 512 before",
         [=](Run& run) { generate_case<P>(run, batch); }});
}

}  // namespace gpu_bench
