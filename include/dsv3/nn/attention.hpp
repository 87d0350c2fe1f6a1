// The core of attention: softmax(Q K^T) V within sequences, never as a matrix of tokens x tokens.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/core/check.hpp>
#include <dsv3/core/math.hpp>
#include <dsv3/core/scalar.hpp>
#include <dsv3/nn/rows.hpp>
#include <dsv3/nn/sequences.hpp>

namespace dsv3 {
namespace detail {

// What every attention kernel reads. A key has a part of its own for each head and a rotated part
// that all heads share.
template <class T>
struct AttentionInputs {
  View<const T, 3> q;       // [T, heads, d_n + d_r]
  View<const T, 3> kv;      // [T, heads, d_n + d_v]
  View<const T, 2> k_rope;  // [T, d_r]
  View<const std::int32_t, 1> begin, end;
  double scale;
  View<const std::int32_t, 1> first_keys, own_keys;  // as Sequences has them; backward: empty

  // Query t sees the keys from first_key(t) to own_key(t).
  DSV3_HD Index first_key(Index t) const { return first_keys.data ? first_keys(t) : begin(t); }
  DSV3_HD Index own_key(Index t) const { return own_keys.data ? own_keys(t) : t; }
  DSV3_HD Index nope() const { return q.extent(2) - k_rope.extent(1); }
  DSV3_HD Index value_dim() const { return kv.extent(2) - nope(); }

  // q of token t . k of token j, not yet scaled
  DSV3_HD auto product(auto team, Index t, Index head, Index j) const {
    using A = accum_t<T>;
    const Index n = nope();
    const A own = team.dot(
        n, [&](Index d) { return A(q(t, head, d)); }, [&](Index d) { return A(kv(j, head, d)); });
    const A shared = team.dot(
        k_rope.extent(1), [&](Index d) { return A(q(t, head, n + d)); },
        [&](Index d) { return A(k_rope(j, d)); });
    return own + shared;
  }
};

// One query of one head: running maximum, denominator and weighted sum of values. Spec 4.6.
template <class T>
struct AttentionForwardRow {
  AttentionInputs<T> in;
  View<accum_t<T>, 3> sum;  // [T, heads, d_v] scratch
  View<T, 3> o;
  View<accum_t<T>, 2> lse;

  DSV3_HD void operator()(auto team, Index row) const {
    using A = accum_t<T>;
    const Index heads = o.extent(1), t = row / heads, head = row % heads;
    const Index nope = in.nope(), width = o.extent(2);
    const Index first = in.first_key(t), own = in.own_key(t);
    A largest = in.product(team, t, head, first), denominator = A(1);
    team.each(width, [&](Index d) { sum(t, head, d) = A(in.kv(first, head, nope + d)); });
    for (Index j = first + 1; j <= own; ++j) {
      const A s = in.product(team, t, head, j);
      const A next = s > largest ? s : largest;
      const A keep = exp(A(in.scale) * (largest - next)), p = exp(A(in.scale) * (s - next));
      largest = next;
      denominator = fma(denominator, keep, p);
      team.each(width, [&](Index d) {
        sum(t, head, d) = fma(sum(t, head, d), keep, p * A(in.kv(j, head, nope + d)));
      });
    }
    team.each(width, [&](Index d) { o(t, head, d) = T(sum(t, head, d) / denominator); });
    team.once([&] { lse(t, head) = fma(A(in.scale), largest, log(denominator)); });
  }
};

// delta = dO . O of one query and head.
template <class T>
struct AttentionDeltaRow {
  View<const T, 3> o, d_o;
  View<accum_t<T>, 2> delta;

  DSV3_HD void operator()(auto team, Index row) const {
    using A = accum_t<T>;
    const Index heads = o.extent(1), t = row / heads, head = row % heads;
    const A value = team.dot(
        o.extent(2), [&](Index d) { return A(o(t, head, d)); },
        [&](Index d) { return A(d_o(t, head, d)); });
    team.once([&] { delta(t, head) = value; });
  }
};

// What both backward passes recompute for a pair of query t and key j. Spec 4.7.
template <class T>
struct AttentionPair {
  AttentionInputs<T> in;
  View<const T, 3> d_o;
  View<const accum_t<T>, 2> lse, delta;

  struct Values {
    accum_t<T> p, scaled_ds;
  };

  DSV3_HD Values operator()(auto team, Index t, Index head, Index j) const {
    using A = accum_t<T>;
    const Index nope = in.nope();
    const A p = exp(fma(A(in.scale), in.product(team, t, head, j), -lse(t, head)));
    const A dp = team.dot(
        d_o.extent(2), [&](Index d) { return A(d_o(t, head, d)); },
        [&](Index d) { return A(in.kv(j, head, nope + d)); });
    return {p, A(in.scale) * p * (dp - delta(t, head))};
  }
};

// dq[t,h] = scale sum_j dS k_j.
template <class T>
struct AttentionQueryRow {
  AttentionPair<T> pair;
  View<accum_t<T>, 3> sum;  // [T, heads, d_qk] scratch
  View<T, 3> dq;

