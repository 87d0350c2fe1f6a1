// Attention over a latent cache in tiles of keys, which all heads of a token share.
#pragma once

#include <dsv3/backend/cpu/attention.hpp>
#include <dsv3/core/cache_pages.hpp>

namespace dsv3::detail {

// Tiles and splits start at absolute multiples of their size, whatever the blocks of the cache. A
// split is worked through on its own, so that long contexts occupy all threads; splits are then
// added in ascending order.
struct LatentTiles {
  static constexpr Index keys = AttentionTiles::keys, split = 256;
  static constexpr Index rows = 64;  // pairs of token and head that share a tile
};

// One thread's memory, counted in elements of A. Scores are products of queries and keys as they
// are, of type T; what is added up, weights and values, is of type A.
template <class T>
struct LatentAttentionMemory {
  using Tiles = LatentTiles;
  using A = accum_t<T>;
  using Kernel = KernelFor<T, T, T>;
  typename Kernel::Packed *q, *keys;
  T* tile;
  A *values, *scores, *sum, *largest, *denominator;

  static constexpr Index sizes(Index latent, Index rope, int i) {
    const Index width = padded<A>(latent + rope), v = padded<A>(latent);
    const Index all[] = {Tiles::rows * width,
                         Tiles::keys * width,
                         padded<A>(Tiles::keys) * width,
                         Tiles::keys * v,
                         Tiles::rows * padded<A>(Tiles::keys),
                         Tiles::rows * v,
                         Tiles::rows,
                         Tiles::rows};
    return rounded_part(all[i]);
  }
  static constexpr Index elements(Index latent, Index rope) {
    Index n = 0;
    for (int i = 0; i < 8; ++i) n += sizes(latent, rope, i);
    return n;
  }
  LatentAttentionMemory(A* memory, Index latent, Index rope) {
    int i = 0;
    const auto part = [&](auto*& pointer) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory);
      memory += sizes(latent, rope, i++);
    };
    part(q), part(tile), part(keys), part(values), part(scores), part(sum), part(largest);
    part(denominator);
  }
};

// What each split leaves of each token and head.
template <class A>
struct LatentPartials {
  View<A, 3> sum;                   // [T * heads, splits, padded r]
  View<A, 2> largest, denominator;  // [T * heads, splits]
};

template <class T, class C>
struct LatentAttentionOf {
  using A = accum_t<T>;
  View<const T, 3> q_latent, q;
  CachePages<const C> pages;
  CacheTable table;
  double scale;

  Index latent() const { return pages.latent.extent(1); }
  Index rope() const { return pages.rope.extent(1); }

  // Keys [j, j + n) of a part as rows, `stride` apart: the latent of a slot and its rotated key.
  void load_keys(Index part, Index j, Index n, T* rows, Index stride) const {
    using Element = CacheElement<C>;
    const Index r = latent(), d = rope();
    for_each_slot(part, j, n, [&](Index slot) {
      if constexpr (std::is_same_v<C, T>)
        std::copy_n(&pages.latent(slot, 0), r, rows);
      else
        for (Index i = 0; i < r; ++i) rows[i] = pages.template latent_as<T>(slot, i);
      if constexpr (std::is_same_v<typename Element::Rope, T>)
        std::copy_n(&pages.rope(slot, 0), d, rows + r);
      else
        for (Index i = 0; i < d; ++i) rows[r + i] = pages.template rope_as<T>(slot, i);
      rows += stride;
    });
  }

  // Asks the memory for those keys.
  void ask_keys(Index part, Index j, Index n) const {
    const auto ask = [](const auto* from, Index elements) {
      const auto* line = reinterpret_cast<const char*>(from);
      const char* end = reinterpret_cast<const char*>(from + elements);
      for (; line < end; line += 64) __builtin_prefetch(line, 0, 2);
    };
    for_each_slot(part, j, n, [&](Index slot) {
      ask(&pages.latent(slot, 0), latent());
      ask(&pages.rope(slot, 0), rope());
    });
  }

 private:
  // Slots of one block follow one another.
  void for_each_slot(Index part, Index j, Index n, auto&& f) const {
    for (const Index end = j + n; j < end;) {
      const Index left = table.block_size - j % table.block_size, count = std::min(left, end - j);
      const Index slot = table.slot(part, j);
      for (Index i = 0; i < count; ++i) f(slot + i);
      j += count;
    }
  }
};

