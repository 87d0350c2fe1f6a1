// Plan: the working memory that each block takes from the arena, forward and backward.
#pragma once

#include <dsv3/nn/transformer.hpp>

namespace dsv3::plan::detail {

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
      arena.take<A>({moe.balance_spans(sequences), E});
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

}  // namespace dsv3::plan::detail
