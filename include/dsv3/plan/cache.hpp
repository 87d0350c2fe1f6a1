// Plan: bytes that a token keeps in the cache, with latent attention and with the forms before it.
#pragma once

#include <dsv3/infer/latent_cache.hpp>

namespace dsv3::plan {

/// Bytes of latent cache of one token in the main layers; C is the cache's element, as LatentCache
/// has it: float, bf16, or e4m3 with its scales.
/// Source   spec 4.5.
template <class C = bf16>
constexpr Index cache_bytes_per_token(const ModelConfig& c) {
  return c.num_hidden_layers * CacheElement<C>::bytes(c.kv_lora_rank, c.qk_rope_head_dim);
}

/// Bytes that a LatentCache takes from its backend.
template <class C = bf16>
constexpr Index cache_bytes(const ModelConfig& c, const CacheOptions& options) {
  Arena arena;
  for (Index l = 0; l < c.num_hidden_layers + options.levels(c) - 1; ++l)
    take_cache_layer<C>(c, options, arena);
  return arena.used();
}

/// Attention that keeps keys and values themselves, one pair for each group of heads: as many
/// groups as heads is multi-head attention (MHA), one group is multi-query attention (MQA), any
/// number between them grouped-query attention (GQA).
struct GroupedAttention {
  Index layers, groups;
  Index key_dim, value_dim;  ///< of one head
};

/// Attention of a model's heads with so many groups, and without the part of the keys that only
/// latent attention needs: keys as wide as values.
constexpr GroupedAttention grouped_query(const ModelConfig& c, Index groups) {
  return {c.num_hidden_layers, groups, c.v_head_dim, c.v_head_dim};
}
constexpr GroupedAttention multi_query(const ModelConfig& c) { return grouped_query(c, 1); }
constexpr GroupedAttention multi_head(const ModelConfig& c) {
  return grouped_query(c, c.num_attention_heads);
}

/// The keys and values that latent attention would keep if it kept what it expands to.
constexpr GroupedAttention expanded(const ModelConfig& c) {
  return {c.num_hidden_layers, c.num_attention_heads, c.qk_head_dim(), c.v_head_dim};
}

/// Two published models for comparison, from their layers and heads.
/// Source   arXiv:2505.09343, table 1.
inline constexpr GroupedAttention qwen_2_5_72b = {80, 8, 128, 128};
inline constexpr GroupedAttention llama_3_1_405b = {126, 8, 128, 128};

/// Bytes of cache of one token. Codes have a scale for each 128 of a head, as in the latent cache.
template <class C = bf16>
constexpr Index cache_bytes_per_token(const GroupedAttention& a) {
  const auto bytes = [](Index dim) { return CacheElement<C>::bytes(dim, 0); };
  return a.layers * a.groups * (bytes(a.key_dim) + bytes(a.value_dim));
}

/// The groups with which grouped-query attention of a model's heads has a cache of this size.
/// Source   DeepSeek-V2, table 1.
constexpr double equivalent_groups(const ModelConfig& c) {
  return static_cast<double>(c.kv_lora_rank + c.qk_rope_head_dim) /
         static_cast<double>(2 * c.v_head_dim);
}

}  // namespace dsv3::plan
