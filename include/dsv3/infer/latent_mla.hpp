// Multi-head latent attention over a latent cache: what inference runs in place of Mla::forward.
#pragma once

#include <dsv3/nn/latent_attention.hpp>
#include <dsv3/nn/mla.hpp>

namespace dsv3 {

/// How attention reads the cached latents. Both are the same function in exact arithmetic (spec
/// 4.4), and differ in rounding.
enum class AttentionForm {
  expanded,  ///< keys and values of every head are computed from the latents: for many new tokens
  absorbed   ///< heads read the latents themselves: for few new tokens behind a long context
};

/// What a pass over a cache reads beside activations and weights. In the backend's memory.
///
/// Shapes   T tokens in S parts, each a run of tokens of one sequence; N keys: in the expanded form
///          all keys of all parts, one part after another.
struct CacheInputs {
  AttentionForm form = AttentionForm::expanded;
  Sequences sequences;                   // position; expanded: begin, end, first_key, own_key too
  View<const std::int32_t, 1> slot;      // [T] where a token's own entry goes
  View<const std::int32_t, 1> key_slot;  // [N] expanded
  CacheTable table;                      // absorbed
};

namespace detail {

// Writes one token's normalised latent and rotated key into its slot.
template <class T, class C>
struct StoreLatentRow {
  View<const T, 2> latent, rope;  // [T, r], [T, d_r]
  View<const std::int32_t, 1> slot;
  CachePages<C> pages;

  DSV3_HD void operator()(auto team, Index t) const {
    using Element = CacheElement<C>;
    using A = accum_t<T>;
    const Index s = slot(t);
    if constexpr (Element::quantized) {
      const View<float, 2>& scales = pages.scales;
      const Quantized<C> codes(pages.latent, {scales.data, scales.extent(0), scales.extent(1)}, 1,
                               Element::group);
      quantize_row(team, codes, s, ScaleRule{}, RoundNearest{},
                   [&](Index j) { return float(A(latent(t, j))); });
    } else {
      team.each(latent.extent(1), [&](Index j) { pages.latent(s, j) = C(A(latent(t, j))); });
    }
    team.each(rope.extent(1),
              [&](Index j) { pages.rope(s, j) = typename Element::Rope(A(rope(t, j))); });
  }
};

// Reads one key's latent and rotated part out of its slot.
template <class T, class C>
struct GatherLatentRow {
  CachePages<const C> pages;
  View<const std::int32_t, 1> slot;
  View<T, 2> latent, rope;

  DSV3_HD void operator()(auto team, Index key) const {
    const Index s = slot(key);
    team.each(latent.extent(1),
              [&](Index j) { latent(key, j) = pages.template latent_as<T>(s, j); });
    team.each(rope.extent(1), [&](Index j) { rope(key, j) = pages.template rope_as<T>(s, j); });
  }
};

}  // namespace detail

/// Mla over a latent cache: writes the entries of the new tokens, then attends to everything that
/// the cache holds of their sequences up to each token.
///
/// Shapes   T new tokens, H hidden_size, as Mla.
/// Types    as Mla; keys are read as the cache has rounded them, also those of the same pass, so
///          that neither chunks nor the form of the pass before change a bit.
/// Errors   std::invalid_argument when extents disagree.
/// Source   DeepSeek-V2 section 2.1.2; spec 4.4 and 4.5.
template <class P, class C>
struct LatentMla {
  using T = typename P::activation;
  using V = typename P::weight;
  using W = operand_t<P>;
  using A = typename P::accumulator;
  using Input = typename Projection<P>::Input;
  using Params = typename Mla<P>::template Tensors<const W>;

  Mla<P> mla;

  /// kv_b_proj as the absorbed form reads it, [n, d_n + d_v, r]: the weight itself in a plain
  /// policy, its dequantised values in `storage` in an FP8 policy.
  View<const V, 3> absorbed(const Params& params, View<const V, 2> storage) const {
    const Index n = mla.num_attention_heads, each = mla.qk_nope_head_dim + mla.v_head_dim;
    if constexpr (QuantizedPolicy<P>)
      return {storage.data, {n, each, mla.kv_lora_rank}};
    else
      return {params.kv_b_proj.data, {n, each, mla.kv_lora_rank}};
  }

  /// Writes y [T, H]. table: rope_table, [positions, 2, d_r / 2]; kv_b: absorbed().
  template <class Backend>
  void forward(Backend& backend, const Params& params, View<const V, 3> kv_b, Input x,
               const CacheInputs& in, CachePages<C> pages, View<const A, 3> table, View<T, 2> y,
               Arena& scratch) const {
    const char* caller = "LatentMla::forward";
    const Index tokens = x.extent(0), n = mla.num_attention_heads, r = mla.kv_lora_rank;
    const Index d_r = mla.qk_rope_head_dim;
    check_shape(caller, "y", y, tokens, "rows of x", x.extent(1), "columns of x");
    check_shape(caller, "slot", in.slot, tokens, "rows of x");
    check_shape(caller, "position", in.sequences.position, tokens, "rows of x");
    check_equal(caller, "width of cached latents", pages.latent.extent(1), "kv_lora_rank", r);
    check_equal(caller, "width of cached keys", pages.rope.extent(1), "qk_rope_head_dim", d_r);
    const ArenaScope scope(scratch);
    const auto o = mla.take_output(scratch, tokens);
    {
      const ArenaScope inner(scratch);
      const auto q = scratch.take<T>({tokens, n, mla.qk_head_dim()});
      project(backend, params, x, in, pages, table, q, scratch);
      if (in.form == AttentionForm::absorbed)
        attend_absorbed(backend, kv_b, q, in, pages, o, scratch);
      else
        attend_expanded(backend, params, q, in, pages, o, scratch);
    }
    const View<const T, 2> flat(o.data, {tokens, n * mla.v_head_dim});
    const auto site = input_site("input of o_proj", params.o_proj);
    projection.forward(backend, params.o_proj,
                       projection.input(backend, site, flat, Route::dense, scratch), y, scratch);
  }

