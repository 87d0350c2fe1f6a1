// Attention in tiles, forward and backward: what Cpu offers in place of the row kernels.
#pragma once

#include <dsv3/backend/cpu/tile.hpp>
#include <dsv3/core/arena.hpp>

namespace dsv3::detail {

// Tiles start at the first token of a sequence, so that neither threads nor neighbours in the batch
// move them: key tiles at multiples of 64, query tiles at multiples of 96.
struct AttentionTiles {
  static constexpr Index keys = 64, queries = 96;
};

// A matrix of packed panels or of padded rows: columns are filled up to whole panels.
template <class A>
constexpr Index panel_width() {
  return 2 * FmaKernel<A>::S::lanes;
}
template <class A>
constexpr Index padded(Index columns) {
  return (columns + panel_width<A>() - 1) / panel_width<A>() * panel_width<A>();
}

// What every tile reads, and where.
template <class T>
struct AttentionOf {
  using A = accum_t<T>;
  View<const T, 3> q, kv;
  View<const T, 2> k_rope;
  View<const std::int32_t, 1> begin, end;
  double scale;
  View<const std::int32_t, 1> first_keys, own_keys;  // rows of kv; or empty: begin(t) and t

  Index first_key(Index t) const { return first_keys.data ? first_keys(t) : begin(t); }
  Index own_key(Index t) const { return own_keys.data ? own_keys(t) : t; }
  Index d_qk() const { return q.extent(2); }
  Index d_r() const { return k_rope.extent(1); }
  Index d_n() const { return d_qk() - d_r(); }
  Index d_v() const { return kv.extent(2) - d_n(); }

  // Keys [j, j + n) of one head as panels: for each panel d_qk rows of keys side by side.
  void pack_keys_across(Index head, Index j, Index n, A* panels) const {
    constexpr Index width = panel_width<A>();
    for (Index s = 0; s < n; s += width, panels += d_qk() * width) {
      const Index columns = std::min(width, n - s);
      pack_right<FmaKernel<A>>(key(head), j + s, columns, 0, d_n(), panels);
      pack_right<FmaKernel<A>>(rope_key(), j + s, columns, 0, d_r(), panels + d_n() * width);
    }
  }
  // The values of those keys in the same form, d_v rows a panel.
  void pack_values_across(Index head, Index j, Index n, A* panels) const {
    constexpr Index width = panel_width<A>();
    for (Index s = 0; s < n; s += width, panels += d_v() * width)
      pack_right<FmaKernel<A>>(value(head), j + s, std::min(width, n - s), 0, d_v(), panels);
  }

  Operand<T> key(Index head) const { return {&kv(0, head, 0), kv.strides[0], true}; }
  Operand<T> value(Index head) const { return {&kv(0, head, 0) + d_n(), kv.strides[0], true}; }
  Operand<T> rope_key() const { return {k_rope.data, k_rope.strides[0], true}; }
};

// Rows [t, t + n) of `features` features each, `stride` apart, as padded rows of A.
template <class T, class A>
void widen_rows(const T* from, Index stride, Index n, Index features, A* to, Index to_stride) {
  for (Index r = 0; r < n; ++r) {
    widen_row(from + r * stride, to + r * to_stride, features);
    for (Index f = features; f < to_stride; ++f) to[r * to_stride + f] = A(0);
  }
}

// Padded rows [n][padded features], read as panels of a product whose sum runs over the rows.
template <class A>
void rows_to_panels(const A* rows, Index n, Index features_padded, A* panels) {
  constexpr Index width = panel_width<A>();
  for (Index s = 0; s < features_padded; s += width)
    for (Index r = 0; r < n; ++r, panels += width)
      for (Index c = 0; c < width; ++c) panels[c] = rows[r * features_padded + s + c];
}

// c [rows][c_stride] = or += a [rows][a_stride] times `columns` (padded) columns of panels.
template <class Kernel>
void multiply_panels(Index rows, Index steps, const typename Kernel::Packed* a, Index a_stride,
                     const typename Kernel::Packed* panels, Index columns, typename Kernel::Sum* c,
                     Index c_stride, bool add) {
  constexpr Index width = 2 * Kernel::S::lanes;
  for (Index s = 0; s < columns; s += width, panels += steps * Kernel::step * width)
    multiply_panel<Kernel>(rows, steps, a, a_stride, panels,
                           PlainTarget<Kernel>{c + s, c_stride, add}, {});
}
template <class A>
void multiply(Index rows, Index steps, const A* a, Index a_stride, const A* panels, Index columns,
              A* c, Index c_stride, bool add) {
  multiply_panels<FmaKernel<A>>(rows, steps, a, a_stride, panels, columns, c, c_stride, add);
}

// The largest of s[0 ... n) and `least`, in lanes.
template <class A>
A largest_of(const A* s, Index n, A least) {
  A lane[16];
  for (Index c = 0; c < 16; ++c) lane[c] = least;
  Index j = 0;
  for (; j + 16 <= n; j += 16)
    for (Index c = 0; c < 16; ++c) lane[c] = s[j + c] > lane[c] ? s[j + c] : lane[c];
  for (; j < n; ++j) lane[0] = s[j] > lane[0] ? s[j] : lane[0];
  for (Index half = 8; half > 0; half /= 2)
    for (Index c = 0; c < half; ++c) lane[c] = lane[c + half] > lane[c] ? lane[c + half] : lane[c];
  return lane[0];
}

// Parts of a thread's memory start at multiples of 16 elements.
constexpr Index rounded_part(Index n) { return (n + 15) / 16 * 16; }

template <class A>
struct AttentionForwardMemory {
  using Tiles = AttentionTiles;
  A *q, *keys, *values, *scores, *sum, *largest, *denominator;

