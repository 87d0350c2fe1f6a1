// Plan: arithmetic of a token, trained or decoded. A product of m x k by k x n is 2 m k n FLOPs.
#pragma once

#include <dsv3/plan/parameters.hpp>

namespace dsv3::plan {

/// FLOPs of the main model for one token, part by part.
///
/// Every parameter that a token uses counts two, products or not, as published figures have it.
struct TokenFlops {
  double projections = 0;  ///< of attention
  double scores = 0;       ///< of attention: queries by keys, probabilities by values
  double mlp = 0;          ///< of dense blocks
  double experts = 0;      ///< routed and shared
  double gates = 0;
  double head = 0;
  double norms = 0;  ///< and gate biases

  constexpr double total() const {
    return projections + scores + mlp + experts + gates + head + norms;
  }
};

namespace detail {

constexpr double real(Index n) { return static_cast<double>(n); }

// Of one (query, key) pair in all heads of one layer: expanded, and absorbed into the latent.
constexpr double expanded_score_flops(const ModelConfig& c) {
  return 2 * real(c.num_attention_heads) * real(c.qk_head_dim() + c.v_head_dim);
}
constexpr double absorbed_score_flops(const ModelConfig& c) {
  return 2 * real(c.num_attention_heads) * real(2 * c.kv_lora_rank + c.qk_rope_head_dim);
}

constexpr TokenFlops token_flops(const ModelConfig& c, double scores_of_a_layer) {
  const Index latent_norms = c.q_lora_rank + c.kv_lora_rank;
  TokenFlops f;
  for (Index l = 0; l < c.num_hidden_layers; ++l) {
    f.projections += 2 * real(attention_parameters(c) - latent_norms);
    f.scores += scores_of_a_layer;
    if (c.is_moe(l)) {
      f.experts +=
          2 * real(c.num_experts_per_tok + c.n_shared_experts) * real(expert_parameters(c));
      f.gates += 2 * real(c.n_routed_experts * c.hidden_size);
    } else {
      f.mlp += 2 * real(3 * c.hidden_size * c.intermediate_size);
    }
  }
  f.head = 2 * real(embedding_parameters(c));
  f.norms =
      2 * real(activated_parameters(c)) - (f.projections + f.mlp + f.experts + f.gates + f.head);
  return f;
}

}  // namespace detail

/// Forward, of a token that attends to `keys` tokens by expanded keys and values, as training and
/// prefill do.
/// Source   spec 10.4.
constexpr TokenFlops forward_flops(const ModelConfig& c, double keys) {
  return detail::token_flops(c, detail::expanded_score_flops(c) * keys);
}

/// Decoding, of a token that attends to `keys` cached tokens in the absorbed form: kv_b_proj is
/// applied to the query and to the result instead of to every key, at the same count.
/// Source   spec 4.4.
constexpr TokenFlops decode_flops(const ModelConfig& c, double keys) {
  return detail::token_flops(c, detail::absorbed_score_flops(c) * keys);
}

/// Keys that a token of a row of `length` tokens sees on average: with causal attention half.
constexpr double mean_keys(Index length, bool causal = true) {
  return detail::real(length) / (causal ? 2 : 1);
}

/// FLOPs of the main model for one trained token in rows of `length` tokens: forward, and twice
/// that backward, in inputs and in weights. Recomputation is not counted.
constexpr double training_flops_per_token(const ModelConfig& c, Index length, bool causal = true) {
  return 3 * forward_flops(c, mean_keys(length, causal)).total();
}

/// The same of one MTP module, with its use of the shared head.
constexpr double mtp_training_flops_per_token(const ModelConfig& c, Index length) {
  const Index parameters = mtp_parameters(c, c.num_experts_per_tok) + embedding_parameters(c);
  return 6 * detail::real(parameters) + 3 * detail::expanded_score_flops(c) * mean_keys(length);
}

}  // namespace dsv3::plan
