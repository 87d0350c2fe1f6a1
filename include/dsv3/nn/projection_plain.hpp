// Projection: a linear layer whose product reads its operands as the precision policy says. Here
// they are plain.
#pragma once

#include <dsv3/core/check.hpp>
#include <dsv3/core/weights.hpp>
#include <dsv3/nn/linear.hpp>
#include <dsv3/nn/rms_norm.hpp>
#include <dsv3/nn/swiglu.hpp>

namespace dsv3 {

/// What a matrix that is quantised here is for.
enum class Route {
  dense,    ///< read by products where it lies
  dispatch  ///< sent to experts, or requantised later: power-of-two scales, so that only exponents
            ///< move
};

/// Where a matrix is quantised: its name in messages of the checked mode, and the history of its
/// scale in delayed scaling.
struct Site {
  const char* what = "";
  View<float, 1> history;  // [1 + history]; or empty

  Site() = default;
  Site(const char* name, View<float, 1> amax = {}) : what(name), history(amax) {}
};

/// The input of a projection, or the gradient in its output.
template <class Weight>
Site input_site(const char* what, const Weight& weight) {
  if constexpr (requires { weight.history; })
    if (weight.history.extent(0)) return {what, weight.history[0]};
  return {what, {}};
}
template <class Weight>
Site gradient_site(const char* what, const Weight& weight) {
  if constexpr (requires { weight.history; })
    if (weight.history.extent(0)) return {what, weight.history[1]};
  return {what, {}};
}

/// The linear layers of attention, MLPs and experts. In a plain policy an operand is the matrix
/// itself: the names below cost nothing.
///
/// Source   spec 7.3.
template <class P>
struct Projection {
  using T = typename P::activation;
  using V = typename P::weight;
  /// An activation as products read it.
  using Input = View<const T, 2>;
  /// An activation as it is kept until backward; forward works in it, whether one follows or not.
  using Stored = View<T, 2>;

  /// An Input that is being written.
  using Operand = View<T, 2>;

  static constexpr Stored take_stored(Arena& arena, Index rows, Index columns,
                                      bool /*backward_follows*/ = true) {
    return arena.take<T>({rows, columns});
  }
  static constexpr Operand take_operand(Arena& arena, Index rows, Index columns) {
    return arena.take<T>({rows, columns});
  }
  template <class Backend>
  Input input(Backend&, const Site&, View<const T, 2> x, Route, Arena&) const {
    return x;
  }
  /// Writes norm(x) to y.
  template <class Backend, class In>
  void normalize(Backend& backend, const Site&, const RmsNorm<In, T, V>& norm,
                 View<const V, 1> weight, View<const In, 2> x, Operand y, View<T, 2>, Route,
                 Arena&) const {
    norm.forward(backend, {weight}, x, y);
  }
  template <class Backend>
  Input input_columns(Backend&, const Site&, Input x, Route, Arena&) const {
    return x;
  }
  template <class Backend, class Y>
  void forward(Backend& backend, View<const V, 2> weight, Input x, View<Y, 2> y, Arena&) const {
    Linear{}.forward(backend, weight, x, y);
  }
  template <class Backend, class Y>
  void forward(Backend& backend, const Arranged<View<const V, 2>>& weight, Input x, View<Y, 2> y,
               Arena&) const {
    gemm(backend, nt, x, weight, y, Output::overwrite);
  }
  template <class Backend, class DX, class G>
  void backward(Backend& backend, const char*, View<const V, 2> weight, Input x,
                View<const T, 2> dy, Route, View<DX, 2> dx, Output output, View<G, 2> dweight,
                Arena&) const {
    Linear{}.backward_weight(backend, dy, x, dweight);
    Linear{}.backward_input(backend, weight, dy, dx, output);
  }
};

}  // namespace dsv3