  DSV3_HD void operator()(auto team, Index row) const {
    using A = accum_t<T>;
    const auto& in = pair.in;
    const Index heads = dq.extent(1), t = row / heads, head = row % heads;
    const Index nope = in.nope(), width = dq.extent(2);
    team.each(width, [&](Index d) { sum(t, head, d) = A(0); });
    for (Index j = in.begin(t); j <= t; ++j) {
      const A ds = pair(team, t, head, j).scaled_ds;
      team.each(width, [&](Index d) {
        const A key = d < nope ? A(in.kv(j, head, d)) : A(in.k_rope(j, d - nope));
        sum(t, head, d) = fma(ds, key, sum(t, head, d));
      });
    }
    team.each(width, [&](Index d) { dq(t, head, d) = T(sum(t, head, d)); });
  }
};

// dv[j,h] = sum_t P dO, dk[j,h] = scale sum_t dS q_t; the shared part of dk for each head apart.
template <class T>
struct AttentionKeyRow {
  AttentionPair<T> pair;
  View<accum_t<T>, 3> sum;       // [T, heads, d_n + d_v] scratch
  View<accum_t<T>, 3> rope_sum;  // [T, heads, d_r]
  View<T, 3> dkv;

  DSV3_HD void operator()(auto team, Index row) const {
    using A = accum_t<T>;
    const auto& in = pair.in;
    const Index heads = dkv.extent(1), j = row / heads, head = row % heads;
    const Index nope = in.nope(), width = dkv.extent(2), rope = rope_sum.extent(2);
    team.each(width, [&](Index d) { sum(j, head, d) = A(0); });
    team.each(rope, [&](Index d) { rope_sum(j, head, d) = A(0); });
    for (Index t = j; t < in.end(j); ++t) {
      const auto [p, ds] = pair(team, t, head, j);
      const A weight = p, slope = ds;
      team.each(nope, [&](Index d) {
        sum(j, head, d) = fma(slope, A(in.q(t, head, d)), sum(j, head, d));
      });
      team.each(width - nope, [&](Index d) {
        sum(j, head, nope + d) = fma(weight, A(pair.d_o(t, head, d)), sum(j, head, nope + d));
      });
      team.each(rope, [&](Index d) {
        rope_sum(j, head, d) = fma(slope, A(in.q(t, head, nope + d)), rope_sum(j, head, d));
      });
    }
    team.sync();  // the columns of v were another worker's
    team.each(width, [&](Index d) { dkv(j, head, d) = T(sum(j, head, d)); });
  }
};

// The shared part of dk: the sum over heads in ascending order.
template <class T>
struct AttentionRopeSumRow {
  View<const accum_t<T>, 3> rope_sum;
  View<T, 2> dk_rope;

  DSV3_HD void operator()(auto team, Index j) const {
    team.each(dk_rope.extent(1), [&](Index d) {
      accum_t<T> total = 0;
      for (Index head = 0; head < rope_sum.extent(1); ++head) total += rope_sum(j, head, d);
      dk_rope(j, d) = T(total);
    });
  }
};

}  // namespace detail

/// Causal attention within sequences, with the key of multi-head latent attention: one part for
/// each head, one rotated part shared by all heads.
///
///     S[t,j,h] = scale (q[t,h] . [k_nope[j,h]; k_rope[j]])      j from the sequence's first to t
///     o[t,h] = sum_j softmax_j(S) v[j,h]                        lse = log sum_j exp S
///
/// Shapes   T tokens, n heads; q [T, n, d_n + d_r], kv [T, n, d_n + d_v] (key, then value), k_rope
///          [T, d_r], o [T, n, d_v], lse [T, n]. Forward takes as many rows of kv and k_rope as
///          there are keys, where `sequences` says which of them each token sees.
/// Types    inputs and outputs in T, computed in accum_t<T>.
/// Errors   std::invalid_argument when extents disagree, before anything is written.
/// Source   DeepSeek-V2 section 2.1; Dao 2023, arXiv:2307.08691 (FlashAttention-2); spec 4.6, 4.7.
///
/// A backend may offer fused_attention_forward and fused_attention_backward; the row kernels above
/// are their reference.
template <class T>
struct Attention {
  using A = accum_t<T>;
  double scale = 1;

