// Multi-head latent attention in its training form, forward and backward.
#pragma once

#include <dsv3/config.hpp>
#include <dsv3/nn/attention.hpp>
#include <dsv3/nn/observer.hpp>
#include <dsv3/nn/packed_e5m6.hpp>
#include <dsv3/nn/projection.hpp>
#include <dsv3/nn/rope.hpp>
#include <dsv3/nn/sequences.hpp>

namespace dsv3 {

/// Multi-head latent attention (MLA) with decoupled rotary keys.
///
///     c_q = norm(x q_a^T)                     q = c_q q_b^T           (or q = x q_proj^T)
///     [latent | rope] = x kv_a^T              c = norm(latent)        kv = c kv_b^T
///     u = attention(q with its rope part turned, kv, turned rope) o_proj^T
///
/// Shapes   T tokens, H hidden_size, n heads, d_n, d_r, d_v per head; x and y [T, H]. Weights as
///          in the checkpoint, [out, in]: see Tensors.
/// Types    activations in P::activation, weights in P::weight, gradients in P::master; sums,
///          softmax and norms in P::accumulator. In an FP8 policy the projections multiply codes,
///          and the attention's output is kept as e5m6 (spec 7.6).
/// Errors   std::invalid_argument when extents disagree.
/// Source   DeepSeek-V2 section 2.1, DeepSeek-V3 eq. 1-11; spec 4.2 and 4.7. What backward needs is
///          recomputed from the two latents, as in DeepSeek-V3 section 3.2.3.
template <class P>
struct Mla {
  using T = typename P::activation;
  using W = operand_t<P>;
  using A = typename P::accumulator;
  using Input = typename Projection<P>::Input;
  static constexpr bool packs_output = [] {
    if constexpr (QuantizedPolicy<P>) return is_fp8<typename P::code>;
    return false;
  }();

  Index num_attention_heads, q_lora_rank, kv_lora_rank;  // q_lora_rank 0: no query latent
  Index qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
  double latent_norm_eps, scale;

  explicit Mla(const ModelConfig& c) : Mla(c, softmax_scale(c)) {}

  /// With another scale of the scores than the config's.
  constexpr Mla(const ModelConfig& c, double score_scale)
      : num_attention_heads(c.num_attention_heads),
        q_lora_rank(c.q_lora_rank),
        kv_lora_rank(c.kv_lora_rank),
        qk_nope_head_dim(c.qk_nope_head_dim),
        qk_rope_head_dim(c.qk_rope_head_dim),
        v_head_dim(c.v_head_dim),
        latent_norm_eps(c.latent_norm_eps),
        scale(score_scale) {}

  template <class U>
  struct Tensors {
    projection_of<U> q_proj;              // [n (d_n + d_r), H]   only without a query latent
    projection_of<U> q_a_proj;            // [q_lora_rank, H]     only with one, as the next two
    vector_of<U> q_a_layernorm;           // [q_lora_rank]
    projection_of<U> q_b_proj;            // [n (d_n + d_r), q_lora_rank]
    projection_of<U> kv_a_proj_with_mqa;  // [kv_lora_rank + d_r, H]
    vector_of<U> kv_a_layernorm;          // [kv_lora_rank]
    headwise_of<U> kv_b_proj;             // [n (d_n + d_v), kv_lora_rank]
    projection_of<U> o_proj;              // [H, n d_v]
  };

  /// Views of the right shapes from an arena, in the order of the checkpoint.
  template <class U>
  static constexpr Tensors<U> make_tensors(const ModelConfig& c, Arena& arena) {
    const Index H = c.hidden_size, n = c.num_attention_heads, d_qk = c.qk_head_dim();
    using Views = WeightViews<U>;
    Tensors<U> t;
    if (c.q_lora_rank) {
      t.q_a_proj = Views::take_projection(arena, c.q_lora_rank, H);
      t.q_a_layernorm = Views::take_vector(arena, c.q_lora_rank);
      t.q_b_proj = Views::take_projection(arena, n * d_qk, c.q_lora_rank);
    } else {
      t.q_proj = Views::take_projection(arena, n * d_qk, H);
    }
    t.kv_a_proj_with_mqa = Views::take_projection(arena, c.kv_lora_rank + c.qk_rope_head_dim, H);
    t.kv_a_layernorm = Views::take_vector(arena, c.kv_lora_rank);
    t.kv_b_proj = ProductViews<U>::take_headwise(arena, n * (c.qk_nope_head_dim + c.v_head_dim),
                                                 c.kv_lora_rank);
    t.o_proj = Views::take_projection(arena, H, n * c.v_head_dim);
    return t;
  }

