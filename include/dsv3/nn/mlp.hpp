// The SwiGLU MLP, forward and backward.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/nn/projection.hpp>

namespace dsv3 {

/// down(silu(gate(x)) * up(x)).
///
/// Shapes   T tokens, H hidden_size, I intermediate_size; x and y [T, H].
/// Types    activations in P::activation, weights in P::weight, gradients in P::master. In an FP8
///          policy the three products multiply codes, and backward starts from codes of gate(x) and
///          up(x) (spec 7.6).
/// Errors   std::invalid_argument from the products when extents disagree.
/// Source   Shazeer 2020, arXiv:2002.05202; spec 2.4.
template <class P>
struct Mlp {
  using T = typename P::activation;
  using W = operand_t<P>;
  using Input = typename Projection<P>::Input;

  template <class U>
  struct Tensors {
    projection_of<U> gate_proj;  // [I, H]
    projection_of<U> up_proj;    // [I, H]
    projection_of<U> down_proj;  // [H, I]
  };

  template <class U>
  static constexpr Tensors<U> make_tensors(Index hidden, Index intermediate, Arena& arena) {
    Tensors<U> t;
    using Views = WeightViews<U>;
    t.gate_proj = Views::take_projection(arena, intermediate, hidden);
    t.up_proj = Views::take_projection(arena, intermediate, hidden);
    t.down_proj = Views::take_projection(arena, hidden, intermediate);
    return t;
  }

  static void for_each_tensor(auto&& f, auto&... t) {
    f("gate_proj.weight", t.gate_proj...);
    f("up_proj.weight", t.up_proj...);
    f("down_proj.weight", t.down_proj...);
  }

  /// What forward leaves for backward.
  struct Saved {
    typename Projection<P>::Stored a, b;  // [T, I] gate(x) and up(x)
  };

  static constexpr Saved make_saved(Arena& arena, Index tokens, Index intermediate,
                                    bool backward_follows = true) {
    Saved saved;
    saved.a = Projection<P>::take_stored(arena, tokens, intermediate, backward_follows);
    saved.b = Projection<P>::take_stored(arena, tokens, intermediate, backward_follows);
    return saved;
  }

  /// Writes y [T, H] and saved. x is Projection<P>::input; in plain policies the matrix itself.
  template <class Backend>
  void forward(Backend& backend, const Tensors<const W>& params, Input x, View<T, 2> y,
               Saved& saved, Arena& scratch) const {
    const ArenaScope scope(scratch);
    const Projection<P> projection;
    const Index tokens = x.extent(0), inter = params.gate_proj.extent(0);
    if constexpr (QuantizedPolicy<P>) {
      using Code = typename P::code;
      const auto h = Projection<P>::take_rows(scratch, tokens, inter);
      const ArenaScope inner(scratch);
      const auto a = scratch.take<T>({tokens, inter}), b = scratch.take<T>({tokens, inter});
      projection.forward(backend, params.gate_proj, x, a, scratch);
      projection.forward(backend, params.up_proj, x, b, scratch);
      projection.swiglu(backend, input_site("input of down_proj", params.down_proj), as_const(a),
                        as_const(b), saved.a, saved.b, h, scratch);
      projection.forward(backend, params.down_proj, Quantized<const Code>(h), y, scratch);
    } else {
      const auto h = scratch.take<T>({tokens, inter});
      projection.forward(backend, params.gate_proj, x, saved.a, scratch);
      projection.forward(backend, params.up_proj, x, saved.b, scratch);
      detail::swiglu_forward<T>(backend, saved.a, saved.b, h);
      projection.forward(backend, params.down_proj, as_const(h), y, scratch);
    }
  }

  /// Overwrites dx [T, H]; adds to grads. x is the input of forward.
  template <class Backend>
  void backward(Backend& backend, const Tensors<const W>& params, Input x, const Saved& saved,
                View<const T, 2> dy, View<T, 2> dx, const Tensors<typename P::master>& grads,
                Arena& scratch) const {
    const ArenaScope scope(scratch);
    const Projection<P> projection;
    const Index tokens = x.extent(0), inter = params.gate_proj.extent(0);
    const auto da = scratch.take<T>({tokens, inter}), db = scratch.take<T>({tokens, inter});
    constexpr auto dense = Route::dense;
    if constexpr (QuantizedPolicy<P>) {
      using Code = typename P::code;
      const auto output = gradient_site("gradient of down_proj's output", params.down_proj);
      const auto input = input_site("input of down_proj", params.down_proj);
      const ArenaScope down(scratch);
      const auto h = scratch.take<T>({tokens, inter});
      {
        const ArenaScope rows(scratch);
        projection.backward_input(backend, params.down_proj,
                                  projection.gradient(backend, output, dy, dense, scratch), da,
                                  Output::overwrite, scratch);
      }
      for_each_row(backend, tokens,
                   detail::SwigluQuantizedBackwardRow<T, Code>{as_const(saved.a), as_const(saved.b),
                                                               da, da, db, h});
      projection.backward_weight(
          backend, projection.gradient_columns(backend, output, dy, dense, scratch),
          projection.input_columns(backend, input, as_const(h), dense, scratch), grads.down_proj,
          scratch);
    } else {
      const auto h = scratch.take<T>({tokens, inter});
      const Linear linear;
      linear.backward_input(backend, params.down_proj, dy, da, Output::overwrite);
      detail::swiglu_backward<T>(backend, saved.a, saved.b, da, da, db, h);
      linear.backward_weight(backend, dy, h, grads.down_proj);
    }
    const auto columns = projection.input_columns(backend, {}, x, dense, scratch);
    projection.backward(backend, "gradient of gate_proj's output", params.gate_proj, columns,
                        as_const(da), dense, dx, Output::overwrite, grads.gate_proj, scratch);
    projection.backward(backend, "gradient of up_proj's output", params.up_proj, columns,
                        as_const(db), dense, dx, Output::add, grads.up_proj, scratch);
  }
};

}  // namespace dsv3
