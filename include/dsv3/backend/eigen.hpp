// The reference backend: every primitive in the plainest way, on Eigen, on one thread. Read this
// file first: it is the whole contract between the mathematics in nn/ and a machine.
#pragma once

#include <dsv3/backend/eigen_view.hpp>
#include <dsv3/backend/host.hpp>
#include <dsv3/core/product.hpp>

namespace dsv3 {

/// The reference backend, for any processor. It promises no speed, and the same bits only for the
/// same call: Eigen chooses the order of its sums by the sizes of the matrices.
class EigenCpu : public HostMemory {};

/// Primitive. Calls body(team, row) for every row in [0, rows), in any order.
template <class Body>
void for_each_row(EigenCpu&, Index rows, Body body) {
  for (Index row = 0; row < rows; ++row) body(SerialTeam{}, row);
}

namespace detail {

/// The view's elements as an Eigen matrix of the type in which they are summed.
template <class A, class T>
RowMajor<A> eigen_matrix(const View<T, 2>& view) {
  RowMajor<A> matrix(view.extent(0), view.extent(1));
  for (Index i = 0; i < view.extent(0); ++i)
    for (Index j = 0; j < view.extent(1); ++j) matrix(i, j) = A(view(i, j));
  return matrix;
}

}  // namespace detail

/// Primitive. The matrix product that the tag names; operands may have rows apart, and differ in
/// type. Sums run in accum_t of the operands, in double where c is double; each element of c is
/// rounded once.
/// Errors   std::invalid_argument when extents disagree, before anything is written.
template <Product p, class TA, class TB, class TC>
void gemm(EigenCpu&, ProductTag<p>, View<TA, 2> a, View<TB, 2> b, View<TC, 2> c, Output output) {
  detail::check_product<p>("gemm", a.extent(0), a.extent(1), b.extent(0), b.extent(1), c.extent(0),
                           c.extent(1));
  using A = accum_t<TC>;
  const RowMajor<A> left = detail::eigen_matrix<A>(a), right = detail::eigen_matrix<A>(b);
  RowMajor<A> product(c.extent(0), c.extent(1));
  if constexpr (p == Product::nt) product.noalias() = left * right.transpose();
  if constexpr (p == Product::nn) product.noalias() = left * right;
  if constexpr (p == Product::tn) product.noalias() = left.transpose() * right;
  for (Index i = 0; i < c.extent(0); ++i)
    for (Index j = 0; j < c.extent(1); ++j)
      c(i, j) = TC(output == Output::add ? A(c(i, j)) + product(i, j) : product(i, j));
}

/// Primitive. gemm for each entry of the first dimension.
template <Product p, class TA, class TB, class TC>
void batched_gemm(EigenCpu& backend, ProductTag<p> tag, View<TA, 3> a, View<TB, 3> b, View<TC, 3> c,
                  Output output) {
  check_equal("batched_gemm", "batch of a", a.extent(0), "batch of c", c.extent(0));
  check_equal("batched_gemm", "batch of b", b.extent(0), "batch of c", c.extent(0));
  for (Index i = 0; i < c.extent(0); ++i) gemm(backend, tag, a[i], b[i], c[i], output);
}

/// Primitive. One product for each expert, over its rows offsets[e] ... offsets[e + 1] - 1.
///
///     nt   c[s, n] = sum_k a[s, k] b[e, n, k]        for rows s of expert e
///     nn   c[s, n] = sum_k a[s, k] b[e, k, n]
///     tn   c[e, m, n] = sum_s a[s, m] b[s, n]        over the rows s of expert e
///
/// Shapes   offsets [E + 1], in the backend's memory, ascending from 0. An expert without rows has
///          a zero sum in `tn`.
template <Product p, class TA, class TB, class TC, int RankB, int RankC>
void grouped_gemm(EigenCpu& backend, ProductTag<p> tag, View<TA, 2> a, View<TB, RankB> b,
                  View<TC, RankC> c, View<const Index, 1> offsets, Output output) {
  static_assert(p == Product::tn ? (RankB == 2 && RankC == 3) : (RankB == 3 && RankC == 2),
                "grouped_gemm: the tensor with one matrix for each expert has rank 3");
  for (Index e = 0; e + 1 < offsets.extent(0); ++e) {
    const Index first = offsets(e), count = offsets(e + 1) - first;
    if constexpr (p == Product::tn)
      gemm(backend, tag, a.rows(first, count), b.rows(first, count), c[e], output);
    else
      gemm(backend, tag, a.rows(first, count), b[e], c.rows(first, count), output);
  }
}

}  // namespace dsv3
