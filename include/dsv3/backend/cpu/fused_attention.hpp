// Attention of training and prefill as the tuned backend offers it.
#pragma once

#include <dsv3/backend/cpu/attention.hpp>
#include <dsv3/backend/cpu/context.hpp>

namespace dsv3 {
namespace detail {

// A row's elements in the type of its sums; a type of its own, because a team is device code too,
// which must not call a lambda of the host.
template <class T>
struct WidenedRow {
  const T* row;
  DSV3_HD accum_t<T> operator()(Index i) const { return accum_t<T>(row[i]); }
};

}  // namespace detail

/// Bytes that fused_attention_forward takes from its arena.
template <class T>
constexpr Index fused_attention_forward_bytes(Index /*tokens*/, Index /*heads*/, Index d_n,
                                              Index d_r, Index d_v, int threads) {
  using A = accum_t<T>;
  return Arena::bytes<A>(detail::AttentionForwardMemory<A>::elements(d_n + d_r, d_v) * threads);
}

/// Bytes that fused_attention_backward takes from its arena.
template <class T>
constexpr Index fused_attention_backward_bytes(Index tokens, Index heads, Index d_n, Index d_r,
                                               Index d_v, int threads) {
  using A = accum_t<T>;
  return Arena::bytes<A>(detail::AttentionBackwardMemory<A>::elements(d_n + d_r, d_v) * threads) +
         Arena::bytes<A>(tokens * heads) + Arena::bytes<A>(tokens * heads * d_r) +
         (std::is_same_v<T, A> ? 0 : Arena::bytes<A>(tokens * heads * (d_n + d_r)));
}

/// The same for the threads of a backend.
template <class T>
Index fused_attention_forward_bytes(const Cpu& cpu, Index tokens, Index heads, Index d_n, Index d_r,
                                    Index d_v) {
  return fused_attention_forward_bytes<T>(tokens, heads, d_n, d_r, d_v, cpu.threads());
}
template <class T>
Index fused_attention_backward_bytes(const Cpu& cpu, Index tokens, Index heads, Index d_n,
                                     Index d_r, Index d_v) {
  return fused_attention_backward_bytes<T>(tokens, heads, d_n, d_r, d_v, cpu.threads());
}

/// Fused form of Attention::forward, tile by tile; the bits of a sequence do not depend on threads
/// or on its neighbours in the batch.
///
/// Shapes   q [T, n, d_n + d_r], kv [keys, n, d_n + d_v], k_rope [keys, d_r]; begin, end, first_key
///          and own_key [T] as in Sequences, o [T, n, d_v], lse [T, n].
/// Source   Dao 2023, arXiv:2307.08691; spec 4.6.
template <class T>
void fused_attention_forward(Cpu& cpu, View<const T, 3> q, View<const T, 3> kv,
                             View<const T, 2> k_rope, View<const std::int32_t, 1> begin,
                             View<const std::int32_t, 1> end, View<const std::int32_t, 1> first_key,
                             View<const std::int32_t, 1> own_key, double scale, View<T, 3> o,
                             View<accum_t<T>, 2> lse, Arena& scratch) {
  using Memory = detail::AttentionForwardMemory<accum_t<T>>;
  const ArenaScope scope(scratch);
  const detail::AttentionOf<T> in{q, kv, k_rope, begin, end, scale, first_key, own_key};
  const Index each = Memory::elements(in.d_qk(), in.d_v());
  const auto memory = scratch.take<accum_t<T>>({each * cpu.threads()});
  detail::for_each_query_tile(cpu, begin, end, q.extent(1), detail::AttentionTiles::queries,
                              [&](Index head, Index t, Index rows, int worker) {
                                const Memory own(memory.data + each * worker, in.d_qk(), in.d_v());
                                detail::attention_forward_tile(in, head, t, rows, own, o, lse);
                              });
}

/// Fused form of Attention::backward. Overwrites dq, dkv and dk_rope; the sum over heads runs in
/// ascending order.
///
/// Source   spec 4.7.
template <class T>
void fused_attention_backward(Cpu& cpu, View<const T, 3> q, View<const T, 3> kv,
                              View<const T, 2> k_rope, View<const std::int32_t, 1> begin,
                              View<const std::int32_t, 1> end, double scale, View<const T, 3> o,
                              View<const accum_t<T>, 2> lse, View<const T, 3> d_o, View<T, 3> dq,
                              View<T, 3> dkv, View<T, 2> dk_rope, Arena& scratch) {
  using A = accum_t<T>;
  using Memory = detail::AttentionBackwardMemory<A>;
  const ArenaScope scope(scratch);
  const Index tokens = q.extent(0), heads = q.extent(1);
  const detail::AttentionOf<T> in{q, kv, k_rope, begin, end, scale, {}, {}};
  const Index each = Memory::elements(in.d_qk(), in.d_v());
  const auto memory = scratch.take<A>({each * cpu.threads()});
  const auto delta = scratch.take<A>({tokens, heads});
  const auto rope_sum = scratch.take<A>({tokens, heads, in.d_r()});
  View<A, 3> dq_sum;
  if constexpr (std::is_same_v<T, A>)
    dq_sum = dq;
  else
    dq_sum = scratch.take<A>({tokens, heads, in.d_qk()});
  cpu.parallel(tokens * heads, 64, [&](Index first, Index last, int) {
    for (Index i = first; i < last; ++i) {
      const Index t = i / heads, head = i % heads;
      delta(t, head) = SerialTeam{}.dot(in.d_v(), detail::WidenedRow<T>{&o(t, head, 0)},
                                        detail::WidenedRow<T>{&d_o(t, head, 0)});
    }
  });
  const detail::AttentionGradients<T> gradients{lse, delta, d_o, dq_sum, dkv, rope_sum};
  cpu.parallel(tokens * heads, 1, [&](Index first, Index last, int worker) {
    for (Index i = first; i < last; ++i) {  // the first token of a sequence stands for it
      const Index t = i % tokens, head = i / tokens;
      if (begin(t) != t) continue;
      const Memory own(memory.data + each * worker, in.d_qk(), in.d_v());
      detail::attention_backward_head(in, gradients, head, t, end(t), own);
    }
  });
  cpu.parallel(tokens, 16, [&](Index first, Index last, int) {
    for (Index t = first; t < last; ++t) {
      for (Index d = 0; d < in.d_r(); ++d) {
        A total = 0;
        for (Index head = 0; head < heads; ++head) total += rope_sum(t, head, d);
        dk_rope(t, d) = T(total);
      }
      if constexpr (!std::is_same_v<T, A>)
        for (Index head = 0; head < heads; ++head)
          detail::narrow_row(&dq_sum(t, head, 0), &dq(t, head, 0), in.d_qk());
    }
  });
}

}  // namespace dsv3