  static constexpr Index sizes(Index d_qk, Index d_v, int i) {
    const Index all[] = {Tiles::queries * padded<A>(d_qk),
                         padded<A>(Tiles::keys) * d_qk,
                         Tiles::keys * padded<A>(d_v),
                         Tiles::queries * padded<A>(Tiles::keys),
                         Tiles::queries * padded<A>(d_v),
                         Tiles::queries,
                         Tiles::queries};
    return rounded_part(all[i]);
  }
  static constexpr Index elements(Index d_qk, Index d_v) {
    Index n = 0;
    for (int i = 0; i < 7; ++i) n += sizes(d_qk, d_v, i);
    return n;
  }
  AttentionForwardMemory(A* memory, Index d_qk, Index d_v) {
    A** parts[] = {&q, &keys, &values, &scores, &sum, &largest, &denominator};
    for (int i = 0; i < 7; memory += sizes(d_qk, d_v, i), ++i) *parts[i] = memory;
  }
};

// One tile of queries of one head: all keys before them, tile by tile. Spec 4.6.
template <class T>
void attention_forward_tile(const AttentionOf<T>& in, Index head, Index t0, Index rows,
                            const AttentionForwardMemory<accum_t<T>>& m, View<T, 3> o,
                            View<accum_t<T>, 2> lse) {
  using A = accum_t<T>;
  constexpr Index key_columns = padded<A>(AttentionTiles::keys);
  const Index d_qk = in.d_qk(), d_v = in.d_v(), v_pad = padded<A>(d_v), q_pad = padded<A>(d_qk);
  const A scale = A(in.scale), infinity = std::numeric_limits<A>::infinity();
  widen_rows(&in.q(t0, head, 0), in.q.strides[0], rows, d_qk, m.q, q_pad);
  for (Index r = 0; r < rows; ++r) m.largest[r] = -infinity, m.denominator[r] = A(0);
  std::fill(m.sum, m.sum + rows * v_pad, A(0));
  const Index own = in.own_key(t0);  // those of the rows after it follow it
  for (Index j0 = in.first_key(t0); j0 < own + rows; j0 += AttentionTiles::keys) {
    const Index keys = std::min(AttentionTiles::keys, own + rows - j0);
    const Index columns = padded<A>(keys), first = std::max<Index>(0, j0 - own);
    in.pack_keys_across(head, j0, keys, m.keys);
    A* scores = m.scores + first * key_columns;
    multiply(rows - first, d_qk, m.q + first * q_pad, q_pad, m.keys, columns, scores, key_columns,
             false);
    for (Index r = first; r < rows; ++r) {
      A* s = m.scores + r * key_columns;
      const Index seen = std::min(keys, own + r - j0 + 1);
      for (Index j = seen; j < columns; ++j) s[j] = -infinity;
      const A next = largest_of(s, columns, m.largest[r]);
      const A keep = exp(scale * (m.largest[r] - next));
      A part[16] = {};
      for (Index j = 0; j < columns; j += panel_width<A>())
        for (Index c = 0; c < panel_width<A>(); ++c) s[j + c] = exp(scale * (s[j + c] - next));
      for (Index j = 0; j < columns; ++j) part[j % 16] += s[j];
      for (Index half = 8; half > 0; half /= 2)
        for (Index c = 0; c < half; ++c) part[c] += part[c + half];
      m.denominator[r] = fma(m.denominator[r], keep, part[0]);
      m.largest[r] = next;
      A* sum = m.sum + r * v_pad;
      for (Index d = 0; d < v_pad; ++d) sum[d] *= keep;
    }
    constexpr Index width = panel_width<A>();
    for (Index s = 0; s < v_pad; s += width) {
      Operand<T> values = in.value(head);
      values.along_k = false;  // the sum runs over keys
      pack_right<FmaKernel<A>>(values, s, std::min(width, d_v - s), j0, keys, m.values + s * keys);
    }
    multiply(rows - first, keys, scores, key_columns, m.values, v_pad, m.sum + first * v_pad, v_pad,
             true);
  }
  for (Index r = 0; r < rows; ++r) {
    for (Index d = 0; d < d_v; ++d) o(t0 + r, head, d) = T(m.sum[r * v_pad + d] / m.denominator[r]);
    lse(t0 + r, head) = fma(scale, m.largest[r], log(m.denominator[r]));
  }
}

template <class A>
struct AttentionBackwardMemory {
  using Tiles = AttentionTiles;
  A *q, *d_o, *keys, *keys_down, *values, *p, *ds, *p_down, *ds_down, *panels, *dk, *dv, *dq;
  static constexpr int parts = 13;
  static constexpr Index down_stride = Tiles::queries + 32;  // pack_left fills whole steps beyond

