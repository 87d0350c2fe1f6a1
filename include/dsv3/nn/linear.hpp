// A linear layer without bias, forward and backward.
#pragma once

#include <dsv3/core/product.hpp>

namespace dsv3 {

/// y = x weight^T.
///
///     dx = dy weight          dweight += dy^T x
///
/// Shapes   T tokens; weight [out, in], x [T, in], y [T, out].
/// Types    each operand as it lies; sums in the backend's accumulator, each element rounded once.
/// Errors   std::invalid_argument from the products when extents disagree.
/// Source   spec 0.3.
struct Linear {
  /// Writes y [T, out].
  template <class Backend, class W, class X, class Y>
  void forward(Backend& backend, View<W, 2> weight, View<X, 2> x, View<Y, 2> y) const {
    gemm(backend, nt, as_const(x), as_const(weight), y, Output::overwrite);
  }

  /// Overwrites dx [T, in] or adds to it.
  template <class Backend, class W, class DY, class DX>
  void backward_input(Backend& backend, View<W, 2> weight, View<DY, 2> dy, View<DX, 2> dx,
                      Output output) const {
    gemm(backend, nn, as_const(dy), as_const(weight), dx, output);
  }

  /// Adds to dweight [out, in].
  template <class Backend, class DY, class X, class G>
  void backward_weight(Backend& backend, View<DY, 2> dy, View<X, 2> x, View<G, 2> dweight) const {
    gemm(backend, tn, as_const(dy), as_const(x), dweight, Output::add);
  }
};

}  // namespace dsv3