  /// Calls f(name, view of each argument) for the tensors that the config has.
  static void for_each_tensor(auto&& f, auto&... t) {
    const bool latent = (t.q_a_proj.extent(0) || ...);
    if (latent) {
      f("q_a_proj.weight", t.q_a_proj...);
      f("q_a_layernorm.weight", t.q_a_layernorm...);
      f("q_b_proj.weight", t.q_b_proj...);
    } else {
      f("q_proj.weight", t.q_proj...);
    }
    f("kv_a_proj_with_mqa.weight", t.kv_a_proj_with_mqa...);
    f("kv_a_layernorm.weight", t.kv_a_layernorm...);
    f("kv_b_proj.weight", t.kv_b_proj...);
    f("o_proj.weight", t.o_proj...);
  }

  /// What forward leaves for backward.
  struct Saved {
    View<T, 2> q_a;   // [T, q_lora_rank] before its norm; empty without a query latent
    View<T, 2> kv_a;  // [T, kv_lora_rank + d_r] before norm and rotation
    std::conditional_t<packs_output, PackedE5m6, View<T, 3>> o;  // [T, n, d_v]; packed [T, n d_v]
    View<A, 2> lse;                                              // [T, n]
  };

  constexpr Saved make_saved(Arena& arena, Index tokens) const {
    Saved saved;
    if (q_lora_rank) saved.q_a = arena.take<T>({tokens, q_lora_rank});
    saved.kv_a = arena.take<T>({tokens, kv_lora_rank + qk_rope_head_dim});
    if constexpr (packs_output)
      saved.o = PackedE5m6::take(arena, tokens, num_attention_heads * v_head_dim, P::tile);
    else
      saved.o = take_output(arena, tokens);
    saved.lse = arena.take<A>({tokens, num_attention_heads});
    return saved;
  }

  /// What forward computes between the latents and the attention, and backward computes again.
  struct Expanded {
    typename Projection<P>::Operand c_q;      // [T, q_lora_rank]
    View<T, 3> q;                             // [T, n, d_n + d_r], turned
    typename Projection<P>::Operand c_codes;  // [T, kv_lora_rank]; only in an FP8 policy
    View<T, 2> c;                             // [T, kv_lora_rank]
    View<T, 2> k_rope;                        // [T, d_r], turned
    View<T, 3> kv;                            // [T, n, d_n + d_v]
  };

  constexpr Expanded make_expanded(Arena& arena, Index tokens) const {
    Expanded e;
    if (q_lora_rank) e.c_q = Projection<P>::take_operand(arena, tokens, q_lora_rank);
    e.q = arena.take<T>({tokens, num_attention_heads, qk_head_dim()});
    if constexpr (QuantizedPolicy<P>)
      e.c_codes = Projection<P>::take_operand(arena, tokens, kv_lora_rank);
    e.c = arena.take<T>({tokens, kv_lora_rank});
    e.k_rope = arena.take<T>({tokens, qk_rope_head_dim});
    e.kv = arena.take<T>({tokens, num_attention_heads, qk_nope_head_dim + v_head_dim});
    return e;
  }

  constexpr View<T, 3> take_output(Arena& arena, Index tokens) const {
    return arena.take<T>({tokens, num_attention_heads, v_head_dim});
  }

