// The model of 64.0 M parameters that whole-model benchmarks measure: the sizes of a transformers
// DeepseekV3 model without MTP.
#pragma once

#include <dsv3/config.hpp>

namespace bench {

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

}  // namespace bench
