// The reference backend: every primitive in the plainest way, on Eigen, on one thread. Read this
// file first: it is the whole contract between the mathematics in nn/ and a machine.
#pragma once

#include <dsv3/backend/eigen_view.hpp>
#include <dsv3/backend/host.hpp>
#include <dsv3/core/product.hpp>
#include <dsv3/core/quantized.hpp>

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

/// Primitive. The product of two matrices of codes, by plain decoding. The sum in a segment of K is
/// exact in double and rounded once to the type of the scales; then, in that type,
///
///     total = fma(sum, scale_a * scale_b, total)        segments in ascending order
///
/// Segments are as long as no scale changes, at most 128.
/// Source   spec 7.4.
template <Product p, class CA, class CB, class TC>
void gemm(EigenCpu&, ProductTag<p>, Quantized<CA> a, Quantized<CB> b, View<TC, 2> c,
          Output output) {
  detail::check_product<p>("gemm", a.extent(0), a.extent(1), b.extent(0), b.extent(1), c.extent(0),
                           c.extent(1));
  using S = accum_t<CA>;
  constexpr bool left = p != Product::tn, right = p == Product::nt;
  const auto sa = detail::operand_scales(a, left), sb = detail::operand_scales(b, right);
  const Index depth = a.extent(left ? 1 : 0), rows = c.extent(0), columns = c.extent(1);
  RowMajor<S> total = RowMajor<S>::Zero(rows, columns);
  RowMajor<double> x(rows, 128), y(columns, 128);
  Index count = 0;
  for (Index k = 0; k < depth; k += count) {
    count = std::min(Index{128}, depth - k);
    for (const auto& scales : {sa, sb})
      if (scales.k_stride != 0) count = std::min(count, scales.k_group - k % scales.k_group);
    for (Index j = 0; j < count; ++j) {
      for (Index i = 0; i < rows; ++i)
        x(i, j) = double(S(left ? a.codes(i, k + j) : a.codes(k + j, i)));
      for (Index i = 0; i < columns; ++i)
        y(i, j) = double(S(right ? b.codes(i, k + j) : b.codes(k + j, i)));
    }
    const RowMajor<double> sum = x.leftCols(count) * y.leftCols(count).transpose();
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j)
        total(i, j) = fma(S(sum(i, j)), sa.at(i, k) * sb.at(j, k), total(i, j));
  }
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j)
      c(i, j) = TC(output == Output::add ? accum_t<TC>(c(i, j)) + total(i, j) : total(i, j));
}

/// Primitive. The same for each expert: nt and nn.
template <Product p, class CA, class CB, class TC>
requires(p != Product::tn) void grouped_gemm(EigenCpu& backend, ProductTag<p> tag, Quantized<CA> a,
                                             QuantizedStack<CB> b, View<TC, 2> c,
                                             View<const Index, 1> offsets, Output output) {
  for (Index e = 0; e + 1 < offsets.extent(0); ++e) {
    const Index first = offsets(e), count = offsets(e + 1) - first;
    gemm(backend, tag, a.rows(first, count), b[e], c.rows(first, count), output);
  }
}

/// Primitive. The same for each expert: tn, over groups of rows as in Quantized::segment.
template <class CA, class CB, class TC>
void grouped_gemm(EigenCpu& backend, ProductTag<Product::tn> tag, Quantized<CA> a, Quantized<CB> b,
                  View<TC, 3> c, View<const Index, 1> offsets, Output output) {
  for (Index e = 0; e + 1 < offsets.extent(0); ++e) {
    const Index first = offsets(e), count = offsets(e + 1) - first;
    gemm(backend, tag, a.segment(e, first, count), b.segment(e, first, count), c[e], output);
  }
}

}  // namespace dsv3
