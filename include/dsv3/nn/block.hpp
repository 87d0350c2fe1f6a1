// A transformer block: latent attention, then a dense MLP or experts, each behind a norm and beside
// a residual.
#pragma once

#include <dsv3/nn/mla.hpp>
#include <dsv3/nn/moe.hpp>

namespace dsv3 {

/// x1 = x + Mla(norm(x));  y = x1 + Ffn(norm(x1)).
///
/// Shapes   T tokens, H hidden_size; x and y [T, H].
/// Types    x and y in P::residual; the rest as Mla, Mlp and Moe.
/// Source   DeepSeek-V3 section 2.1; spec 2.1 and 2.6.
template <class P>
struct Block {
  using T = typename P::activation;
  using R = typename P::residual;
  using V = typename P::weight;
  using W = operand_t<P>;
  using A = typename P::accumulator;

  Mla<P> mla;
  Moe<P> moe;
  Index intermediate_size;
  double rms_norm_eps;

  explicit Block(const ModelConfig& c) : Block(c, Mla<P>(c)) {}

  constexpr Block(const ModelConfig& c, const Mla<P>& attention)
      : mla(attention),
        moe(c),
        intermediate_size(c.intermediate_size),
        rms_norm_eps(c.rms_norm_eps) {}

  /// Either mlp or moe has extents; the other is empty.
  template <class U>
  struct Tensors {
    vector_of<U> input_layernorm;           // [H]
    vector_of<U> post_attention_layernorm;  // [H] before the FFN
    typename Mla<P>::template Tensors<U> self_attn;
    typename Mlp<P>::template Tensors<U> mlp;
    typename Moe<P>::template Tensors<U> moe;

    constexpr bool is_moe() const { return moe.gate.extent(0) != 0; }
  };

  template <class U>
  static constexpr Tensors<U> make_tensors(const ModelConfig& c, Index layer, Arena& arena) {
    Tensors<U> t;
    t.input_layernorm = WeightViews<U>::take_vector(arena, c.hidden_size);
    t.post_attention_layernorm = WeightViews<U>::take_vector(arena, c.hidden_size);
    t.self_attn = Mla<P>::template make_tensors<U>(c, arena);
    if (c.is_moe(layer))
      t.moe = Moe<P>::template make_tensors<U>(c, arena);
    else
      t.mlp = Mlp<P>::template make_tensors<U>(c.hidden_size, c.intermediate_size, arena);
    return t;
  }

  static void for_each_tensor(auto&& f, auto&... t) {
    f(std::string("input_layernorm.weight"), t.input_layernorm...);
    f(std::string("post_attention_layernorm.weight"), t.post_attention_layernorm...);
    Mla<P>::for_each_tensor(
        [&](const char* name, auto... views) { f(std::string("self_attn.") + name, views...); },
        t.self_attn...);
    if ((t.is_moe() || ...))
      Moe<P>::for_each_tensor(
          [&](const std::string& name, auto... views) { f("mlp." + name, views...); }, t.moe...);
    else
      Mlp<P>::for_each_tensor(
          [&](const char* name, auto... views) { f(std::string("mlp.") + name, views...); },
          t.mlp...);
  }

  /// What forward leaves for backward, beside its input x.
  struct Saved {
    View<R, 2> x1;  // [T, H] after attention
    typename Mla<P>::Saved mla;
    typename Mlp<P>::Saved mlp;
    typename Moe<P>::Saved moe;
  };

  constexpr Saved make_saved(Arena& arena, bool is_moe, Index tokens, Index hidden,
                             Index sequences) const {
    const auto mla_saved = [&](Saved& saved) { saved.mla = mla.make_saved(arena, tokens); };
    return make_saved(arena, is_moe, tokens, hidden, sequences, mla_saved, true);
  }

  /// What forward_around works in where no backward follows.
  constexpr Saved make_ffn_saved(Arena& arena, bool is_moe, Index tokens, Index hidden) const {
    return make_saved(
        arena, is_moe, tokens, hidden, 0, [](Saved&) {}, false);
  }

 private:
  constexpr Saved make_saved(Arena& arena, bool is_moe, Index tokens, Index hidden, Index sequences,
                             auto mla_saved, bool backward_follows) const {
    Saved saved;
    saved.x1 = arena.take<R>({tokens, hidden});
    mla_saved(saved);
    if (is_moe)
      saved.moe = moe.make_saved(arena, tokens, sequences, backward_follows);
    else
      saved.mlp = Mlp<P>::make_saved(arena, tokens, intermediate_size, backward_follows);
    return saved;
  }

 public:
  /// Writes y [T, H] and saved. bias, forced and balance_scale as Moe::forward has them.
  template <class Backend, class Observer = NoObserver>
  void forward(Backend& backend, const Tensors<const W>& params, View<const A, 1> bias,
               View<const std::int32_t, 2> forced, View<const R, 2> x, const Sequences& sequences,
               View<const A, 3> table, double balance_scale, View<R, 2> y, Saved& saved,
               Arena& scratch, Observer&& observer = {}) const {
    forward_around(
        backend, params, bias, forced, x, sequences, balance_scale, y, saved, scratch,
        [&](typename Projection<P>::Input n, View<T, 2> out) {
          mla.forward(backend, params.self_attn, n, sequences, table, out, saved.mla, scratch,
                      observer);
        },
        observer);
  }

