// Attention over a latent cache as the tuned backend offers it.
#pragma once

#include <dsv3/backend/cpu/context.hpp>
#include <dsv3/backend/cpu/latent_attention.hpp>

namespace dsv3 {

/// Bytes that fused_latent_attention takes from its arena.
template <class T>
Index fused_latent_attention_bytes(const Cpu& cpu, Index tokens, Index heads, Index latent,
                                   Index rope, Index keys) {
  using A = accum_t<T>;
  const Index splits = groups_of(keys, detail::LatentTiles::split), rows = tokens * heads;
  return Arena::bytes<A>(detail::LatentAttentionMemory<T>::elements(latent, rope) * cpu.threads()) +
         Arena::bytes<A>(rows * splits * detail::padded<A>(latent)) +
         2 * Arena::bytes<A>(rows * splits) + Arena::bytes<Index>(tokens + 1);
}

/// Fused form of LatentAttention::forward, tile by tile; the bits of a token depend neither on
/// threads, nor on blocks and parts, nor on its neighbours in the pass.
///
/// Shapes   q_latent [T, n, r], q [T, n, d_n + d_r], o [T, n, r].
/// Source   Dao 2023, arXiv:2307.08691, with splits of the keys; spec 4.4 and 4.6.
template <class T, class C>
void fused_latent_attention(Cpu& cpu, View<const T, 3> q_latent, View<const T, 3> q,
                            CachePages<const C> pages, const CacheTable& table, double scale,
                            View<T, 3> o, Arena& scratch) {
  using A = accum_t<T>;
  using Tiles = detail::LatentTiles;
  using Memory = detail::LatentAttentionMemory<T>;
  const ArenaScope scope(scratch);
  const detail::LatentAttentionOf<T, C> in{q_latent, q, pages, table, scale};
  const Index tokens = q.extent(0), heads = q.extent(1), latent = in.latent(), rope = in.rope();
  const Index splits = groups_of(table.keys, Tiles::split), rows = tokens * heads;
  const Index each = Memory::elements(latent, rope);
  const auto memory = scratch.take<A>({each * cpu.threads()});
  const detail::LatentPartials<A> partials{
      scratch.take<A>({rows, splits, detail::padded<A>(latent)}), scratch.take<A>({rows, splits}),
      scratch.take<A>({rows, splits})};
  // Groups of neighbouring tokens of one part, as many as fill a tile's rows with their heads.
  const Index heads_each = std::min(heads, Tiles::rows),
              most = std::max(Index{1}, Tiles::rows / heads);
  const auto group = scratch.take<Index>({tokens + 1});
  Index groups = 0;
  for (Index t = 0; t < tokens; ++t)
    if (t == 0 || table.part(t) != table.part(t - 1) || t - group(groups - 1) == most)
      group(groups++) = t;
  group(groups) = tokens;
  const Index head_blocks = groups_of(heads, heads_each);
  cpu.parallel(groups * head_blocks * splits, 1, [&](Index first, Index last, int worker) {
    const Memory own(memory.data + each * worker, latent, rope);
    for (Index unit = first; unit < last; ++unit) {
      const Index split = unit % splits, h0 = unit / splits % head_blocks * heads_each;
      const Index g = unit / splits / head_blocks, t0 = group(g), count = group(g + 1) - t0;
      if (split * Tiles::split > table.position(t0 + count - 1)) continue;
      detail::latent_attention_split(in, t0, count, h0, std::min(heads_each, heads - h0), split,
                                     own, partials);
    }
  });
  for_each_row(cpu, rows, [&](auto, Index row) {
    const Index t = row / heads;
    detail::latent_attention_combine(partials, row, table.position(t) / Tiles::split + 1, scale,
                                     &o(t, row % heads, 0), latent);
  });
}

}  // namespace dsv3
