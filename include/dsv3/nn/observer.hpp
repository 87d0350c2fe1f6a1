// Observer: how a caller looks at values inside a forward pass.
#pragma once

namespace dsv3 {

/// Sees nothing and costs nothing. An observer of one's own is any callable
///
///     observer(const char* what, auto view)          inside a block
///     observer(const char* what, Index layer, auto view)      inside a model
///
/// whose views lie in the backend's memory and live until it returns. A block passes "latent"
/// [T, kv_lora_rank] and "k_rope" [T, qk_rope_head_dim] (MLA), "scores" [T, E], "topk_idx" and
/// "topk_weight" [T, K], "load" (segment offsets, [E + 1]) and "balance" [1] (MoE), "attn" and
/// "out" [T, H] (whole block).
struct NoObserver {
  void operator()(auto&&...) const {}
};

}  // namespace dsv3