  /// Writes y [T, H] and saved. x is Projection<P>::input; in plain policies the matrix itself.
  /// table: rope_table in the backend's memory, [positions, 2, d_r / 2].
  template <class Backend, class Observer = NoObserver>
  void forward(Backend& backend, const Tensors<const W>& params, Input x,
               const Sequences& sequences, View<const A, 3> table, View<T, 2> y, Saved& saved,
               Arena& scratch, Observer&& observer = {}) const {
    const Index tokens = x.extent(0);
    check_shape("Mla::forward", "y", y, tokens, "rows of x", x.extent(1), "columns of x");
    check_equal("Mla::forward", "tokens of sequences", sequences.tokens(), "rows of x", tokens);
    const ArenaScope scope(scratch);
    const auto work = make_expanded(scratch, tokens);
    if (q_lora_rank) projection.forward(backend, params.q_a_proj, x, saved.q_a, scratch);
    projection.forward(backend, params.kv_a_proj_with_mqa, x, saved.kv_a, scratch);
    expand(backend, params, x, sequences, table, saved, work, scratch);
    observer("latent", as_const(work.c));
    observer("k_rope", as_const(work.k_rope));
    View<T, 3> o;
    if constexpr (packs_output)
      o = take_output(scratch, tokens);
    else
      o = saved.o;
    Attention<T>{scale}.forward(backend, work.q, work.kv, work.k_rope, sequences, o, saved.lse,
                                scratch);
    const View<const T, 2> flat = heads_flat(o);
    if constexpr (packs_output)
      for_each_row(backend, tokens, detail::PackE5m6Row<T>{flat, saved.o});
    const auto site = input_site("input of o_proj", params.o_proj);
    projection.forward(backend, params.o_proj,
                       projection.input(backend, site, flat, Route::dense, scratch), y, scratch);
  }

  /// Overwrites dx [T, H]; adds to grads. x is the input of forward.
  template <class Backend>
  void backward(Backend& backend, const Tensors<const W>& params, Input x, const Saved& saved,
                const Sequences& sequences, View<const A, 3> table, View<const T, 2> dy,
                View<T, 2> dx, const Tensors<typename P::master>& grads, Arena& scratch) const {
    const Index tokens = x.extent(0);
    check_shape("Mla::backward", "dy", dy, tokens, "rows of x", x.extent(1), "columns of x");
    check_shape("Mla::backward", "dx", dx, tokens, "rows of x", x.extent(1), "columns of x");
    const ArenaScope scope(scratch);
    constexpr auto dense = Route::dense;
    const auto work = make_expanded(scratch, tokens);
    expand(backend, params, x, sequences, table, saved, work, scratch);
    const auto dq = scratch.take<T>({tokens, num_attention_heads, qk_head_dim()});
    const auto dkv = scratch.take<T>({tokens, num_attention_heads, qk_nope_head_dim + v_head_dim});
    const auto dkv_a = scratch.take<T>({tokens, kv_lora_rank + qk_rope_head_dim});
    const auto dk_rope = dkv_a.cols(kv_lora_rank, qk_rope_head_dim);
    {
      const ArenaScope output(scratch);
      const auto d_o = take_output(scratch, tokens);
      View<T, 3> o;
      if constexpr (packs_output) {
        o = take_output(scratch, tokens);
        for_each_row(backend, tokens, detail::DequantizeRow<PackedE5m6, T>{saved.o, heads_flat(o)});
      } else {
        o = saved.o;
      }
      {
        const ArenaScope columns_scope(scratch);
        const auto site = input_site("input of o_proj", params.o_proj);
        const auto columns = [&] {
          if constexpr (packs_output)  // powers of two: only exponents move
            return projection.input_columns(backend, site, saved.o, Route::dispatch, scratch);
          else
            return projection.input_columns(backend, site, as_const(heads_flat(o)), dense, scratch);
        }();
        projection.backward(backend, "gradient of o_proj's output", params.o_proj, columns, dy,
                            dense, heads_flat(d_o), Output::overwrite, grads.o_proj, scratch);
      }
      Attention<T>{scale}.backward(backend, work.q, work.kv, work.k_rope, sequences, o, saved.lse,
                                   d_o, dq, dkv, dk_rope, scratch);
    }
    const Rope<T> rope;
    rope.backward(backend, dq, table, sequences.position, dq);
    rope.backward(backend, one_head(dk_rope), table, sequences.position, one_head(dk_rope));

    const RmsNorm<T, T, V> norm{latent_norm_eps};
    {
      const ArenaScope latent(scratch);
      const auto dc = scratch.take<T>({tokens, kv_lora_rank});
      layer_backward(backend, "gradient of kv_b_proj's output", params.kv_b_proj, latent_of(work),
                     heads_flat(dkv), dc, grads.kv_b_proj, scratch);
      norm.backward(backend, {params.kv_a_layernorm}, saved.kv_a.cols(0, kv_lora_rank), dc,
                    dkv_a.cols(0, kv_lora_rank), Output::overwrite, {grads.kv_a_layernorm},
                    scratch);
    }
    View<T, 2> dq_a;
    if (q_lora_rank) {
      dq_a = scratch.take<T>({tokens, q_lora_rank});
      const ArenaScope latent(scratch);
      const auto dc_q = scratch.take<T>({tokens, q_lora_rank});
      layer_backward(backend, "gradient of q_b_proj's output", params.q_b_proj, Input(work.c_q),
                     heads_flat(dq), dc_q, grads.q_b_proj, scratch);
      norm.backward(backend, {params.q_a_layernorm}, saved.q_a, dc_q, dq_a, Output::overwrite,
                    {grads.q_a_layernorm}, scratch);
    }
    const auto columns = projection.input_columns(backend, {}, x, dense, scratch);
    projection.backward(backend, "gradient of kv_a_proj_with_mqa's output",
                        params.kv_a_proj_with_mqa, columns, as_const(dkv_a), dense, dx,
                        Output::overwrite, grads.kv_a_proj_with_mqa, scratch);
    if (q_lora_rank)
      projection.backward(backend, "gradient of q_a_proj's output", params.q_a_proj, columns,
                          as_const(dq_a), dense, dx, Output::add, grads.q_a_proj, scratch);
    else
      projection.backward(backend, "gradient of q_proj's output", params.q_proj, columns,
                          as_const(heads_flat(dq)), dense, dx, Output::add, grads.q_proj, scratch);
  }