 private:
  static constexpr Projection<P> projection{};

  // [T, n, d] as one matrix for each head, [n, T, d].
  template <class U>
  static View<U, 3> by_head(const View<U, 3>& v, Index first, Index width) {
    View<U, 3> heads = v;
    if (v.data) heads.data = v.data + first;
    heads.extents[0] = v.extents[1], heads.extents[1] = v.extents[0], heads.extents[2] = width;
    heads.strides[0] = v.strides[1], heads.strides[1] = v.strides[0];
    return heads;
  }
  template <class U>
  static View<U, 3> one_head(const View<U, 2>& v) {
    View<U, 3> heads(v.data, {v.extent(0), 1, v.extent(1)});
    heads.strides[0] = v.strides[0];
    return heads;
  }

  // The turned queries, and the new entries of the cache.
  template <class Backend>
  void project(Backend& backend, const Params& params, Input x, const CacheInputs& in,
               CachePages<C> pages, View<const A, 3> table, View<T, 3> q, Arena& scratch) const {
    const ArenaScope scope(scratch);
    const Index tokens = x.extent(0), r = mla.kv_lora_rank, d_r = mla.qk_rope_head_dim;
    const RmsNorm<T, T, V> norm{mla.latent_norm_eps};
    const Rope<T> rope;
    const View<T, 2> q_flat(q.data, {tokens, q.extent(1) * q.extent(2)});
    if (mla.q_lora_rank) {
      const auto q_a = scratch.take<T>({tokens, mla.q_lora_rank});
      const auto c_q = Projection<P>::take_operand(scratch, tokens, mla.q_lora_rank);
      projection.forward(backend, params.q_a_proj, x, q_a, scratch);
      projection.normalize(backend, input_site("input of q_a_layernorm", params.q_b_proj), norm,
                           params.q_a_layernorm, as_const(q_a), c_q, {}, Route::dense, scratch);
      projection.forward(backend, params.q_b_proj, Input(c_q), q_flat, scratch);
    } else {
      projection.forward(backend, params.q_proj, x, q_flat, scratch);
    }
    rope.forward(backend, q, table, in.sequences.position, q);
    const auto kv_a = scratch.take<T>({tokens, r + d_r}), c = scratch.take<T>({tokens, r});
    projection.forward(backend, params.kv_a_proj_with_mqa, x, kv_a, scratch);
    norm.forward(backend, {params.kv_a_layernorm}, as_const(kv_a.cols(0, r)), c);
    const auto k_rope = kv_a.cols(r, d_r);
    rope.forward(backend, one_head(as_const(k_rope)), table, in.sequences.position,
                 one_head(k_rope));
    for_each_row(backend, tokens, detail::StoreLatentRow<T, C>{c, k_rope, in.slot, pages});
  }

  template <class Backend>
  void attend_absorbed(Backend& backend, View<const V, 3> kv_b, View<const T, 3> q,
                       const CacheInputs& in, CachePages<const C> pages, View<T, 3> o,
                       Arena& scratch) const {
    const Index tokens = q.extent(0), n = q.extent(1), r = mla.kv_lora_rank;
    const Index d_n = mla.qk_nope_head_dim, d_v = mla.v_head_dim;
    const auto rows = [&](Index first, Index count) {  // of every head's part of kv_b
      View<const V, 3> part = kv_b;
      if (part.data) part.data += first * r;
      part.extents[1] = count;
      return part;
    };
    const auto q_latent = scratch.take<T>({tokens, n, r}),
               o_latent = scratch.take<T>({tokens, n, r});
    batched_gemm(backend, nn, by_head(q, 0, d_n), rows(0, d_n), by_head(q_latent, 0, r),
                 Output::overwrite);
    LatentAttention<T, C>{mla.scale}.forward(backend, q_latent, q, pages, in.table, o_latent,
                                             scratch);
    batched_gemm(backend, nt, by_head(as_const(o_latent), 0, r), rows(d_n, d_v), by_head(o, 0, d_v),
                 Output::overwrite);
  }

  template <class Backend>
  void attend_expanded(Backend& backend, const Params& params, View<const T, 3> q,
                       const CacheInputs& in, CachePages<const C> pages, View<T, 3> o,
                       Arena& scratch) const {
    const Index tokens = q.extent(0), n = q.extent(1), keys = in.key_slot.extent(0);
    const Index each = mla.qk_nope_head_dim + mla.v_head_dim;
    const auto c = scratch.take<T>({keys, mla.kv_lora_rank});
    const auto k_rope = scratch.take<T>({keys, mla.qk_rope_head_dim});
    const auto kv = scratch.take<T>({keys, n, each});
    const auto lse = scratch.take<A>({tokens, n});
    for_each_row(backend, keys, detail::GatherLatentRow<T, C>{pages, in.key_slot, c, k_rope});
    {
      const ArenaScope codes(scratch);
      const auto site = input_site("input of kv_a_layernorm", params.kv_b_proj);
      projection.forward(backend, params.kv_b_proj,
                         projection.input(backend, site, as_const(c), Route::dense, scratch),
                         View<T, 2>(kv.data, {keys, n * each}), scratch);
    }
    Attention<T>{mla.scale}.forward(backend, q, kv, k_rope, in.sequences, o, lse, scratch);
  }
};

}  // namespace dsv3
