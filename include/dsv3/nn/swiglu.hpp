// SwiGLU's row kernels, on plain values and on codes.
#pragma once

#include <dsv3/core/math.hpp>
#include <dsv3/nn/quantize.hpp>

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

// The same on codes: h = silu(a) * b rounded to T, as the codes that the down projection reads, and
// a and b as the codes that backward reads, where they are kept.
template <class T, class C>
struct SwigluQuantizeRow {
  View<const T, 2> a, b;
  Quantized<C> saved_a, saved_b, h;
  ScaleRule rule;

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<T>;
    const RoundNearest nearest;
    if (saved_a.extent(0)) {
      quantize_row(team, saved_a, t, rule, nearest, [&](Index j) { return A(a(t, j)); });
      quantize_row(team, saved_b, t, rule, nearest, [&](Index j) { return A(b(t, j)); });
    }
    quantize_row(team, h, t, rule, nearest, [&](Index j) {
      const A gate = A(a(t, j));
      return A(T(gate * sigmoid(gate) * A(b(t, j))));
    });
  }
};

// SwiGLU backward from saved codes. Also h again.
template <class T, class C>
struct SwigluQuantizedBackwardRow {
  Quantized<const C> a, b;
  View<const T, 2> dh;
  View<T, 2> da, db, h;  // da may be dh

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<T>;
    for_each_piece_of_row(a, t, 0, h.extent(1), [&](Index first, Index count, const auto& gate_of) {
      // b has the same groups: one piece.
      for_each_piece_of_row(b, t, first, first + count, [&](Index, Index, const auto& up_of) {
        team.each(count, [&](Index i) {
          const Index j = first + i;
          const A gate = gate_of(j), up = up_of(j), d = A(dh(t, j));
          const A s = sigmoid(gate), silu = gate * s;
          h(t, j) = T(silu * up);
          db(t, j) = T(d * silu);
          da(t, j) = T(d * up * s * fma(gate, A(1) - s, A(1)));
        });
      });
    });
  }
};

// h = silu(a) * b, fused where the backend has it.
template <class T, class Backend>
void swiglu_forward(Backend& backend, View<const T, 2> a, View<const T, 2> b, View<T, 2> h) {
  if constexpr (requires { swiglu_rows(backend, a, b, h); })
    swiglu_rows(backend, a, b, h);
  else
    for_each_row(backend, h.extent(0), SwigluForwardRow<T>{a, b, h});
}

// The same of its gradient; da may be dh.
template <class T, class Backend>
void swiglu_backward(Backend& backend, View<const T, 2> a, View<const T, 2> b, View<const T, 2> dh,
                     View<T, 2> da, View<T, 2> db, View<T, 2> h) {
  if constexpr (requires { swiglu_backward_rows(backend, a, b, dh, da, db, h); })
    swiglu_backward_rows(backend, a, b, dh, da, db, h);
  else
    for_each_row(backend, h.extent(0), SwigluBackwardRow<T>{a, b, dh, da, db, h});
}

}  // namespace detail

}  // namespace dsv3
