// Multi-head latent attention in its training form, forward and backward.
#pragma once

#include <dsv3/config.hpp>
#include <dsv3/core/precision.hpp>
#include <dsv3/nn/attention.hpp>
#include <dsv3/nn/linear.hpp>
#include <dsv3/nn/observer.hpp>
#include <dsv3/nn/rms_norm.hpp>
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
///          softmax and norms in P::accumulator.
/// Errors   std::invalid_argument when extents disagree.
/// Source   DeepSeek-V2 section 2.1, DeepSeek-V3 eq. 1-11; spec 4.2 and 4.7. What backward needs is
///          recomputed from the two latents, as in DeepSeek-V3 section 3.2.3.
template <class P>
struct Mla {
  using T = typename P::activation;
  using W = typename P::weight;
  using A = typename P::accumulator;

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
    View<U, 2> q_proj;              // [n (d_n + d_r), H]         only without a query latent
    View<U, 2> q_a_proj;            // [q_lora_rank, H]           only with one, as the next two
    View<U, 1> q_a_layernorm;       // [q_lora_rank]
    View<U, 2> q_b_proj;            // [n (d_n + d_r), q_lora_rank]
    View<U, 2> kv_a_proj_with_mqa;  // [kv_lora_rank + d_r, H]
    View<U, 1> kv_a_layernorm;      // [kv_lora_rank]
    View<U, 2> kv_b_proj;           // [n (d_n + d_v), kv_lora_rank]
    View<U, 2> o_proj;              // [H, n d_v]
  };

  /// Views of the right shapes from an arena, in the order of the checkpoint.
  template <class U>
  static constexpr Tensors<U> make_tensors(const ModelConfig& c, Arena& arena) {
    const Index H = c.hidden_size, n = c.num_attention_heads, d_qk = c.qk_head_dim();
    Tensors<U> t;
    if (c.q_lora_rank) {
      t.q_a_proj = arena.take<U>({c.q_lora_rank, H});
      t.q_a_layernorm = arena.take<U>({c.q_lora_rank});
      t.q_b_proj = arena.take<U>({n * d_qk, c.q_lora_rank});
    } else {
      t.q_proj = arena.take<U>({n * d_qk, H});
    }
    t.kv_a_proj_with_mqa = arena.take<U>({c.kv_lora_rank + c.qk_rope_head_dim, H});
    t.kv_a_layernorm = arena.take<U>({c.kv_lora_rank});
    t.kv_b_proj = arena.take<U>({n * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank});
    t.o_proj = arena.take<U>({H, n * c.v_head_dim});
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
    View<T, 3> o;     // [T, n, d_v]
    View<A, 2> lse;   // [T, n]
  };

  constexpr Saved make_saved(Arena& arena, Index tokens) const {
    Saved saved;
    if (q_lora_rank) saved.q_a = arena.take<T>({tokens, q_lora_rank});
    saved.kv_a = arena.take<T>({tokens, kv_lora_rank + qk_rope_head_dim});
    saved.o = arena.take<T>({tokens, num_attention_heads, v_head_dim});
    saved.lse = arena.take<A>({tokens, num_attention_heads});
    return saved;
  }

  /// What forward computes between the latents and the attention, and backward computes again.
  struct Expanded {
    View<T, 2> c_q;     // [T, q_lora_rank]
    View<T, 3> q;       // [T, n, d_n + d_r], turned
    View<T, 2> c;       // [T, kv_lora_rank]
    View<T, 2> k_rope;  // [T, d_r], turned
    View<T, 3> kv;      // [T, n, d_n + d_v]
  };

  constexpr Expanded make_expanded(Arena& arena, Index tokens) const {
    Expanded e;
    if (q_lora_rank) e.c_q = arena.take<T>({tokens, q_lora_rank});
    e.q = arena.take<T>({tokens, num_attention_heads, qk_head_dim()});
    e.c = arena.take<T>({tokens, kv_lora_rank});
    e.k_rope = arena.take<T>({tokens, qk_rope_head_dim});
    e.kv = arena.take<T>({tokens, num_attention_heads, qk_nope_head_dim + v_head_dim});
    return e;
  }

  /// Writes y [T, H] and saved. table: rope_table in the backend's memory, [positions, 2, d_r / 2].
  template <class Backend, class Observer = NoObserver>
  void forward(Backend& backend, const Tensors<const W>& params, View<const T, 2> x,
               const Sequences& sequences, View<const A, 3> table, View<T, 2> y, Saved& saved,
               Arena& scratch, Observer&& observer = {}) const {
    const Index tokens = x.extent(0);
    check_shape("Mla::forward", "y", y, tokens, "rows of x", x.extent(1), "columns of x");
    check_equal("Mla::forward", "tokens of sequences", sequences.tokens(), "rows of x", tokens);
    const ArenaScope scope(scratch);
    const auto work = make_expanded(scratch, tokens);
    const Linear linear;
    if (q_lora_rank) linear.forward(backend, params.q_a_proj, x, saved.q_a);
    linear.forward(backend, params.kv_a_proj_with_mqa, x, saved.kv_a);
    expand(backend, params, x, sequences, table, saved, work);
    observer("latent", as_const(work.c));
    observer("k_rope", as_const(work.k_rope));
    Attention<T>{scale}.forward(backend, work.q, work.kv, work.k_rope, sequences, saved.o,
                                saved.lse, scratch);
    linear.forward(backend, params.o_proj, heads_flat(saved.o), y);
  }

  /// Overwrites dx [T, H]; adds to grads. x is the input of forward.
  template <class Backend>
  void backward(Backend& backend, const Tensors<const W>& params, View<const T, 2> x,
                const Saved& saved, const Sequences& sequences, View<const A, 3> table,
                View<const T, 2> dy, View<T, 2> dx, const Tensors<typename P::master>& grads,
                Arena& scratch) const {
    const Index tokens = x.extent(0);
    check_shape("Mla::backward", "dy", dy, tokens, "rows of x", x.extent(1), "columns of x");
    check_shape("Mla::backward", "dx", dx, tokens, "rows of x", x.extent(1), "columns of x");
    const ArenaScope scope(scratch);
    const Linear linear;
    const auto work = make_expanded(scratch, tokens);
    expand(backend, params, x, sequences, table, saved, work);
    const auto d_o = scratch.take<T>({tokens, num_attention_heads, v_head_dim});
    linear.backward_weight(backend, dy, heads_flat(saved.o), grads.o_proj);
    linear.backward_input(backend, params.o_proj, dy, heads_flat(d_o), Output::overwrite);
    const auto dq = scratch.take<T>({tokens, num_attention_heads, qk_head_dim()});
    const auto dkv = scratch.take<T>({tokens, num_attention_heads, qk_nope_head_dim + v_head_dim});
    const auto dkv_a = scratch.take<T>({tokens, kv_lora_rank + qk_rope_head_dim});
    const auto dk_rope = dkv_a.cols(kv_lora_rank, qk_rope_head_dim);
    Attention<T>{scale}.backward(backend, work.q, work.kv, work.k_rope, sequences, saved.o,
                                 saved.lse, d_o, dq, dkv, dk_rope, scratch);
    const Rope<T> rope;
    rope.backward(backend, dq, table, sequences.position, dq);
    rope.backward(backend, one_head(dk_rope), table, sequences.position, one_head(dk_rope));

    const auto dc = scratch.take<T>({tokens, kv_lora_rank});
    linear.backward_weight(backend, heads_flat(dkv), work.c, grads.kv_b_proj);
    linear.backward_input(backend, params.kv_b_proj, heads_flat(dkv), dc, Output::overwrite);
    const RmsNorm<T, T, W> norm{latent_norm_eps};
    norm.backward(backend, {params.kv_a_layernorm}, saved.kv_a.cols(0, kv_lora_rank), dc,
                  dkv_a.cols(0, kv_lora_rank), Output::overwrite, {grads.kv_a_layernorm}, scratch);
    linear.backward_weight(backend, dkv_a, x, grads.kv_a_proj_with_mqa);
    linear.backward_input(backend, params.kv_a_proj_with_mqa, dkv_a, dx, Output::overwrite);

    if (!q_lora_rank) {
      linear.backward_weight(backend, heads_flat(dq), x, grads.q_proj);
      linear.backward_input(backend, params.q_proj, heads_flat(dq), dx, Output::add);
      return;
    }
    const auto dc_q = scratch.take<T>({tokens, q_lora_rank});
    const auto dq_a = scratch.take<T>({tokens, q_lora_rank});
    linear.backward_weight(backend, heads_flat(dq), work.c_q, grads.q_b_proj);
    linear.backward_input(backend, params.q_b_proj, heads_flat(dq), dc_q, Output::overwrite);
    norm.backward(backend, {params.q_a_layernorm}, saved.q_a, dc_q, dq_a, Output::overwrite,
                  {grads.q_a_layernorm}, scratch);
    linear.backward_weight(backend, dq_a, x, grads.q_a_proj);
    linear.backward_input(backend, params.q_a_proj, dq_a, dx, Output::add);
  }

  constexpr Index qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }

 private:
  template <class Backend>
  void expand(Backend& backend, const Tensors<const W>& params, View<const T, 2> x,
              const Sequences& sequences, View<const A, 3> table, const Saved& saved,
              const Expanded& e) const {
    const Linear linear;
    const RmsNorm<T, T, W> norm{latent_norm_eps};
    const Rope<T> rope;
    if (q_lora_rank) {
      norm.forward(backend, {params.q_a_layernorm}, saved.q_a, e.c_q);
      linear.forward(backend, params.q_b_proj, e.c_q, heads_flat(e.q));
    } else {
      linear.forward(backend, params.q_proj, x, heads_flat(e.q));
    }
    rope.forward(backend, e.q, table, sequences.position, e.q);
    norm.forward(backend, {params.kv_a_layernorm}, saved.kv_a.cols(0, kv_lora_rank), e.c);
    linear.forward(backend, params.kv_b_proj, e.c, heads_flat(e.kv));
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