  /// The same with another attention: attention(n, out) writes out [T, H] from the normalised x.
  template <class Backend, class Observer = NoObserver>
  void forward_around(Backend& backend, const Tensors<const W>& params, View<const A, 1> bias,
                      View<const std::int32_t, 2> forced, View<const R, 2> x,
                      const Sequences& sequences, double balance_scale, View<R, 2> y, Saved& saved,
                      Arena& scratch, auto&& attention, Observer&& observer = {}) const {
    const Index tokens = x.extent(0), hidden = x.extent(1);
    const ArenaScope scope(scratch);
    const auto n = Projection<P>::take_operand(scratch, tokens, hidden);  // n1, then n2
    const auto out = scratch.take<T>({tokens, hidden});  // of attention, then of the FFN
    normalize_attention(backend, params, x, n, scratch);
    attention(n, out);
    observer("attn", as_const(out));
    for_each_row(backend, tokens, detail::AddRow<R, T, R>{x, out, saved.x1});
    const auto values = normalize_ffn(backend, params, saved.x1, n, scratch);
    if (params.is_moe())
      moe.forward(backend, params.moe, bias, forced, Moe<P>::input_of(values, n), sequences,
                  balance_scale, out, saved.moe, scratch, observer);
    else
      Mlp<P>{}.forward(backend, params.mlp, n, out, saved.mlp, scratch);
    for_each_row(backend, tokens, detail::AddRow<R, T, R>{saved.x1, out, y});
    observer("out", as_const(y));
  }

  /// Replaces dy [T, H], the gradient in the output, by dx, that in the input; adds to grads.
  template <class Backend>
  void backward(Backend& backend, const Tensors<const W>& params, View<const R, 2> x,
                const Saved& saved, const Sequences& sequences, View<const A, 3> table,
                double balance_scale, View<R, 2> dy, const Tensors<typename P::master>& grads,
                Arena& scratch) const {
    const Index tokens = x.extent(0), hidden = x.extent(1);
    const ArenaScope scope(scratch);
    const RmsNorm<R, T, V> norm{rms_norm_eps};
    const auto n = Projection<P>::take_operand(scratch, tokens, hidden);
    const auto dout = scratch.take<T>({tokens, hidden});
    const auto dn = scratch.take<T>({tokens, hidden});
    {
      const ArenaScope ffn(scratch);
      const auto values = normalize_ffn(backend, params, saved.x1, n, scratch);
      const View<const T, 2> dffn = as_activation(backend, dy, dout);
      if (params.is_moe())
        moe.backward(backend, params.moe, Moe<P>::input_of(values, n), saved.moe, sequences,
                     balance_scale, dffn, dn, grads.moe, scratch);
      else
        Mlp<P>{}.backward(backend, params.mlp, n, saved.mlp, dffn, dn, grads.mlp, scratch);
    }
    norm.backward(backend, {params.post_attention_layernorm}, saved.x1, dn, dy, Output::add,
                  {grads.post_attention_layernorm}, scratch);
    normalize_attention(backend, params, x, n, scratch);
    const View<const T, 2> dattn = as_activation(backend, dy, dout);
    mla.backward(backend, params.self_attn, n, saved.mla, sequences, table, dattn, dn,
                 grads.self_attn, scratch);
    norm.backward(backend, {params.input_layernorm}, x, dn, dy, Output::add,
                  {grads.input_layernorm}, scratch);
  }

 private:
  template <class Backend>
  void normalize_attention(Backend& backend, const Tensors<const W>& params, View<const R, 2> x,
                           typename Projection<P>::Operand n, Arena& scratch) const {
    Projection<P>{}.normalize(
        backend, input_site("input of input_layernorm", params.self_attn.kv_a_proj_with_mqa),
        RmsNorm<R, T, V>{rms_norm_eps}, params.input_layernorm, x, n, {}, Route::dense, scratch);
  }

  // Writes n; returns the plain values where experts need them, from scratch in an FP8 policy.
  template <class Backend>
  View<const T, 2> normalize_ffn(Backend& backend, const Tensors<const W>& params,
                                 View<const R, 2> x1, typename Projection<P>::Operand n,
                                 Arena& scratch) const {
    View<T, 2> values;
    if constexpr (QuantizedPolicy<P>) {
      if (params.is_moe()) values = scratch.take<T>({x1.extent(0), x1.extent(1)});
    } else {
      values = n;
    }
    const char* what = "input of post_attention_layernorm";
    const auto site = params.is_moe() ? input_site(what, params.moe.gate_proj)
                                      : input_site(what, params.mlp.gate_proj);
    Projection<P>{}.normalize(backend, site, RmsNorm<R, T, V>{rms_norm_eps},
                              params.post_attention_layernorm, x1, n, values,
                              params.is_moe() ? Route::dispatch : Route::dense, scratch);
    return values;
  }

  // A gradient of the residual stream in the type of the activations.
  template <class Backend>
  static View<const T, 2> as_activation(Backend& backend, View<const R, 2> d, View<T, 2> storage) {
    if constexpr (std::is_same_v<R, T>) {
      return d;
    } else {
      for_each_row(backend, d.extent(0), detail::CastRow<R, T>{d, storage});
      return storage;
    }
  }
};

}  // namespace dsv3
