// How the operands of a product are read, and what becomes of the output.
#pragma once

#include <dsv3/core/view.hpp>

namespace dsv3 {

/// The three products of a linear layer Y = X W^T. The letters say, for the left and the right
/// operand, whether it is read as it lies (n) or transposed (t).
enum class Product {
  nt,  ///< c[m,n] = sum_k a[m,k] b[n,k]    forward    Y  = X W^T
  nn,  ///< c[m,n] = sum_k a[m,k] b[k,n]    gradient   dX = dY W
  tn   ///< c[m,n] = sum_k a[k,m] b[k,n]    gradient   dW = dY^T X
};

/// A Product as a type, so that the choice is made at compile time.
template <Product p>
using ProductTag = std::integral_constant<Product, p>;

inline constexpr ProductTag<Product::nt> nt;
inline constexpr ProductTag<Product::nn> nn;
inline constexpr ProductTag<Product::tn> tn;

/// Whether a product replaces its output or is added to it.
enum class Output { overwrite, add };

}  // namespace dsv3