  static constexpr Index sizes(Index d_qk, Index d_v, int i) {
    const Index q = padded<A>(d_qk), v = padded<A>(d_v), keys = padded<A>(Tiles::keys);
    const Index all[] = {Tiles::queries * q,
                         Tiles::queries * v,
                         keys * d_qk,
                         Tiles::keys * q,
                         keys * d_v,
                         Tiles::queries * keys,
                         Tiles::queries * keys,
                         Tiles::keys * down_stride,
                         Tiles::keys * down_stride,
                         Tiles::queries * (q > v ? q : v),
                         Tiles::keys * q,
                         Tiles::keys * v,
                         Tiles::queries * q};
    return rounded_part(all[i]);
  }
  static constexpr Index elements(Index d_qk, Index d_v) {
    Index n = 0;
    for (int i = 0; i < parts; ++i) n += sizes(d_qk, d_v, i);
    return n;
  }
  AttentionBackwardMemory(A* memory, Index d_qk, Index d_v) {
    A** all[] = {&q,      &d_o,     &keys,   &keys_down, &values, &p, &ds,
                 &p_down, &ds_down, &panels, &dk,        &dv,     &dq};
    for (int i = 0; i < parts; memory += sizes(d_qk, d_v, i), ++i) *all[i] = memory;
  }
};

// What backward reads and writes beside its inputs.
template <class T>
struct AttentionGradients {
  using A = accum_t<T>;
  View<const A, 2> lse, delta;
  View<const T, 3> d_o;
  View<A, 3> dq;  // [T, heads, d_qk] sums
  View<T, 3> dkv;
  View<A, 3> dk_rope;  // [T, heads, d_r] of each head
};

// One head of one sequence: for each tile of keys all queries from it on. Spec 4.7.
template <class T>
void attention_backward_head(const AttentionOf<T>& in, const AttentionGradients<T>& g, Index head,
                             Index first, Index last,
                             const AttentionBackwardMemory<accum_t<T>>& m) {
  using A = accum_t<T>;
  using Tiles = AttentionTiles;
  constexpr Index key_columns = padded<A>(Tiles::keys);
  constexpr Index down = AttentionBackwardMemory<A>::down_stride;
  const Index d_qk = in.d_qk(), d_v = in.d_v(), d_n = in.d_n(), d_r = in.d_r();
  const Index q_pad = padded<A>(d_qk), v_pad = padded<A>(d_v);
  const A scale = A(in.scale);
  for (Index j0 = first; j0 < last; j0 += Tiles::keys) {
    const Index keys = std::min(Tiles::keys, last - j0), columns = padded<A>(keys);
    in.pack_keys_across(head, j0, keys, m.keys);
    in.pack_values_across(head, j0, keys, m.values);
    widen_rows(&in.kv(j0, head, 0), in.kv.strides[0], keys, d_n, m.dq, q_pad);  // dq lends room
    for (Index j = 0; j < keys; ++j) {
      widen_row(&in.k_rope(j0 + j, 0), m.dq + j * q_pad + d_n, d_r);
      for (Index d = d_qk; d < q_pad; ++d) m.dq[j * q_pad + d] = A(0);
    }
    rows_to_panels(m.dq, keys, q_pad, m.keys_down);
    std::fill(m.dk, m.dk + keys * q_pad, A(0));
    std::fill(m.dv, m.dv + keys * v_pad, A(0));
    for (Index tile = first + (j0 - first) / Tiles::queries * Tiles::queries; tile < last;
         tile += Tiles::queries) {
      const Index t0 = std::max(tile, j0);  // queries before the tile's first key see none of it
      const Index rows = std::min(tile + Tiles::queries, last) - t0;
      widen_rows(&in.q(t0, head, 0), in.q.strides[0], rows, d_qk, m.q, q_pad);
      widen_rows(&g.d_o(t0, head, 0), g.d_o.strides[0], rows, d_v, m.d_o, v_pad);
      multiply(rows, d_qk, m.q, q_pad, m.keys, columns, m.p, key_columns, false);
      multiply(rows, d_v, m.d_o, v_pad, m.values, columns, m.ds, key_columns, false);
      for (Index r = 0; r < rows; ++r) {
        A *p = m.p + r * key_columns, *ds = m.ds + r * key_columns;
        const A lse = g.lse(t0 + r, head), delta = g.delta(t0 + r, head);
        const Index seen = std::min(keys, t0 + r - j0 + 1);
        for (Index j = 0; j < columns; ++j) {
          const A probability = exp(fma(scale, p[j], -lse));
          p[j] = probability;
          ds[j] = scale * probability * (ds[j] - delta);
        }
        for (Index j = seen; j < columns; ++j) p[j] = ds[j] = A(0);
      }
      const Operand<A> p_columns{m.p, key_columns, false}, ds_columns{m.ds, key_columns, false};
      pack_left<FmaKernel<A>>(p_columns, 0, keys, 0, rows, m.p_down, down);
      pack_left<FmaKernel<A>>(ds_columns, 0, keys, 0, rows, m.ds_down, down);
      rows_to_panels(m.d_o, rows, v_pad, m.panels);
      multiply(keys, rows, m.p_down, down, m.panels, v_pad, m.dv, v_pad, true);
      rows_to_panels(m.q, rows, q_pad, m.panels);
      multiply(keys, rows, m.ds_down, down, m.panels, q_pad, m.dk, q_pad, true);
      multiply(rows, keys, m.ds, key_columns, m.keys_down, q_pad, m.dq, q_pad, false);
      for (Index r = 0; r < rows; ++r) {
        A* sum = &g.dq(t0 + r, head, 0);
        const A* part = m.dq + r * q_pad;
        // The sequence's first key tile reaches every query first: it sets, the others add.
        if (j0 == first)
          for (Index d = 0; d < d_qk; ++d) sum[d] = part[d];
        else
          for (Index d = 0; d < d_qk; ++d) sum[d] += part[d];
      }
    }
    for (Index j = 0; j < keys; ++j) {
      narrow_row(m.dk + j * q_pad, &g.dkv(j0 + j, head, 0), d_n);
      narrow_row(m.dv + j * v_pad, &g.dkv(j0 + j, head, 0) + d_n, d_v);
      for (Index d = 0; d < d_r; ++d) g.dk_rope(j0 + j, head, d) = m.dk[j * q_pad + d_n + d];
    }
  }
}

// Calls tile(head, first token, tokens, worker) for every tile of `size` queries of every head:
// those that start at multiples of `size` from the start of their sequence.
template <class Cpu>
void for_each_query_tile(Cpu& cpu, View<const std::int32_t, 1> begin,
                         View<const std::int32_t, 1> end, Index heads, Index size, auto&& tile) {
  const Index tokens = begin.extent(0), blocks = (tokens + size - 1) / size;
  cpu.parallel(blocks * heads, 1, [&](Index from, Index to, int worker) {
    for (Index unit = from; unit < to; ++unit) {
      const Index head = unit / blocks, first = unit % blocks * size;
      for (Index t = first; t < std::min(first + size, tokens); ++t)
        if ((t - begin(t)) % size == 0) tile(head, t, std::min<Index>(size, end(t) - t), worker);
    }
  });
}

}  // namespace dsv3::detail