  constexpr Index qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }

 private:
  using V = typename P::weight;
  static constexpr Projection<P> projection{};

  // The normalised latent as the input of kv_b_proj.
  static Input latent_of(const Expanded& e) {
    if constexpr (QuantizedPolicy<P>)
      return e.c_codes;
    else
      return e.c;
  }

  template <class Backend>
  void layer_backward(Backend& backend, const char* what, projection_of<const W> weight, Input x,
                      View<const T, 2> dy, View<T, 2> dx, View<typename P::master, 2> dweight,
                      Arena& scratch) const {
    const ArenaScope scope(scratch);
    const auto columns = projection.input_columns(backend, {}, x, Route::dense, scratch);
    projection.backward(backend, what, weight, columns, dy, Route::dense, dx, Output::overwrite,
                        dweight, scratch);
  }

  template <class Backend>
  void expand(Backend& backend, const Tensors<const W>& params, Input x, const Sequences& sequences,
              View<const A, 3> table, const Saved& saved, const Expanded& e, Arena& scratch) const {
    const RmsNorm<T, T, V> norm{latent_norm_eps};
    const Rope<T> rope;
    if (q_lora_rank) {
      projection.normalize(backend, input_site("input of q_a_layernorm", params.q_b_proj), norm,
                           params.q_a_layernorm, as_const(saved.q_a), e.c_q, {}, Route::dense,
                           scratch);
      projection.forward(backend, params.q_b_proj, Input(e.c_q), heads_flat(e.q), scratch);
    } else {
      projection.forward(backend, params.q_proj, x, heads_flat(e.q), scratch);
    }
    rope.forward(backend, e.q, table, sequences.position, e.q);
    const auto latent = as_const(saved.kv_a.cols(0, kv_lora_rank));
    if constexpr (QuantizedPolicy<P>)
      projection.normalize(backend, input_site("input of kv_a_layernorm", params.kv_b_proj), norm,
                           params.kv_a_layernorm, latent, e.c_codes, e.c, Route::dense, scratch);
    else
      norm.forward(backend, {params.kv_a_layernorm}, latent, e.c);
    projection.forward(backend, params.kv_b_proj, latent_of(e), heads_flat(e.kv), scratch);
    rope.forward(backend, one_head(saved.kv_a.cols(kv_lora_rank, qk_rope_head_dim)), table,
                 sequences.position, one_head(e.k_rope));
  }

  // [T, n, d] as [T, n d].
  static View<T, 2> heads_flat(const View<T, 3>& v) {
    return {v.data, {v.extent(0), v.extent(1) * v.extent(2)}};
  }
  // [T, d] as [T, 1, d], whatever lies between its rows.
  static View<T, 3> one_head(const View<T, 2>& v) {
    View<T, 3> heads(v.data, {v.extent(0), 1, v.extent(1)});
    heads.strides[0] = v.strides[0];
    return heads;
  }
};

}  // namespace dsv3
