// The SwiGLU MLP, forward and backward.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/core/math.hpp>
#include <dsv3/core/precision.hpp>
#include <dsv3/nn/linear.hpp>

namespace dsv3 {
namespace detail {

// h = silu(a) * b
template <class T>
struct SwigluForwardRow {
  View<const T, 2> a, b;
  View<T, 2> h;

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<T>;
    team.each(h.extent(1), [&](Index j) {
      const A gate = A(a(t, j));
      h(t, j) = T(gate * sigmoid(gate) * A(b(t, j)));
    });
  }
};

// With s = sigmoid(a):  db = dh a s,  da = dh b s (1 + a (1 - s)).  Also h again.   Spec 2.4.
template <class T>
struct SwigluBackwardRow {
  View<const T, 2> a, b, dh;
  View<T, 2> da, db, h;  // da may be dh

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<T>;
    team.each(h.extent(1), [&](Index j) {
      const A gate = A(a(t, j)), up = A(b(t, j)), d = A(dh(t, j));
      const A s = sigmoid(gate), silu = gate * s;
      h(t, j) = T(silu * up);
      db(t, j) = T(d * silu);
      da(t, j) = T(d * up * s * fma(gate, A(1) - s, A(1)));
    });
  }
};

}  // namespace detail

/// down(silu(gate(x)) * up(x)).
///
/// Shapes   T tokens, H hidden_size, I intermediate_size; x and y [T, H].
/// Types    activations in P::activation, weights in P::weight, gradients in P::master.
/// Errors   std::invalid_argument from the products when extents disagree.
/// Source   Shazeer 2020, arXiv:2002.05202; spec 2.4.
template <class P>
struct Mlp {
  using T = typename P::activation;
  using W = typename P::weight;

  template <class U>
  struct Tensors {
    View<U, 2> gate_proj;  // [I, H]
    View<U, 2> up_proj;    // [I, H]
    View<U, 2> down_proj;  // [H, I]
  };

  template <class U>
  static constexpr Tensors<U> make_tensors(Index hidden, Index intermediate, Arena& arena) {
    Tensors<U> t;
    t.gate_proj = arena.take<U>({intermediate, hidden});
    t.up_proj = arena.take<U>({intermediate, hidden});
    t.down_proj = arena.take<U>({hidden, intermediate});
    return t;
  }

  static void for_each_tensor(auto&& f, auto&... t) {
    f("gate_proj.weight", t.gate_proj...);
    f("up_proj.weight", t.up_proj...);
    f("down_proj.weight", t.down_proj...);
  }

  /// What forward leaves for backward.
  struct Saved {
    View<T, 2> a, b;  // [T, I] gate(x) and up(x)
  };

  static constexpr Saved make_saved(Arena& arena, Index tokens, Index intermediate) {
    Saved saved;
    saved.a = arena.take<T>({tokens, intermediate});
    saved.b = arena.take<T>({tokens, intermediate});
    return saved;
  }

  /// Writes y [T, H] and saved.
  template <class Backend>
  void forward(Backend& backend, const Tensors<const W>& params, View<const T, 2> x, View<T, 2> y,
               Saved& saved, Arena& scratch) const {
    const ArenaScope scope(scratch);
    const Linear linear;
    const auto h = scratch.take<T>({x.extent(0), params.gate_proj.extent(0)});
    linear.forward(backend, params.gate_proj, x, saved.a);
    linear.forward(backend, params.up_proj, x, saved.b);
    for_each_row(backend, x.extent(0), detail::SwigluForwardRow<T>{saved.a, saved.b, h});
    linear.forward(backend, params.down_proj, h, y);
  }

  /// Overwrites dx [T, H]; adds to grads. x is the input of forward.
  template <class Backend>
  void backward(Backend& backend, const Tensors<const W>& params, View<const T, 2> x,
                const Saved& saved, View<const T, 2> dy, View<T, 2> dx,
                const Tensors<typename P::master>& grads, Arena& scratch) const {
    const ArenaScope scope(scratch);
    const Linear linear;
    const Index tokens = x.extent(0), inter = params.gate_proj.extent(0);
    const auto h = scratch.take<T>({tokens, inter});
    const auto da = scratch.take<T>({tokens, inter});
    const auto db = scratch.take<T>({tokens, inter});
    linear.backward_input(backend, params.down_proj, dy, da, Output::overwrite);
    for_each_row(backend, tokens, detail::SwigluBackwardRow<T>{saved.a, saved.b, da, da, db, h});
    linear.backward_weight(backend, dy, h, grads.down_proj);
    linear.backward_weight(backend, da, x, grads.gate_proj);
    linear.backward_weight(backend, db, x, grads.up_proj);
    linear.backward_input(backend, params.gate_proj, da, dx, Output::overwrite);
    linear.backward_input(backend, params.up_proj, db, dx, Output::add);
  }
};

}  // namespace dsv3
