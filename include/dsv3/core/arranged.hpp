// Arranged: a weight in the order in which one backend's products read it.
#pragma once

#include <dsv3/core/quantized.hpp>

namespace dsv3 {

/// A weight, or a stack of them, whose memory its backend has put into an order of its own
/// (primitive arrange): the right operand of nt products and of nothing else. Shapes are those of
/// the rows as they lay; the bytes are as many.
///
/// M is View<T, 2>, View<T, 3>, or codes of either. `order` names the order: products of code that
/// reads another one refuse it.
template <class M>
struct Arranged {
  M matrix;
  int order = 0;

  DSV3_HD constexpr Index extent(int d) const { return matrix.extent(d); }
  DSV3_HD constexpr Index size() const { return matrix.size(); }
  DSV3_HD constexpr auto operator[](Index expert) const {
    return Arranged<decltype(matrix[expert])>{matrix[expert], order};
  }
};

template <class M>
DSV3_HD constexpr const Arranged<M>& as_const(const Arranged<M>& m) {
  return m;
}

}  // namespace dsv3
