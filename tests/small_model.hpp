// A model with every feature and odd sizes, and a short training of it on any backend.
#pragma once

#include <cstring>
#include <dsv3/model.hpp>
#include <vector>

namespace small {

using dsv3::Index;

inline dsv3::ModelConfig config() {
  dsv3::ModelConfig c;
  c.vocab_size = 53;
  c.hidden_size = 40;
  c.intermediate_size = 48;
  c.moe_intermediate_size = 24;
  c.num_hidden_layers = 2;
  c.num_nextn_predict_layers = 1;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = c.num_key_value_heads = 3;
  c.q_lora_rank = 20;
  c.kv_lora_rank = 16;
  c.qk_nope_head_dim = 10;
  c.qk_rope_head_dim = 6;
  c.v_head_dim = 12;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 3;
  c.n_group = 4;
  c.topk_group = 2;
  c.rope_scaling = dsv3::presets::deepseek_yarn;
  c.rope_scaling.factor = 4;
  c.rope_scaling.original_max_position_embeddings = 8;
  return c;
}

/// A model with sizes that the fast kernels take: heads of 128 + 64, widths in multiples of 128.
inline dsv3::ModelConfig wide_config() {
  dsv3::ModelConfig c = config();
  c.vocab_size = 320;
  c.hidden_size = 256;
  c.intermediate_size = 512;
  c.moe_intermediate_size = 128;
  c.num_attention_heads = c.num_key_value_heads = 2;
  c.q_lora_rank = 128;
  c.kv_lora_rank = 128;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  return c;
}

struct Outcome {
  std::vector<double> figures;  // loss, MTP loss, balance loss and gradient norm of each step
  std::uint64_t hash = 0;       // of every bit of the trained masters and of the figures

  bool operator==(const Outcome&) const = default;
};

/// Three steps on the same 2 x 17 tokens, then an evaluation of the averages of the weights.
template <class P, class Backend>
Outcome train(Backend& backend) {
  dsv3::Model<P, Backend> model(backend, config(), {.seed = 3, .init_std = 0.1});
  dsv3::TrainOptions options;
  options.schedule = dsv3::Schedule{}.scaled(3 * 34, 1e-2, 2);
  options.ema_decay = 0.75;
  dsv3::Trainer trainer(model, options);
  std::vector<std::int32_t> tokens(2 * 18);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * i % 53);
  Outcome outcome;
  for (int step = 0; step < 3; ++step) {
    const auto report = trainer.step(dsv3::View<const std::int32_t, 2>(tokens.data(), {2, 18}));
    outcome.figures.insert(outcome.figures.end(),
                           {report.loss, report.mtp_loss[0], report.balance, report.grad_norm});
  }
  const dsv3::Batch rows =
      dsv3::next_token_batch(dsv3::View<const std::int32_t, 2>(tokens.data(), {2, 18}));
  const dsv3::Batch held_out[] = {rows, rows};
  trainer.swap_averages();
  const auto evaluation = trainer.evaluate(held_out);
  trainer.swap_averages();
  outcome.figures.insert(outcome.figures.end(), {evaluation.loss, evaluation.balance});
  std::string bits(reinterpret_cast<const char*>(outcome.figures.data()),
                   outcome.figures.size() * sizeof(double));
  model.for_each_tensor([&](const std::string&, const auto& view) {
    std::string tensor(static_cast<std::size_t>(view.size()) * sizeof(*view.data), '\0');
    copy_to_host(backend, tensor.data(), view.data, static_cast<Index>(tensor.size()));
    bits += tensor;
  });
  outcome.hash = dsv3::hash_name(bits);
  return outcome;
}

}  // namespace small
