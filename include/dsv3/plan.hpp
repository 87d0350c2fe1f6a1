// Plan: what a model costs, before it exists: parameters, arithmetic, bytes. All of it constexpr.
#pragma once

#include <dsv3/backend/cpu.hpp>
#include <dsv3/core/moment.hpp>
#include <dsv3/infer/latent_cache.hpp>
#include <dsv3/nn/head.hpp>
#include <dsv3/nn/mtp.hpp>
#include <dsv3/nn/transformer.hpp>

/// Counting from a ModelConfig alone. Source: spec 1.2, 4.5 and 10.4.
namespace dsv3::plan {

/// Parameters of the latent attention of one layer, its two latent norms included.
constexpr Index attention_parameters(const ModelConfig& c) {
  const Index d = c.hidden_size, n = c.num_attention_heads;
  const Index q = c.q_lora_rank
                      ? d * c.q_lora_rank + c.q_lora_rank + c.q_lora_rank * n * c.qk_head_dim()
                      : d * n * c.qk_head_dim();
  const Index kv = d * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank +
                   c.kv_lora_rank * n * (c.qk_nope_head_dim + c.v_head_dim);
  return q + kv + n * c.v_head_dim * d;
}

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

/// Parameters without MTP: embedding, blocks, final norm, head.
constexpr Index main_parameters(const ModelConfig& c) {
  Index n = 2 * c.vocab_size * c.hidden_size + c.hidden_size;
  for (Index l = 0; l < c.num_hidden_layers; ++l) n += block_parameters(c, l);
  return n;
}

/// Parameters that a token uses in the main model: its experts, the head, not the embedding, which
/// is a lookup. DeepSeek's published figures count so.
constexpr Index activated_parameters(const ModelConfig& c) {
  Index n = c.vocab_size * c.hidden_size + c.hidden_size;
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

/// Bytes of latent cache of one token in the main layers; C is the cache's element, as LatentCache
/// has it.
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

/// FLOPs of the main model for one trained token, forward and backward, in rows of `length` tokens
/// with causal attention (each token sees length / 2 keys).
constexpr double training_flops_per_token(const ModelConfig& c, Index length) {
  const double attention =
      3.0 * static_cast<double>(c.num_hidden_layers) * static_cast<double>(c.num_attention_heads) *
      2.0 * static_cast<double>(c.qk_head_dim() + c.v_head_dim) * (static_cast<double>(length) / 2);
  return 6.0 * static_cast<double>(activated_parameters(c)) + attention;
}

/// Bytes of one set of all trainable tensors with elements of U, each starting at a multiple of 64.
template <class P, class U>
constexpr Index tensor_bytes(const ModelConfig& c) {
  Arena arena;
  WeightViews<U>::take_matrix(arena, c.vocab_size, c.hidden_size);
  WeightViews<U>::take_vector(arena, c.hidden_size);
  WeightViews<U>::take_matrix(arena, c.vocab_size, c.hidden_size);
  for (Index l = 0; l < c.num_hidden_layers; ++l) Block<P>::template make_tensors<U>(c, l, arena);
  for (Index k = 0; k < c.num_nextn_predict_layers; ++k)
    Mtp<P>::template make_tensors<U>(c, c.num_hidden_layers + k, arena);
  return arena.used();
}

/// Bytes of weights: masters, the rounded or quantised copy where operands have another type, gate
/// biases.
template <class P>
constexpr Index weight_bytes(const ModelConfig& c) {
  Index bytes = tensor_bytes<P, typename P::master>(c);
  if (!std::is_same_v<typename P::master, operand_t<P>>) bytes += tensor_bytes<P, operand_t<P>>(c);
  return bytes + Arena::bytes<typename P::accumulator>(c.moe_layers() * c.n_routed_experts);
}

/// Bytes of gradients and AdamW's two moments. The trainer's counters (load of experts, partial
/// sums of the gradient norm) come on top: 8 bytes for every expert and for every 4096 parameters.
template <class P>
constexpr Index optimizer_bytes(const ModelConfig& c) {
  return tensor_bytes<P, typename P::master>(c) + tensor_bytes<P, typename P::moment>(c) +
         tensor_bytes<P, second_moment_t<P>>(c);
}

namespace detail {

// Each function takes from a counting arena what its namesake takes when it runs.

template <class A>
constexpr void norm_backward(Arena& arena, Index tokens, Index features) {
  const ArenaScope scope(arena);
  arena.take<A>({tokens});
  arena.take<A>({(tokens + 63) / 64, features});
}

// Of an FP8 policy: rows of codes, columns of codes in ragged segments, and what the backward of
// one layer quantises. Plain policies take nothing.
template <class P>
constexpr void code_rows(Arena& arena, Index rows, Index columns) {
  if constexpr (QuantizedPolicy<P>) Projection<P>::take_rows(arena, rows, columns);
}
template <class P>
constexpr void code_columns(Arena& arena, Index rows, Index columns, Index segments = 1) {
  if constexpr (QuantizedPolicy<P>)
    take_segments<typename P::code>(arena, rows, columns, segments, P::tile);
}
template <class P>
constexpr void layer_backward(Arena& arena, Index tokens, Index out) {
  if constexpr (QuantizedPolicy<P>) {
    {
      const ArenaScope scope(arena);
      take_quantized<typename P::gradient_code>(arena, tokens, out, 1, P::tile);
    }
    const ArenaScope scope(arena);
    take_segments<typename P::gradient_code>(arena, tokens, out, 1, P::tile);
  }
}

template <class P>
constexpr void mlp_scratch(Arena& arena, Index tokens, Index hidden, Index inter, bool backward) {
  using T = typename P::activation;
  const ArenaScope scope(arena);
  if constexpr (QuantizedPolicy<P>) {
    if (!backward) code_rows<P>(arena, tokens, inter);
    arena.take<T>({tokens, inter});
    arena.take<T>({tokens, inter});
    if (!backward) return;
    {
      const ArenaScope down(arena);
      arena.take<T>({tokens, inter});
      {
        const ArenaScope rows(arena);
        take_quantized<typename P::gradient_code>(arena, tokens, hidden, 1, P::tile);
      }
      take_segments<typename P::gradient_code>(arena, tokens, hidden, 1, P::tile);
      code_columns<P>(arena, tokens, inter);
    }
    code_columns<P>(arena, tokens, hidden);
    layer_backward<P>(arena, tokens, inter);
  } else {
    for (int i = 0; i < (backward ? 3 : 1); ++i) arena.take<T>({tokens, inter});
  }
}

// The routed experts; what is not in a scope stays taken until the layer is done.
template <class P>
constexpr void experts_scratch(Arena& arena, Index tokens, Index pairs, Index hidden, Index inter,
                               Index experts, bool backward) {
  using T = typename P::activation;
  if constexpr (QuantizedPolicy<P>) {
    if (!backward) {
      code_rows<P>(arena, pairs, inter);
      {
        const ArenaScope scope(arena);
        code_rows<P>(arena, pairs, hidden);
        arena.take<T>({pairs, inter});
        arena.take<T>({pairs, inter});
      }
      arena.take<T>({pairs, hidden});
      return;
    }
    using GradientCode = typename P::gradient_code;
    arena.take<T>({pairs, inter});
    arena.take<T>({pairs, inter});
    {
      const ArenaScope down(arena);
      arena.take<T>({pairs, inter});
      take_quantized<GradientCode>(arena, tokens, hidden, 1, P::tile);
      take_quantized<GradientCode>(arena, pairs, hidden, 1, P::tile);
      code_columns<P>(arena, pairs, inter, experts);
      take_segments<GradientCode>(arena, pairs, hidden, experts, P::tile);
    }
    {
      const ArenaScope up(arena);
      code_rows<P>(arena, pairs, hidden);
      code_columns<P>(arena, pairs, hidden, experts);
      take_segments<GradientCode>(arena, pairs, inter, experts, P::tile);
    }
    arena.take<T>({pairs, hidden});
    const ArenaScope rows(arena);
    take_quantized<GradientCode>(arena, pairs, inter, 1, P::tile);
  } else {
    arena.take<T>({pairs, hidden});
    if (!backward) {
      arena.take<T>({pairs, inter});
      return;
    }
    const ArenaScope scope(arena);
    for (int i = 0; i < 3; ++i) arena.take<T>({pairs, inter});
  }
}

template <class P>
constexpr void moe_scratch(Arena& arena, const Moe<P>& moe, Index tokens, Index sequences, Index H,
                           bool backward) {
  using T = typename P::activation;
  using A = typename P::accumulator;
  const ArenaScope scope(arena);
  const Index E = moe.rule.n_routed_experts, K = moe.rule.num_experts_per_tok;
  const Index I = moe.moe_intermediate_size, shared = moe.shared_intermediate_size;
  if (!backward) {
    {
      const ArenaScope route(arena);
      arena.take<A>({tokens, E + moe.rule.n_group});
      arena.take<std::int32_t>({tokens, K});
      arena.take<A>({tokens});
      arena.take<A>({sequences, E});
    }
    experts_scratch<P>(arena, tokens, tokens * K, H, I, E, false);
  } else {
    arena.take<A>({tokens, K});
    experts_scratch<P>(arena, tokens, tokens * K, H, I, E, true);
    arena.take<A>({tokens, E});
    arena.take<A>({tokens, H});
  }
  if (!shared) return;
  arena.take<T>({tokens, H});
  mlp_scratch<P>(arena, tokens, H, shared, backward);
}

template <class P>
constexpr void mla_forward(Arena& arena, const Mla<P>& mla, Index tokens, Index attention_bytes) {
  const ArenaScope scope(arena);
  mla.make_expanded(arena, tokens);
  if (Mla<P>::packs_output) mla.take_output(arena, tokens);
  {
    const ArenaScope attention(arena);
    arena.take<std::byte>({attention_bytes});
  }
  code_rows<P>(arena, tokens, mla.num_attention_heads * mla.v_head_dim);
}

template <class P>
constexpr void mla_backward(Arena& arena, const Mla<P>& mla, Index tokens, Index hidden,
                            Index attention_bytes) {
  using T = typename P::activation;
  using A = typename P::accumulator;
  const ArenaScope scope(arena);
  const Index n = mla.num_attention_heads, rq = mla.q_lora_rank, rkv = mla.kv_lora_rank;
  const Index q = n * mla.qk_head_dim(), kv = n * (mla.qk_nope_head_dim + mla.v_head_dim);
  mla.make_expanded(arena, tokens);
  arena.take<T>({tokens, q});
  arena.take<T>({tokens, kv});
  arena.take<T>({tokens, rkv + mla.qk_rope_head_dim});
  {
    const ArenaScope output(arena);
    mla.take_output(arena, tokens);
    if (Mla<P>::packs_output) mla.take_output(arena, tokens);
    {
      const ArenaScope columns(arena);
      code_columns<P>(arena, tokens, n * mla.v_head_dim);
      layer_backward<P>(arena, tokens, hidden);
    }
    arena.take<std::byte>({attention_bytes});
  }
  const auto latent = [&](Index rank, Index out) {
    const ArenaScope inner(arena);
    arena.take<T>({tokens, rank});
    {
      const ArenaScope layer(arena);
      code_columns<P>(arena, tokens, rank);
      layer_backward<P>(arena, tokens, out);
    }
    norm_backward<A>(arena, tokens, rank);
  };
  latent(rkv, kv);
  if (rq) {
    arena.take<T>({tokens, rq});
    latent(rq, q);
  }
  code_columns<P>(arena, tokens, hidden);
  layer_backward<P>(arena, tokens, rkv + mla.qk_rope_head_dim);
  layer_backward<P>(arena, tokens, rq ? rq : q);
}

// The plain values beside the codes that the experts read.
template <class P>
constexpr void ffn_values(Arena& arena, bool is_moe, Index tokens, Index H) {
  if (QuantizedPolicy<P> && is_moe) arena.take<typename P::activation>({tokens, H});
}

template <class P>
constexpr void block_forward(Arena& arena, const Block<P>& block, bool is_moe, Index tokens,
                             Index H, Index sequences, Index attention_bytes) {
  const ArenaScope scope(arena);
  Projection<P>::take_operand(arena, tokens, H);
  arena.take<typename P::activation>({tokens, H});
  mla_forward<P>(arena, block.mla, tokens, attention_bytes);
  ffn_values<P>(arena, is_moe, tokens, H);
  if (is_moe)
    moe_scratch<P>(arena, block.moe, tokens, sequences, H, false);
  else
    mlp_scratch<P>(arena, tokens, H, block.intermediate_size, false);
}

template <class P>
constexpr void block_backward(Arena& arena, const Block<P>& block, bool is_moe, Index tokens,
                              Index H, Index attention_bytes) {
  using T = typename P::activation;
  using A = typename P::accumulator;
  const ArenaScope scope(arena);
  Projection<P>::take_operand(arena, tokens, H);
  arena.take<T>({tokens, H});
  arena.take<T>({tokens, H});
  {
    const ArenaScope ffn(arena);
    ffn_values<P>(arena, is_moe, tokens, H);
    if (is_moe)
      moe_scratch<P>(arena, block.moe, tokens, 0, H, true);
    else
      mlp_scratch<P>(arena, tokens, H, block.intermediate_size, true);
  }
  norm_backward<A>(arena, tokens, H);
  mla_backward<P>(arena, block.mla, tokens, H, attention_bytes);
}

}  // namespace detail

/// Bytes of working memory of one training pass over B rows of T tokens, without padding or packed
/// documents: the batch's lists, everything kept for backward, and the largest scratch. Equals what
/// the pass takes (Model::measured_bytes).
///
/// It is that of the backend Cpu with so many threads, whose attention is fused. Of FP8 policies
/// those with tiles, float's own sums and without the checked mode are counted.
template <class P>
constexpr Index pass_bytes(const ModelConfig& c, Index B, Index T_, Keep keep, int threads) {
  if constexpr (QuantizedPolicy<P>)
    static_assert(P::tile > 0 && P::accumulation.bits == 0 && !P::checked,
                  "plan::pass_bytes counts FP8 policies with tiles, without emulated accumulation "
                  "and without the checked mode; Model::counted_bytes serves the others");
  using T = typename P::activation;
  using R = typename P::residual;
  using A = typename P::accumulator;
  const Block<P> block(c, Mla<P>(c, 1.0));
  const Index D = c.num_nextn_predict_layers, H = c.hidden_size;
  const auto tokens = [&](Index k) { return B * (T_ > k ? T_ - k : 0); };
  const auto attention_bytes = [&](Index n, bool backward) {
    const Index heads = c.num_attention_heads, d_n = c.qk_nope_head_dim, d_r = c.qk_rope_head_dim;
    return backward ? fused_attention_backward_bytes<T>(n, heads, d_n, d_r, c.v_head_dim, threads)
                    : fused_attention_forward_bytes<T>(n, heads, d_n, d_r, c.v_head_dim, threads);
  };
  Arena arena;
  for (Index k = 0; k <= D; ++k) {
    arena.take<std::int32_t>({k ? tokens(k) : 0});
    for (int i = 0; i < 5; ++i) arena.take<std::int32_t>({tokens(k)});
    arena.take<std::int32_t>({B + 1});
    arena.take<std::int32_t>({tokens(k)});
  }
  arena.take<A>({T_, 2, c.qk_rope_head_dim / 2});
  arena.take<A>({1 + D});
  arena.take<A>({c.moe_layers()});
  for (Index k = 0; k <= D; ++k) {
    const Index n = tokens(k), blocks = k ? 1 : c.num_hidden_layers;
    arena.take<T>({n, H});
    arena.take<A>({n});
    arena.take<T>({n, H});
    arena.take<R>({n, H});
    if (k) {
      arena.take<T>({n, H});
      arena.take<T>({n, H});
      const ArenaScope scope(arena);
      arena.take<T>({n, 2 * H});
    }
    for (Index b = 0; b < blocks; ++b) {
      const bool moe = c.is_moe(k ? c.num_hidden_layers + k - 1 : b);
      arena.take<R>({n, H});
      if (keep == Keep::inputs && moe) arena.take<std::int32_t>({n, c.num_experts_per_tok});
      const Index mark = arena.used();
      block.make_saved(arena, moe, n, H, B);
      detail::block_forward<P>(arena, block, moe, n, H, B, attention_bytes(n, false));
      if (keep == Keep::inputs) arena.release(mark);
    }
    const Index most = Head<P>::chunk_tokens(c.vocab_size), chunk = n < most ? n : most;
    const ArenaScope scope(arena);
    arena.take<A>({chunk, c.vocab_size});
    arena.take<A>({n});
    if (!std::is_same_v<T, A>) arena.take<T>({chunk, c.vocab_size});
  }
  for (Index k = D; k >= 0; --k) {
    const Index n = tokens(k), blocks = k ? 1 : c.num_hidden_layers;
    arena.take<R>({n, H});
    detail::norm_backward<A>(arena, n, H);
    for (Index b = blocks - 1; b >= 0; --b) {
      const bool moe = c.is_moe(k ? c.num_hidden_layers + k - 1 : b);
      const ArenaScope scope(arena);
      if (keep == Keep::inputs) {
        block.make_saved(arena, moe, n, H, B);
        arena.take<R>({n, H});
        detail::block_forward<P>(arena, block, moe, n, H, B, attention_bytes(n, false));
      }
      detail::block_backward<P>(arena, block, moe, n, H, attention_bytes(n, true));
    }
    const auto embedding = [&] {
      const ArenaScope scope(arena);
      arena.take<Index>({c.vocab_size + 1});
      arena.take<std::int32_t>({n});
      arena.take<std::int32_t>({n, 1});
    };
    if (k == 0) {
      embedding();
      continue;
    }
    arena.take<T>({n, H});
    const ArenaScope scope(arena);
    arena.take<T>({n, H});
    {
      const ArenaScope input(arena);
      arena.take<T>({n, 2 * H});
      arena.take<T>({n, 2 * H});
      detail::norm_backward<A>(arena, n, H);
    }
    embedding();
  }
  return arena.peak();
}

}  // namespace dsv3::plan
