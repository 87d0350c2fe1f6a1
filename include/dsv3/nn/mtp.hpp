// One multi-token prediction module, forward and backward.
#pragma once

#include <dsv3/nn/block.hpp>
#include <dsv3/nn/embedding.hpp>

namespace dsv3 {

/// Multi-token prediction at one depth k: a block that sees the hidden state of position i and the
/// embedding of token i + k, and predicts token i + k + 1 through the main model's head.
///
///     u_i = eh_proj [enorm(Emb(t_{i+k})); hnorm(h_i)]          y = Block(u)
///
/// Shapes   T tokens of this depth, H hidden_size.
/// Types    as Block.
/// Source   DeepSeek-V3 eq. 21-25; the order in the concatenation is that of the released weights
///          (spec 6.2).
template <class P>
struct Mtp {
  using T = typename P::activation;
  using R = typename P::residual;
  using V = typename P::weight;
  using W = operand_t<P>;
  using A = typename P::accumulator;

  Block<P> block;
  double rms_norm_eps;

  explicit Mtp(const ModelConfig& c) : block(c), rms_norm_eps(c.rms_norm_eps) {}

  template <class U>
  struct Tensors {
    vector_of<U> enorm;            // [H] of the embedding
    vector_of<U> hnorm;            // [H] of the hidden state
    product_matrix_of<U> eh_proj;  // [H, 2 H]
    typename Block<P>::template Tensors<U> block;
    vector_of<U> shared_head_norm;  // [H]
  };

  template <class U>
  static constexpr Tensors<U> make_tensors(const ModelConfig& c, Index layer, Arena& arena) {
    Tensors<U> t;
    using Views = WeightViews<U>;
    t.enorm = Views::take_vector(arena, c.hidden_size);
    t.hnorm = Views::take_vector(arena, c.hidden_size);
    t.eh_proj = ProductViews<U>::take_matrix(arena, c.hidden_size, 2 * c.hidden_size);
    t.block = Block<P>::template make_tensors<U>(c, layer, arena);
    t.shared_head_norm = Views::take_vector(arena, c.hidden_size);
    return t;
  }

  static void for_each_tensor(auto&& f, auto&... t) {
    f(std::string("enorm.weight"), t.enorm...);
    f(std::string("hnorm.weight"), t.hnorm...);
    f(std::string("eh_proj.weight"), t.eh_proj...);
    Block<P>::for_each_tensor(f, t.block...);
    f(std::string("shared_head.norm.weight"), t.shared_head_norm...);
  }

  /// The inputs of the block: e [T, H] the embeddings, h [T, H] the hidden states. Writes u [T, H].
  template <class Backend>
  void forward_input(Backend& backend, const Tensors<const W>& params, View<const T, 2> e,
                     View<const T, 2> h, View<R, 2> u, Arena& scratch) const {
    const ArenaScope scope(scratch);
    const auto both = concatenate(backend, params, e, h, scratch);
    gemm(backend, nt, as_const(both), params.eh_proj, u, Output::overwrite);
  }

  /// Overwrites de and dh [T, H] from du; adds to grads.
  template <class Backend>
  void backward_input(Backend& backend, const Tensors<const W>& params, View<const T, 2> e,
                      View<const T, 2> h, View<const R, 2> du, View<T, 2> de, View<T, 2> dh,
                      const Tensors<typename P::master>& grads, Arena& scratch) const {
    const ArenaScope scope(scratch);
    const Index hidden = e.extent(1);
    const auto both = concatenate(backend, params, e, h, scratch);
    const auto dboth = scratch.take<T>({e.extent(0), 2 * hidden});
    const Linear linear;
    linear.backward_weight(backend, du, both, grads.eh_proj);
    linear.backward_input(backend, params.eh_proj, du, dboth, Output::overwrite);
    const RmsNorm<T, T, V> norm{rms_norm_eps};
    norm.backward(backend, {params.enorm}, e, dboth.cols(0, hidden), de, Output::overwrite,
                  {grads.enorm}, scratch);
    norm.backward(backend, {params.hnorm}, h, dboth.cols(hidden, hidden), dh, Output::overwrite,
                  {grads.hnorm}, scratch);
  }

 private:
  // [enorm(e), hnorm(h)], embedding first.
  template <class Backend>
  View<T, 2> concatenate(Backend& backend, const Tensors<const W>& params, View<const T, 2> e,
                         View<const T, 2> h, Arena& scratch) const {
    const Index hidden = e.extent(1);
    const auto both = scratch.take<T>({e.extent(0), 2 * hidden});
    const RmsNorm<T, T, V> norm{rms_norm_eps};
    norm.forward(backend, {params.enorm}, e, both.cols(0, hidden));
    norm.forward(backend, {params.hnorm}, h, both.cols(hidden, hidden));
    return both;
  }
};

}  // namespace dsv3
