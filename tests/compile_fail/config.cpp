// A config known at compile time that breaks a rule does not compile, and the message holds it.
#include <dsv3/config.hpp>

using dsv3::ModelConfig;

constexpr ModelConfig changed(auto change) {
  ModelConfig c = dsv3::presets::deepseek_v3;
  change(c);
  return c;
}
constexpr bool valid(const ModelConfig& c) {
  dsv3::validate(c);
  return true;
}
static_assert(valid(changed([](ModelConfig& c) { c.hidden_size = 256; })));

// case: n_group must divide n_routed_experts
constexpr bool bad = valid(changed([](ModelConfig& c) { c.n_group = 7; }));
// case: topk_group must be at most n_group
constexpr bool bad = valid(changed([](ModelConfig& c) { c.topk_group = 9; }));
// case: num_experts_per_tok must be at most n_routed_experts
constexpr bool bad = valid(changed([](ModelConfig& c) { c.num_experts_per_tok = 257; }));
// case: num_experts_per_tok must be at most the experts of topk_group groups
constexpr bool bad = valid(changed([](ModelConfig& c) { c.num_experts_per_tok = 129; }));
// case: group_score_top must be at most the experts of one group
constexpr bool bad = valid(changed([](ModelConfig& c) { c.group_score_top = 33; }));
// case: qk_rope_head_dim must be even: it rotates pairs
constexpr bool bad = valid(changed([](ModelConfig& c) { c.qk_rope_head_dim = 63; }));
// case: num_key_value_heads must equal num_attention_heads
constexpr bool bad = valid(changed([](ModelConfig& c) { c.num_key_value_heads = 8; }));
// case: first_k_dense_replace must be at most num_hidden_layers
constexpr bool bad = valid(changed([](ModelConfig& c) { c.first_k_dense_replace = 62; }));
// case: vocab_size must be at least 2
constexpr bool bad = valid(changed([](ModelConfig& c) { c.vocab_size = 0; }));
// case: hidden_size must be at least 1
constexpr bool bad = valid(changed([](ModelConfig& c) { c.hidden_size = -1; }));
// case: kv_lora_rank must be at least 1
constexpr bool bad = valid(changed([](ModelConfig& c) { c.kv_lora_rank = 0; }));
// case: routed_scaling_factor must be positive and finite
constexpr bool bad = valid(changed([](ModelConfig& c) { c.routed_scaling_factor = 0; }));
// case: rms_norm_eps must be in [0, 1)
constexpr bool bad = valid(changed([](ModelConfig& c) { c.rms_norm_eps = -1e-6; }));
// case: rope_scaling.factor must be at least 1
constexpr bool bad = valid(changed([](ModelConfig& c) { c.rope_scaling.factor = 0.5; }));
// case: num_nextn_predict_layers must be at most 64
constexpr bool bad = valid(changed([](ModelConfig& c) { c.num_nextn_predict_layers = 65; }));
