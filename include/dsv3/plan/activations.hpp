// Plan: what a block keeps for backward in a training system of many processes.
#pragma once

#include <dsv3/nn/transformer.hpp>

namespace dsv3::plan {

/// How the inputs of routed experts are had in backward.
enum class ExpertInputs {
  gathered,  ///< again from the block's tokens
  kept       ///< as they were dispatched: one row for each expert that a token uses
};

/// Bytes of one value that an FP8 policy P keeps as a code, and of one that it keeps packed (e5m6):
/// with a float scale for each tile. Other policies keep activations.
/// Source   spec 7.6.
template <class P>
constexpr double kept_bytes(bool packed) {
  if constexpr (QuantizedPolicy<P>) {
    const double scale = P::tile > 0 ? 4.0 / P::tile : 0;
    return (packed ? 1.5 : static_cast<double>(sizeof(typename P::code))) + scale;
  }
  return sizeof(typename P::activation);
}

/// Bytes that one token keeps for backward in block `layer`: two residuals, the latents before
/// their norms, attention's output and log-sum-exp, the two inputs of SwiGLU, and the gate's
/// logits. Norms and the latents' up-projections are computed again. With Keep::inputs the block's
/// input and its choice of experts alone.
///
/// The residual stream counts as an activation, which it is in DeepSeek-V3. What this library
/// itself takes, its float residuals and its working memory included, is pass_bytes.
/// Source   spec 10.4 and 7.6.
template <class P>
constexpr double saved_bytes_per_token(const ModelConfig& c, Index layer, Keep keep,
                                       ExpertInputs inputs) {
  const auto d = [](Index n) { return static_cast<double>(n); };
  constexpr double plain = sizeof(typename P::activation), full = 4;
  const bool moe = c.is_moe(layer);
  if (keep == Keep::nothing) return 0;
  if (keep == Keep::inputs)
    return plain * d(c.hidden_size) + (moe ? full * d(c.num_experts_per_tok) : 0);
  double bytes = plain * d(2 * c.hidden_size + c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim);
  bytes += d(c.num_attention_heads) * (kept_bytes<P>(true) * d(c.v_head_dim) + full);
  if (!moe) return bytes + kept_bytes<P>(false) * d(2 * c.intermediate_size);
  bytes += kept_bytes<P>(false) *
           d(2 * (c.num_experts_per_tok + c.n_shared_experts) * c.moe_intermediate_size);
  if (inputs == ExpertInputs::kept)
    bytes += kept_bytes<P>(false) * d(c.num_experts_per_tok * c.hidden_size);
  return bytes + full * d(c.n_routed_experts);
}

}  // namespace dsv3::plan
