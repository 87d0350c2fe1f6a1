// Copies blocks of a product's operands into the order in which the micro-kernel reads them.
#pragma once

#include <dsv3/backend/cpu/simd.hpp>

namespace dsv3::detail {

// One operand of a product: element (i, k), i along the rows or columns of the output, k along the
// sum.
template <class T>
struct Operand {
  const T* data;
  Index stride;
  bool along_k;  // k is the contiguous dimension

  const T* at(Index i, Index k) const {
    return along_k ? data + i * stride + k : data + k * stride + i;
  }
};

// Rows [i, i + rows) and [k, k + depth) of the left operand, row by row; a row is filled with zeros
// to whole steps.
template <class Kernel, class T>
void pack_left(const Operand<T>& a, Index i, Index rows, Index k, Index depth,
               typename Kernel::Packed* out, Index out_stride) {
  using P = typename Kernel::Packed;
  using A = typename Kernel::Sum;
  const Index padded = (depth + Kernel::step - 1) / Kernel::step * Kernel::step;
  for (Index r = 0; r < rows; ++r) {
    P* row = out + r * out_stride;
    for (Index s = 0; s < depth; ++s) row[s] = P(A(*a.at(i + r, k + s)));
    for (Index s = depth; s < padded; ++s) row[s] = P(A(0));
  }
}

// Columns [j, j + columns) and [k, k + depth) of the right operand as one panel, filled with zeros
// to whole steps and to the panel's width.
template <class Kernel, class T>
void pack_right(const Operand<T>& b, Index j, Index columns, Index k, Index depth,
                typename Kernel::Packed* out) {
  using P = typename Kernel::Packed;
  using A = typename Kernel::Sum;
  constexpr Index width = 2 * Kernel::S::lanes, step = Kernel::step;
  for (Index s = 0; s < depth; s += step)
    for (Index c = 0; c < width; ++c)
      for (Index p = 0; p < step; ++p)
        out[s * width + c * step + p] =
            c < columns && s + p < depth ? P(A(*b.at(j + c, k + s + p))) : P(A(0));
}

}  // namespace dsv3::detail
