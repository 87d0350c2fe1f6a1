// Attention over a latent cache in its absorbed form: every head reads the latents themselves.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/core/cache_pages.hpp>
#include <dsv3/core/check.hpp>
#include <dsv3/core/math.hpp>

namespace dsv3 {
namespace detail {

// One query of one head, with a running maximum as in AttentionForwardRow.
template <class T, class C>
struct LatentAttentionRow {
  using A = accum_t<T>;
  View<const T, 3> q_latent;  // [T, heads, r]
  View<const T, 3> q;         // [T, heads, d_n + d_r], whose last d_r features count
  CachePages<const C> pages;
  CacheTable table;
  double scale;
  View<A, 3> sum;  // [T, heads, r] scratch
  View<T, 3> o;

  // The query times the key in a slot, not yet scaled.
  DSV3_HD A product(auto team, Index t, Index head, Index slot) const {
    const Index width = q_latent.extent(2), rope = pages.rope.extent(1), n = q.extent(2) - rope;
    const A own = team.dot(
        width, [&](Index d) { return A(q_latent(t, head, d)); },
        [&](Index d) { return A(pages.template latent_as<T>(slot, d)); });
    const A shared = team.dot(
        rope, [&](Index d) { return A(q(t, head, n + d)); },
        [&](Index d) { return A(pages.template rope_as<T>(slot, d)); });
    return own + shared;
  }

  DSV3_HD void operator()(auto team, Index row) const {
    const Index heads = o.extent(1), t = row / heads, head = row % heads;
    const Index width = o.extent(2), part = table.part(t), last = table.position(t);
    const Index first = table.slot(part, 0);
    A largest = product(team, t, head, first), denominator = A(1);
    team.each(width, [&](Index d) { sum(t, head, d) = A(pages.template latent_as<T>(first, d)); });
    for (Index j = 1; j <= last; ++j) {
      const Index slot = table.slot(part, j);
      const A s = product(team, t, head, slot);
      const A next = s > largest ? s : largest;
      const A keep = exp(A(scale) * (largest - next)), p = exp(A(scale) * (s - next));
      largest = next;
      denominator = fma(denominator, keep, p);
      team.each(width, [&](Index d) {
        sum(t, head, d) = fma(sum(t, head, d), keep, p * A(pages.template latent_as<T>(slot, d)));
      });
    }
    team.each(width, [&](Index d) { o(t, head, d) = T(sum(t, head, d) / denominator); });
  }
};

}  // namespace detail

/// Attention of many queries over one latent for each key, of which every head reads all:
///
///     S[t,h,j] = scale (q_latent[t,h] . c[j] + q_rope[t,h] . k_rope[j])     j = 0 ... position[t]
///     o[t,h] = sum_j softmax_j(S) c[j]
///
/// Shapes   T tokens, n heads, r kv_lora_rank; q_latent [T, n, r], q [T, n, d_n + d_r] of which the
///          rotated part is read, o [T, n, r].
/// Types    T; the cache's elements are rounded to T first; sums in accum_t<T>.
/// Errors   std::invalid_argument when extents disagree, before anything is written.
/// Source   DeepSeek-V2 section 2.1.2 (absorbed form); spec 4.4. A token's bits depend neither on
///          the sizes of blocks and parts nor on the other tokens of the pass.
///
/// A backend may offer fused_latent_attention; the row kernel above is its reference.
template <class T, class C>
struct LatentAttention {
  double scale = 1;

  /// Writes o.
  template <class Backend>
  void forward(Backend& backend, View<const T, 3> q_latent, View<const T, 3> q,
               CachePages<const C> pages, const CacheTable& table, View<T, 3> o,
               Arena& scratch) const {
    using A = accum_t<T>;
    const char* caller = "LatentAttention::forward";
    const Index tokens = q.extent(0), heads = q.extent(1), width = pages.latent.extent(1);
    check_equal(caller, "tokens of q_latent", q_latent.extent(0), "tokens of q", tokens);
    check_equal(caller, "heads of q_latent", q_latent.extent(1), "heads of q", heads);
    check_equal(caller, "width of q_latent", q_latent.extent(2), "width of the latents", width);
    check_equal(caller, "tokens of o", o.extent(0), "tokens of q", tokens);
    check_equal(caller, "heads of o", o.extent(1), "heads of q", heads);
    check_equal(caller, "width of o", o.extent(2), "width of the latents", width);
    check_at_most(caller, "width of the rotated keys", pages.rope.extent(1), "width of q",
                  q.extent(2));
    check_shape(caller, "position", table.position, tokens, "tokens of q");
    check_shape(caller, "part", table.part, tokens, "tokens of q");
    if constexpr (requires {
                    fused_latent_attention(backend, q_latent, q, pages, table, scale, o, scratch);
                  }) {
      fused_latent_attention(backend, q_latent, q, pages, table, scale, o, scratch);
    } else {
      const ArenaScope scope(scratch);
      const auto sum = scratch.take<A>({tokens, heads, width});
      for_each_row(backend, tokens * heads,
                   detail::LatentAttentionRow<T, C>{q_latent, q, pages, table, scale, sum, o});
    }
  }
};

}  // namespace dsv3
