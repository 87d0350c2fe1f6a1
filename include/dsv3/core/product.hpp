// How the operands of a product are read, and what becomes of the output.
#pragma once

#include <dsv3/core/check.hpp>

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

namespace detail {

// Throws unless the extents of a product agree: a [a0, a1], b [b0, b1], c [c0, c1].
template <Product p>
void check_product(const char* caller, Index a0, Index a1, Index b0, Index b1, Index c0, Index c1) {
  constexpr bool left = p == Product::tn, right = p == Product::nt;
  check_equal(caller, left ? "columns of a" : "rows of a", left ? a1 : a0, "rows of c", c0);
  check_equal(caller, right ? "rows of b" : "columns of b", right ? b0 : b1, "columns of c", c1);
  check_equal(caller, left ? "rows of a" : "columns of a", left ? a0 : a1,
              right ? "columns of b" : "rows of b", right ? b1 : b0);
}

}  // namespace detail

}  // namespace dsv3
