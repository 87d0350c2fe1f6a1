// Attention over a latent cache as a GPU offers it. For the host's compiler too.
#pragma once

#include <algorithm>
#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/core/arena.hpp>
#include <dsv3/core/cache_pages.hpp>

namespace dsv3 {
namespace detail {

// Tiles and splits start at absolute multiples of their size, whatever the blocks of the cache and
// the load. A split is worked through on its own by one block of threads, so that long contexts
// occupy the whole GPU; splits are then added in ascending order.
struct LatentTile {
  static constexpr int keys = 64, rows = 64;  // a row is a pair of token and head
  static constexpr int split = 512;
  static constexpr int threads = 256;
  static constexpr int columns = 64;  // of a panel, of which a row is 128 bytes

  // Bytes of the queries, of `stages` tiles of keys, of the weights, of what rows share, and what
  // it takes to begin at a multiple of 1024.
  static constexpr int bytes(int width, int stages) {
    return 2 * rows * width + 2 * keys * width * stages + 2 * rows * keys + 4 * rows * 6 + 1024;
  }
};

enum class LatentKernel { any_size, tile_128, tile_512 };  // the columns of latents a tile has

// How a pass over the tokens is cut. Rows of a tile are the heads of one token, or of neighbouring
// tokens of one part where heads are few.
struct LatentPlan {
  LatentKernel kernel;
  int stages;        // tiles of keys in shared memory
  Index heads_each;  // of a tile
  Index head_blocks;
  Index most;         // tokens of a tile
  Index splits;       // of the longest token's keys
  Index tokens_each;  // of a launch, which bounds the memory of partial results
  Index padded;       // columns of a partial result
  Index partials;     // one for each split of a row

  Index bytes() const {
    return Arena::bytes<float>(partials * padded) + 2 * Arena::bytes<float>(partials);
  }
};

// More tokens or keys never take fewer bytes.
inline LatentPlan latent_plan(int multiprocessors, int shared_bytes, Index tokens, Index heads,
                              Index latent, Index rope, Index keys) {
  LatentPlan plan{};
  plan.kernel = LatentKernel::any_size;
  if (rope <= 64 && latent <= 512) {
    const int width = latent <= 128 ? 128 + 64 : 512 + 64;
    plan.stages = LatentTile::bytes(width, 2) <= shared_bytes ? 2 : 1;
    if (LatentTile::bytes(width, plan.stages) <= shared_bytes)
      plan.kernel = latent <= 128 ? LatentKernel::tile_128 : LatentKernel::tile_512;
  }
  const bool tiles = plan.kernel != LatentKernel::any_size;
  heads = std::max(Index{1}, heads);
  plan.heads_each = tiles ? std::min(heads, Index{LatentTile::rows}) : 1;
  plan.head_blocks = groups_of(heads, plan.heads_each);
  plan.most = tiles ? std::max(Index{1}, LatentTile::rows / heads) : 1;
  plan.splits = groups_of(std::max(Index{1}, keys), LatentTile::split);
  plan.padded = groups_of(latent, 128) * 128;
  plan.tokens_each = tokens;
  if (plan.splits == 1 && tiles) return plan;  // every row is written at once
  // About 16 tiles for each multiprocessor hide that they do not all end at the same time.
  const Index limit = Index{16} * multiprocessors * LatentTile::rows;
  const Index row = heads * plan.splits, least = plan.most * row;
  plan.tokens_each = std::min(tokens, std::max(plan.most, limit / row / plan.most * plan.most));
  plan.partials = std::min(tokens * row, std::max(limit, least));
  return plan;
}

inline LatentPlan latent_plan(const Cuda& cuda, Index tokens, Index heads, Index latent, Index rope,
                              Index keys) {
  return latent_plan(cuda.multiprocessors(), cuda.shared_bytes(), tokens, heads, latent, rope,
                     keys);
}

}  // namespace detail

/// Bytes that fused_latent_attention takes from its arena.
template <class T>
requires std::is_same_v<T, bf16> Index fused_latent_attention_bytes(const Cuda& cuda, Index tokens,
                                                                    Index heads, Index latent,
                                                                    Index rope, Index keys) {
  return detail::latent_plan(cuda, tokens, heads, latent, rope, keys).bytes();
}

/// Fused form of LatentAttention::forward, tile by tile on tensor cores; the bits of a token depend
/// neither on blocks and parts, nor on its neighbours in the pass. Other types than bf16 keep the
/// row kernel.
///
/// Shapes   q_latent [T, n, r], q [T, n, d_n + d_r], o [T, n, r]. The table's views are the
/// device's
///          and are not read here; positions ascend within a part.
/// Types    bf16, and a cache of any element, which is rounded to bf16 first; sums in float,
/// weights
///          rounded to bf16 before they are summed. Fast: r <= 512 and d_r <= 64, caches of bf16 or
///          e4m3, rows that start at multiples of 16 bytes.
/// Errors   std::runtime_error when a launch fails; the arena's.
/// Source   Dao 2023, arXiv:2307.08691, with splits of the keys; spec 4.4 and 4.6.
template <class C>
void fused_latent_attention(Cuda& cuda, View<const bf16, 3> q_latent, View<const bf16, 3> q,
                            CachePages<const C> pages, const CacheTable& table, double scale,
                            View<bf16, 3> o, Arena& scratch);

}  // namespace dsv3
