// Between Eigen's matrices and views, without a copy.
#pragma once

#ifndef EIGEN_NO_CUDA
#define EIGEN_NO_CUDA  // Eigen loses its vectorisation in .cu files otherwise
#endif
#include <Eigen/Core>
#include <dsv3/core/scalar.hpp>

namespace dsv3 {

/// A row-major Eigen matrix of any size.
template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// The caller's own matrix as a view. It must outlive the view and keep its size.
template <class Derived>
View<typename Derived::Scalar, 2> view_of(Eigen::PlainObjectBase<Derived>& matrix) {
  static_assert(Derived::IsRowMajor || Derived::ColsAtCompileTime == 1,
                "dsv3 reads matrices row by row: declare yours with Eigen::RowMajor (or use "
                "dsv3::RowMajor<T>); a column-major matrix would be read transposed");
  return {matrix.data(), {matrix.rows(), matrix.cols()}};
}

/// The same, for reading only.
template <class Derived>
View<const typename Derived::Scalar, 2> view_of(const Eigen::PlainObjectBase<Derived>& matrix) {
  static_assert(Derived::IsRowMajor || Derived::ColsAtCompileTime == 1,
                "dsv3 reads matrices row by row: declare yours with Eigen::RowMajor (or use "
                "dsv3::RowMajor<T>); a column-major matrix would be read transposed");
  return {matrix.data(), {matrix.rows(), matrix.cols()}};
}

/// A vector (or any matrix, row by row) as a view of one dimension.
template <class Derived>
auto vector_view_of(Derived& matrix) {
  return view_of(matrix).flat();
}

}  // namespace dsv3
