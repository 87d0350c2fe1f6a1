// A whole experiment: a model of compile-time sizes, and training steps on it.
#include <cstdio>
#include <dsv3/model.hpp>

// Start from a published model, change what you study. A bad value does not compile.
inline constexpr dsv3::ModelConfig tiny = [] {
  auto c = dsv3::presets::deepseek_v3;
  c.vocab_size = 64, c.hidden_size = 64, c.num_hidden_layers = 3, c.first_k_dense_replace = 1;
  c.num_attention_heads = c.num_key_value_heads = 2, c.q_lora_rank = 32, c.kv_lora_rank = 16;
  c.qk_nope_head_dim = 16, c.qk_rope_head_dim = 8, c.v_head_dim = 16, c.intermediate_size = 128;
  c.moe_intermediate_size = 32, c.n_routed_experts = 16, c.num_experts_per_tok = 4;
  c.n_group = 4, c.topk_group = 2, c.max_position_embeddings = 32, c.rope_scaling = {};
  return c;
}();

int main() {
  std::vector<std::int32_t> text(8 * 33);  // 8 rows of 32 tokens and the one that follows
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<std::int32_t>(i * i % 61);
  const dsv3::View<const std::int32_t, 2> tokens(text.data(), {8, 33});

  dsv3::Cpu backend;
  dsv3::Model<dsv3::Bf16, dsv3::Cpu, tiny> model(backend, {.seed = 1, .init_std = 0.02});
  dsv3::Trainer trainer(model, {.peak_lr = 3e-3});
  for (int i = 0; i < 50; ++i) {
    const auto step = trainer.step(tokens);
    if (i % 10 == 9)
      std::printf("step %td: loss %.3f, MTP loss %.3f, balance loss %.3f, MaxVio %.2f\n", step.step,
                  step.loss, step.mtp_loss[0], step.balance, step.max_violation);
  }
}
