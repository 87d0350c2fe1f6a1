// Plan: how many parameters a model has, and how many a token uses.
#pragma once

#include <dsv3/config.hpp>

/// What a model costs, before it exists, from a ModelConfig alone.
namespace dsv3::plan {

/// Parameters of the latent attention of one layer, its two latent norms included.
/// Source   spec 1.2, as all counts here.
constexpr Index attention_parameters(const ModelConfig& c) {
  const Index d = c.hidden_size, n = c.num_attention_heads;
  const Index q = c.q_lora_rank
                      ? d * c.q_lora_rank + c.q_lora_rank + c.q_lora_rank * n * c.qk_head_dim()
                      : d * n * c.qk_head_dim();
  const Index kv = d * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank +
                   c.kv_lora_rank * n * (c.qk_nope_head_dim + c.v_head_dim);
  return q + kv + n * c.v_head_dim * d;
}

/// Parameters of the embedding, and of the head.
constexpr Index embedding_parameters(const ModelConfig& c) { return c.vocab_size * c.hidden_size; }

/// Parameters of one routed expert.
constexpr Index expert_parameters(const ModelConfig& c) {
  return 3 * c.hidden_size * c.moe_intermediate_size;
}

/// Parameters of block `layer`, of which a token uses `experts` routed experts.
constexpr Index block_parameters(const ModelConfig& c, Index layer, Index experts) {
  const Index d = c.hidden_size, common = attention_parameters(c) + 2 * d;
  if (!c.is_moe(layer)) return common + 3 * d * c.intermediate_size;
  return common + c.n_routed_experts * d + (c.has_bias() ? c.n_routed_experts : 0) +
         (experts + c.n_shared_experts) * expert_parameters(c);
}

/// Parameters of block `layer`.
constexpr Index block_parameters(const ModelConfig& c, Index layer) {
  return block_parameters(c, layer, c.n_routed_experts);
}

/// Parameters of block `layer`'s norms and gate, of which a token uses all: what is not FP8 in it.
/// Source   spec 7.5.
constexpr Index block_plain_parameters(const ModelConfig& c, Index layer) {
  const Index norms = 2 * c.hidden_size + c.q_lora_rank + c.kv_lora_rank;
  return norms +
         (c.is_moe(layer) ? c.n_routed_experts * (c.hidden_size + (c.has_bias() ? 1 : 0)) : 0);
}

/// Parameters without MTP: embedding, blocks, final norm, head.
constexpr Index main_parameters(const ModelConfig& c) {
  Index n = 2 * embedding_parameters(c) + c.hidden_size;
  for (Index l = 0; l < c.num_hidden_layers; ++l) n += block_parameters(c, l);
  return n;
}

/// Parameters that a token uses in the main model: its experts, the head, not the embedding, which
/// is a lookup. DeepSeek's published figures count so.
constexpr Index activated_parameters(const ModelConfig& c) {
  Index n = embedding_parameters(c) + c.hidden_size;
  for (Index l = 0; l < c.num_hidden_layers; ++l)
    n += block_parameters(c, l, c.num_experts_per_tok);
  return n;
}

/// Parameters of one MTP module beside the shared embedding and head, of which a token uses
/// `experts` routed experts.
constexpr Index mtp_parameters(const ModelConfig& c, Index experts) {
  return block_parameters(c, c.num_hidden_layers, experts) + 2 * c.hidden_size * c.hidden_size +
         3 * c.hidden_size;
}

/// Parameters of one MTP module beside the shared embedding and head.
constexpr Index mtp_parameters(const ModelConfig& c) {
  return mtp_parameters(c, c.n_routed_experts);
}

/// Parameters of the whole model, embedding and head counted once.
constexpr Index total_parameters(const ModelConfig& c) {
  return main_parameters(c) +
         (c.num_nextn_predict_layers ? c.num_nextn_predict_layers * mtp_parameters(c) : 0);
}

}  // namespace dsv3::plan
