// Plan: bytes of working memory of one training pass in one process, as this library takes them.
#pragma once

#include <dsv3/backend/cpu.hpp>
#include <dsv3/nn/head.hpp>
#include <dsv3/nn/mtp.hpp>
#include <dsv3/plan/pass_scratch.hpp>

namespace dsv3::plan {

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