// Tokens [t0, t0 + tokens) of one part, heads [h0, h0 + heads), the keys of one split.
template <class T, class C>
void latent_attention_split(const LatentAttentionOf<T, C>& in, Index t0, Index tokens, Index h0,
                            Index heads, Index split, const LatentAttentionMemory<T>& m,
                            const LatentPartials<accum_t<T>>& partials) {
  using A = accum_t<T>;
  using Tiles = LatentTiles;
  using Kernel = typename LatentAttentionMemory<T>::Kernel;
  using Packed = typename Kernel::Packed;
  constexpr Index key_columns = padded<A>(Tiles::keys), panel = panel_width<A>();
  const Index r_kv = in.latent(), d_r = in.rope(), width = r_kv + d_r, stride = padded<A>(width);
  const Index steps = (width + Kernel::step - 1) / Kernel::step;
  const Index v_pad = padded<A>(r_kv), rows = tokens * heads, all_heads = in.q.extent(1);
  const Index part = in.table.part(t0), nope = in.q.extent(2) - d_r;
  const A scale = A(in.scale), infinity = std::numeric_limits<A>::infinity();
  for (Index r = 0; r < rows; ++r) {
    const Index t = t0 + r / heads, head = h0 + r % heads;
    Packed* row = m.q + r * stride;
    for (Index j = width; j < steps * Kernel::step; ++j) row[j] = Packed(A(0));
    const auto put = [](const T* from, Packed* to, Index n) {
      if constexpr (std::is_same_v<T, Packed>)
        std::copy_n(from, n, to);
      else
        widen_row(from, to, n);
    };
    put(&in.q_latent(t, head, 0), row, r_kv);
    put(&in.q(t, head, 0) + nope, row + r_kv, d_r);
    m.largest[r] = -infinity, m.denominator[r] = A(0);
  }
  std::fill(m.sum, m.sum + rows * v_pad, A(0));
  const Index last = in.table.position(t0 + tokens - 1);
  const Index end = std::min((split + 1) * Tiles::split, last + 1);
  for (Index j0 = split * Tiles::split; j0 < end; j0 += Tiles::keys) {
    const Index keys = std::min(Tiles::keys, end - j0), columns = padded<A>(keys);
    in.load_keys(part, j0, keys, m.tile, stride);
    const Index next_keys = std::min(Tiles::keys, end - j0 - keys);
    if (next_keys > 0) in.ask_keys(part, j0 + keys, next_keys);
    const Operand<T> along{m.tile, stride, true}, across{m.tile, stride, false};
    for (Index s = 0; s < keys; s += panel)
      pack_right<Kernel>(along, s, std::min(panel, keys - s), 0, width,
                         m.keys + s * steps * Kernel::step);
    multiply_panels<Kernel>(rows, steps, m.q, stride, m.keys, columns, m.scores, key_columns,
                            false);
    for (Index r = 0; r < rows; ++r) {
      A* s = m.scores + r * key_columns;
      const Index seen = std::min(keys, in.table.position(t0 + r / heads) - j0 + 1);
      if (seen <= 0) {  // a token before the tile's first key
        std::fill(s, s + columns, A(0));
        continue;
      }
      for (Index j = seen; j < columns; ++j) s[j] = -infinity;
      const A next = largest_of(s, columns, m.largest[r]);
      const A keep = exp(scale * (m.largest[r] - next));
      A sums[16] = {};
      for (Index j = 0; j < columns; j += panel)
        for (Index c = 0; c < panel; ++c) s[j + c] = exp(scale * (s[j + c] - next));
      for (Index j = 0; j < columns; ++j) sums[j % 16] += s[j];
      for (Index half = 8; half > 0; half /= 2)
        for (Index c = 0; c < half; ++c) sums[c] += sums[c + half];
      m.denominator[r] = fma(m.denominator[r], keep, sums[0]);
      m.largest[r] = next;
      A* sum = m.sum + r * v_pad;
      for (Index d = 0; d < v_pad; ++d) sum[d] *= keep;
    }
    for (Index s = 0; s < v_pad; s += panel)
      pack_right<FmaKernel<A>>(across, s, std::min(panel, r_kv - s), 0, keys, m.values + s * keys);
    multiply(rows, keys, m.scores, key_columns, m.values, v_pad, m.sum, v_pad, true);
  }
  for (Index r = 0; r < rows; ++r) {
    const Index at = (t0 + r / heads) * all_heads + h0 + r % heads;
    std::copy(m.sum + r * v_pad, m.sum + (r + 1) * v_pad, &partials.sum(at, split, 0));
    partials.largest(at, split) = m.largest[r];
    partials.denominator(at, split) = m.denominator[r];
  }
}

// The splits of one token and head, in ascending order, into the first; then its output.
template <class T>
void latent_attention_combine(const LatentPartials<accum_t<T>>& partials, Index at, Index splits,
                              double scale, T* o, Index width) {
  using A = accum_t<T>;
  A* sum = &partials.sum(at, 0, 0);
  A largest = partials.largest(at, 0), denominator = partials.denominator(at, 0);
  for (Index s = 1; s < splits; ++s) {
    const A other = partials.largest(at, s), next = other > largest ? other : largest;
    const A keep = exp(A(scale) * (largest - next)), join = exp(A(scale) * (other - next));
    const A* add = &partials.sum(at, s, 0);
    for (Index d = 0; d < width; ++d) sum[d] = fma(sum[d], keep, add[d] * join);
    denominator = fma(denominator, keep, partials.denominator(at, s) * join);
    largest = next;
  }
  for (Index d = 0; d < width; ++d) o[d] = T(sum[d] / denominator);
}

}  // namespace dsv3::detail