  /// Writes o and lse.
  template <class Backend>
  void forward(Backend& backend, View<const T, 3> q, View<const T, 3> kv, View<const T, 2> k_rope,
               const Sequences& sequences, View<T, 3> o, View<A, 2> lse, Arena& scratch) const {
    const bool own_keys = sequences.own_key.extent(0) > 0;
    const Index keys = own_keys ? kv.extent(0) : q.extent(0);
    check("Attention::forward", q, kv, k_rope, sequences, as_const(o), as_const(lse), keys);
    if constexpr (requires {
                    fused_attention_forward(backend, q, kv, k_rope, sequences.begin, sequences.end,
                                            sequences.first_key, sequences.own_key, scale, o, lse,
                                            scratch);
                  }) {
      fused_attention_forward(backend, q, kv, k_rope, sequences.begin, sequences.end,
                              sequences.first_key, sequences.own_key, scale, o, lse, scratch);
    } else {
      const ArenaScope scope(scratch);
      const Index tokens = q.extent(0), heads = q.extent(1);
      const auto sum = scratch.take<A>({tokens, heads, o.extent(2)});
      for_each_row(backend, tokens * heads,
                   detail::AttentionForwardRow<T>{{q, kv, k_rope, sequences.begin, sequences.end,
                                                   scale, sequences.first_key, sequences.own_key},
                                                  sum,
                                                  o,
                                                  lse});
    }
  }

  /// Overwrites dq, dkv and dk_rope (shapes of q, kv and k_rope).
  template <class Backend>
  void backward(Backend& backend, View<const T, 3> q, View<const T, 3> kv, View<const T, 2> k_rope,
                const Sequences& sequences, View<const T, 3> o, View<const A, 2> lse,
                View<const T, 3> d_o, View<T, 3> dq, View<T, 3> dkv, View<T, 2> dk_rope,
                Arena& scratch) const {
    check("Attention::backward", q, kv, k_rope, sequences, o, lse, q.extent(0));
    check_equal("Attention::backward", "keys of sequences", sequences.own_key.extent(0), "none", 0);
    if constexpr (requires {
                    fused_attention_backward(backend, q, kv, k_rope, sequences.begin, sequences.end,
                                             scale, o, lse, d_o, dq, dkv, dk_rope, scratch);
                  }) {
      fused_attention_backward(backend, q, kv, k_rope, sequences.begin, sequences.end, scale, o,
                               lse, d_o, dq, dkv, dk_rope, scratch);
    } else {
      const ArenaScope scope(scratch);
      const Index tokens = q.extent(0), heads = q.extent(1), rows = tokens * heads;
      const auto delta = scratch.take<A>({tokens, heads});
      const auto q_sum = scratch.take<A>({tokens, heads, q.extent(2)});
      const auto kv_sum = scratch.take<A>({tokens, heads, kv.extent(2)});
      const auto rope_sum = scratch.take<A>({tokens, heads, k_rope.extent(1)});
      for_each_row(backend, rows, detail::AttentionDeltaRow<T>{o, d_o, delta});
      const detail::AttentionPair<T> pair{
          {q, kv, k_rope, sequences.begin, sequences.end, scale, {}, {}}, d_o, lse, delta};
      for_each_row(backend, rows, detail::AttentionQueryRow<T>{pair, q_sum, dq});
      for_each_row(backend, rows, detail::AttentionKeyRow<T>{pair, kv_sum, rope_sum, dkv});
      for_each_row(backend, tokens, detail::AttentionRopeSumRow<T>{rope_sum, dk_rope});
    }
  }

 private:
  static void check(const char* caller, const View<const T, 3>& q, const View<const T, 3>& kv,
                    const View<const T, 2>& k_rope, const Sequences& sequences,
                    const View<const T, 3>& o, const View<const A, 2>& lse, Index keys) {
    const Index tokens = q.extent(0), heads = q.extent(1);
    check_equal(caller, "tokens of sequences", sequences.tokens(), "tokens of q", tokens);
    if (sequences.own_key.extent(0)) {
      check_shape(caller, "own_key", sequences.own_key, tokens, "tokens of q");
      check_shape(caller, "first_key", sequences.first_key, tokens, "tokens of q");
      check_equal(caller, "rows of k_rope", k_rope.extent(0), "rows of kv", keys);
    } else {
      check_equal(caller, "tokens of kv", kv.extent(0), "tokens of q", keys);
      check_equal(caller, "tokens of k_rope", k_rope.extent(0), "tokens of q", keys);
    }
    check_equal(caller, "tokens of o", o.extent(0), "tokens of q", tokens);
    check_equal(caller, "heads of kv", kv.extent(1), "heads of q", heads);
    check_equal(caller, "heads of o", o.extent(1), "heads of q", heads);
    check_shape(caller, "lse", lse, tokens, "tokens of q", heads, "heads of q");
    check_at_most(caller, "width of k_rope", k_rope.extent(1), "width of q", q.extent(2));
    check_equal(caller, "width of o plus width of q", o.extent(2) + q.extent(2),
                "width of kv plus width of k_rope", kv.extent(2) + k_rope.extent(1));
  }
};

}  // namespace dsv3
