// The small models of spec 1.3.
#pragma once

#include <dsv3/config.hpp>

namespace dsv3 {

constexpr ModelConfig tiny(Index d, Index inter, Index moe_inter, Index layers, Index dense,
                           Index heads, Index r_q, Index r_kv, Index d_n, Index d_r, Index d_v,
                           Index experts, Index k, Index groups, Index kept, Index vocab) {
  ModelConfig c;
  c.hidden_size = d;
  c.intermediate_size = inter;
  c.moe_intermediate_size = moe_inter;
  c.num_hidden_layers = layers;
  c.first_k_dense_replace = dense;
  c.num_attention_heads = c.num_key_value_heads = heads;
  c.q_lora_rank = r_q;
  c.kv_lora_rank = r_kv;
  c.qk_nope_head_dim = d_n;
  c.qk_rope_head_dim = d_r;
  c.v_head_dim = d_v;
  c.n_routed_experts = experts;
  c.num_experts_per_tok = k;
  c.n_group = groups;
  c.topk_group = kept;
  c.vocab_size = vocab;
  return c;
}
inline constexpr auto tiny_dense = tiny(64, 160, 1, 2, 2, 4, 0, 32, 16, 8, 16, 1, 1, 1, 1, 256);
inline constexpr auto tiny_moe = tiny(64, 160, 32, 3, 1, 4, 48, 32, 16, 8, 16, 16, 4, 4, 2, 512);
inline constexpr auto tiny_fp8 =
    tiny(256, 384, 128, 2, 1, 2, 128, 128, 64, 32, 64, 8, 2, 1, 1, 1024);
inline constexpr auto small_train =
    tiny(512, 1408, 256, 8, 1, 8, 0, 128, 64, 32, 64, 32, 4, 4, 2, 4096);

}  // namespace dsv3
