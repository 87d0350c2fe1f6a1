// The products of the tuned backend: plain, batched, grouped, and of codes.
#pragma once

#include <dsv3/backend/cpu/context.hpp>
#include <dsv3/backend/cpu/encode.hpp>
#include <dsv3/core/arranged.hpp>
#include <dsv3/core/product.hpp>

namespace dsv3 {
namespace detail {

// How the output of a product is cut into units of work. Bits do not depend on it.
struct Tiling {
  Index rows, columns;

  template <class Kernel>
  static Tiling choose(Index m, Index n, Index groups, int threads) {
    constexpr Index height = Kernel::S::rows, width = 2 * Kernel::S::lanes;
    auto split = [](Index size, Index most, Index unit) {
      const Index parts = std::max<Index>(1, (size + most - 1) / most);
      return std::min(most, ((size + parts - 1) / parts + unit - 1) / unit * unit);
    };
    constexpr Index most =
        TileLimits::columns * Index{sizeof(float)} / Index{sizeof(typename Kernel::Sum)};
    Tiling t{split(m, TileLimits::rows, height), split(n, most, width)};
    t.rows = std::max(t.rows, height);
    t.columns = std::max(t.columns, width);
    // A few rows read weights one after the other: long runs of them, and two for each thread.
    const Index wanted = threads > 1 ? Index{m <= few_rows ? 2 : 4} * threads : 1;
    while (t.tiles(m, n) * groups < wanted && t.columns > 2 * width)
      t.columns = split(t.columns, t.columns / 2 / width * width, width);
    return t;
  }

  Index across(Index n) const { return (n + columns - 1) / columns; }
  Index tiles(Index m, Index n) const { return (m + rows - 1) / rows * across(n); }
};

// Tile `tile` of a product.
template <class OneProduct>
void run_tile(const Tiling& tiling, const OneProduct& product, Index tile, bool add,
              std::byte* workspace) {
  const Index i = tile / tiling.across(product.columns) * tiling.rows;
  const Index j = tile % tiling.across(product.columns) * tiling.columns;
  product_tile(product, i, std::min(tiling.rows, product.rows - i), j,
               std::min(tiling.columns, product.columns - j), add, workspace);
}

template <Product p, class TA, class TB, class TC>
auto product_of(View<TA, 2> a, View<TB, 2> b, View<TC, 2> c) {
  using A = std::remove_const_t<TA>;
  using B = std::remove_const_t<TB>;
  constexpr bool left = p == Product::tn, right = p == Product::nt;
  return ProductOf<A, B, TC>{{a.data, a.strides[0], !left},
                             {b.data, b.strides[0], right},
                             c.data,
                             c.strides[0],
                             c.extent(0),
                             c.extent(1),
                             left ? a.extent(0) : a.extent(1)};
}

template <Product p, class TA, class TB, class TC>
auto product_of(const char*, View<TA, 2> a, View<TB, 2> b, View<TC, 2> c) {
  return product_of<p>(a, b, c);
}

// The matrix that an operand is, arranged or not.
template <class B>
const B& matrix_of_operand(const B& b) {
  return b;
}
template <class M>
const M& matrix_of_operand(const Arranged<M>& b) {
  return b.matrix;
}

// The longest run along K within which neither operand's scale changes, bounded by the interval at
// which sums of codes are promoted to float.
template <class S>
Index scale_segment(const char* caller, const OperandScales<S>& a, const OperandScales<S>& b) {
  Index segment = 128;
  for (const OperandScales<S>* scales : {&a, &b}) {
    if (scales->k_stride == 0 || scales->k_group >= segment) continue;
    segment = scales->k_group;
  }
  for (const OperandScales<S>* scales : {&a, &b})
    if (scales->k_stride != 0 && (scales->k_group % segment != 0 || 128 % segment != 0 ||
                                  segment < TileLimits::least_segment))
      throw std::invalid_argument(std::string(caller) + ": groups along the sum (" +
                                  std::to_string(scales->k_group) +
                                  ") must be a multiple of segments (" + std::to_string(segment) +
                                  "), of which 32, 64 and 128 are supported");
  return segment;
}

template <Product p, class CA, class CB, class TC>
auto product_of(const char* caller, const Quantized<CA>& a, const Quantized<CB>& b, View<TC, 2> c) {
  using A = std::remove_const_t<CA>;
  using B = std::remove_const_t<CB>;
  constexpr bool left = p == Product::tn, right = p == Product::nt;
  ScaledProductOf<A, B, TC> product;
  static_cast<ProductOf<A, B, TC>&>(product) = product_of<p>(a.codes, b.codes, c);
  product.a_scales = operand_scales(a, !left);
  product.b_scales = operand_scales(b, right);
  product.segment = scale_segment(caller, product.a_scales, product.b_scales);
  return product;
}

// Says of a product that its right operand is arranged.
template <class TA, class TB, class TC>
void set_arranged(const char* caller, ProductOf<TA, TB, TC>& product, int order) {
  static_assert(std::is_same_v<typename ProductOf<TA, TB, TC>::Kernel, ArrangedKernel<TB>>,
                "an arranged operand is multiplied by operands of its own type");
  if (order != order_of_panels)
    throw std::invalid_argument(std::string(caller) + ": order of the arranged operand (" +
                                std::to_string(order) + ") must be that of this code (" +
                                std::to_string(order_of_panels) +
                                "): both must be compiled for the same instructions");
  product.b.arranged = arranged_rows<TB>(product.columns, product.depth);
}
template <Product p, class A, class M, class TC>
requires(p == Product::nt) auto product_of(const char* caller, const A& a, const Arranged<M>& b,
                                           View<TC, 2> c) {
  auto product = product_of<p>(caller, a, b.matrix, c);
  set_arranged(caller, product, b.order);
  return product;
}

// Whether `groups` products are too small to wake another thread for. A few rows take as long as
// 16: reading the weights.
constexpr bool is_small(Index groups, Index m, Index n, Index depth) {
  return groups * std::max<Index>(m, 16) * n * std::max<Index>(1, depth) <= Index{1} << 19;
}

// `groups` products of which c has the same shape: product(g).
template <class Products>
void run_products(Cpu& cpu, Index groups, Index m, Index n, Index depth, bool add,
                  const Products& product) {
  if (groups == 0 || m == 0 || n == 0) return;
  using One = decltype(product(0));
  const int threads = is_small(groups, m, n, depth) ? 1 : cpu.threads();
  const auto tiling = Tiling::choose<typename One::Kernel>(m, n, groups, threads);
  const Index each = tiling.tiles(m, n), all = each * groups;
  cpu.parallel(all, threads == 1 ? all : 1, [&](Index first, Index last, int worker) {
    for (Index unit = first; unit < last; ++unit)
      run_tile(tiling, product(unit / each), unit % each, add, cpu.workspace(worker));
  });
}

// One product for each expert, of as many rows as it has: product(e, first row, rows).
template <class Products>
void run_ragged(Cpu& cpu, View<const Index, 1> offsets, Index n, Index depth, bool add,
                const Products& product) {
  if (n == 0) return;
  using One = decltype(product(0, 0, 0));
  const Index experts = offsets.extent(0) - 1, rows = offsets(experts) - offsets(0);
  const int threads = is_small(1, rows, n, depth) ? 1 : cpu.threads();
  const auto tiling =
      Tiling::choose<typename One::Kernel>((rows + experts - 1) / experts, n, experts, threads);
  Index all = 0;
  for (Index e = 0; e < experts; ++e) all += tiling.tiles(offsets(e + 1) - offsets(e), n);
  cpu.parallel(all, threads == 1 ? all : 1, [&](Index first, Index last, int worker) {
    Index before = 0;  // tiles of the experts before e
    for (Index e = 0; e < experts && before < last; ++e) {
      const Index count = offsets(e + 1) - offsets(e), tiles = tiling.tiles(count, n);
      for (Index unit = std::max(first, before); unit < std::min(last, before + tiles); ++unit)
        run_tile(tiling, product(e, offsets(e), count), unit - before, add, cpu.workspace(worker));
      before += tiles;
    }
  });
}

// grouped_gemm nt and nn: a and b plain or of codes, b perhaps arranged.
template <Product p, class A, class B, class TC>
void run_experts(Cpu& cpu, ProductTag<p>, const A& a, const B& b, View<TC, 2> c,
                 View<const Index, 1> offsets, Output output) {
  const Index experts = offsets.extent(0) - 1;
  check_equal("grouped_gemm", "matrices of b", b.extent(0), "experts", experts);
  check_product<p>("grouped_gemm", a.extent(0), a.extent(1), b.extent(1), b.extent(2), c.extent(0),
                   c.extent(1));
  if (experts <= 0) return;
  const auto run = [&](const auto& product) {
    run_ragged(cpu, offsets, c.extent(1), a.extent(1), output == Output::add, product);
  };
  if constexpr (requires { a.codes; }) {
    const auto whole = product_of<p>("grouped_gemm", a, b[0], c);  // checks groups and order
    run([&](Index e, Index first, Index count) {
      const auto matrix = b[e];
      const auto& codes = matrix_of_operand(matrix);
      auto product = whole;
      product.a.data = a.codes.rows(first, count).data;
      product.b.data = codes.codes.data;
      product.c = c.rows(first, count).data;
      product.rows = count;
      product.a_scales.data += first / a.group_rows * product.a_scales.i_stride;
      product.b_scales = operand_scales(codes, p == Product::nt);
      return product;
    });
  } else {
    run([&](Index e, Index first, Index count) {
      return product_of<p>("grouped_gemm", a.rows(first, count), b[e], c.rows(first, count));
    });
  }
}

}  // namespace detail

/// Primitive. The matrix product that the tag names; operands may have rows apart.
///
/// Types    double; float and bf16 in any mixture, also of the output. bf16 products are exact and
///          summed in float; each element of c is rounded once. Output::add adds the
///          finished sum.
/// Errors   std::invalid_argument when extents disagree, before anything is written.
template <Product p, class TA, class TB, class TC>
void gemm(Cpu& cpu, ProductTag<p>, View<TA, 2> a, View<TB, 2> b, View<TC, 2> c, Output output) {
  detail::check_product<p>("gemm", a.extent(0), a.extent(1), b.extent(0), b.extent(1), c.extent(0),
                           c.extent(1));
  detail::run_products(cpu, 1, c.extent(0), c.extent(1), a.extent(p == Product::tn ? 0 : 1),
                       output == Output::add,
                       [&](Index) { return detail::product_of<p>(a, b, c); });
}

/// Primitive. The same by an arranged operand, plain or of codes.
template <Product p, class A, class M, class TC>
requires(p == Product::nt) void gemm(Cpu& cpu, ProductTag<p>, const A& a, const Arranged<M>& b,
                                     View<TC, 2> c, Output output) {
  detail::check_product<p>("gemm", a.extent(0), a.extent(1), b.extent(0), b.extent(1), c.extent(0),
                           c.extent(1));
  const auto product = detail::product_of<p>("gemm", a, b, c);
  detail::run_products(cpu, 1, c.extent(0), c.extent(1), product.depth, output == Output::add,
                       [&](Index) { return product; });
}

/// Primitive. gemm for each entry of the first dimension.
template <Product p, class TA, class TB, class TC>
void batched_gemm(Cpu& cpu, ProductTag<p>, View<TA, 3> a, View<TB, 3> b, View<TC, 3> c,
                  Output output) {
  check_equal("batched_gemm", "batch of a", a.extent(0), "batch of c", c.extent(0));
  check_equal("batched_gemm", "batch of b", b.extent(0), "batch of c", c.extent(0));
  detail::check_product<p>("batched_gemm", a.extent(1), a.extent(2), b.extent(1), b.extent(2),
                           c.extent(1), c.extent(2));
  detail::run_products(cpu, c.extent(0), c.extent(1), c.extent(2),
                       a.extent(p == Product::tn ? 1 : 2), output == Output::add,
                       [&](Index i) { return detail::product_of<p>(a[i], b[i], c[i]); });
}

/// Primitive. One product for each expert, over its rows offsets[e] ... offsets[e + 1] - 1.
///
///     nt   c[s, n] = sum_k a[s, k] b[e, n, k]        for rows s of expert e
///     nn   c[s, n] = sum_k a[s, k] b[e, k, n]
///     tn   c[e, m, n] = sum_s a[s, m] b[s, n]        over the rows s of expert e
///
/// Shapes   offsets [E + 1], in the backend's memory, ascending from 0. An expert without rows has
///          a zero sum in `tn`.
/// Types    as gemm.
/// Errors   std::invalid_argument when extents disagree, before anything is written.
template <Product p, class TA, class TB, class TC, int RankB, int RankC>
void grouped_gemm(Cpu& cpu, ProductTag<p>, View<TA, 2> a, View<TB, RankB> b, View<TC, RankC> c,
                  View<const Index, 1> offsets, Output output) {
  static_assert(p == Product::tn ? (RankB == 2 && RankC == 3) : (RankB == 3 && RankC == 2),
                "grouped_gemm: the tensor with one matrix for each expert has rank 3");
  const Index experts = offsets.extent(0) - 1;
  if (experts <= 0) return;
  const bool add = output == Output::add;
  if constexpr (p == Product::tn) {
    check_equal("grouped_gemm", "matrices of c", c.extent(0), "experts", experts);
    check_equal("grouped_gemm", "rows of a", a.extent(0), "rows of b", b.extent(0));
    check_equal("grouped_gemm", "columns of a", a.extent(1), "rows of each c", c.extent(1));
    check_equal("grouped_gemm", "columns of b", b.extent(1), "columns of each c", c.extent(2));
    detail::run_products(
        cpu, experts, c.extent(1), c.extent(2), a.extent(0) / experts, add, [&](Index e) {
          const Index first = offsets(e), count = offsets(e + 1) - first;
          return detail::product_of<p>(a.rows(first, count), b.rows(first, count), c[e]);
        });
  } else {
    detail::run_experts(cpu, ProductTag<p>{}, a, b, c, offsets, output);
  }
}

/// Primitive. The product of two matrices of codes:
///
///     sum over segments of K  scale_a scale_b (sum in the segment of code_a code_b)
///
/// Segments are the groups of the scales along K, at most 128 long; their sums are added in
/// ascending order, in float.
///
/// Types    codes of e4m3 and e5m2, whose products are exact; or double, with scales of 1.
/// Errors   std::invalid_argument when extents disagree, or where groups along K are neither 32, 64
///          nor a multiple of 128, before anything is written.
/// Source   spec 7.4.
template <Product p, class CA, class CB, class TC>
void gemm(Cpu& cpu, ProductTag<p>, Quantized<CA> a, Quantized<CB> b, View<TC, 2> c, Output output) {
  detail::check_product<p>("gemm", a.extent(0), a.extent(1), b.extent(0), b.extent(1), c.extent(0),
                           c.extent(1));
  const auto product = detail::product_of<p>("gemm", a, b, c);
  detail::run_products(cpu, 1, c.extent(0), c.extent(1), product.depth, output == Output::add,
                       [&](Index) { return product; });
}

/// Primitive. grouped_gemm on codes, nt and nn: one matrix of b for each expert.
template <Product p, class CA, class CB, class TC>
requires(p != Product::tn) void grouped_gemm(Cpu& cpu, ProductTag<p> tag, Quantized<CA> a,
                                             QuantizedStack<CB> b, View<TC, 2> c,
                                             View<const Index, 1> offsets, Output output) {
  detail::run_experts(cpu, tag, a, b, c, offsets, output);
}

/// Primitive. grouped_gemm by an arranged stack, plain or of codes.
template <Product p, class A, class M, class TC>
requires(p == Product::nt) void grouped_gemm(Cpu& cpu, ProductTag<p> tag, const A& a,
                                             const Arranged<M>& b, View<TC, 2> c,
                                             View<const Index, 1> offsets, Output output) {
  detail::run_experts(cpu, tag, a, b, c, offsets, output);
}

/// Primitive. grouped_gemm on codes, tn: c[e] sums over the rows of expert e, whose groups of rows
/// are those of Quantized::segment.
template <class CA, class CB, class TC>
void grouped_gemm(Cpu& cpu, ProductTag<Product::tn>, Quantized<CA> a, Quantized<CB> b,
                  View<TC, 3> c, View<const Index, 1> offsets, Output output) {
  const Index experts = offsets.extent(0) - 1;
  check_equal("grouped_gemm", "matrices of c", c.extent(0), "experts", experts);
  check_equal("grouped_gemm", "rows of a", a.extent(0), "rows of b", b.extent(0));
  check_equal("grouped_gemm", "columns of a", a.extent(1), "rows of each c", c.extent(1));
  check_equal("grouped_gemm", "columns of b", b.extent(1), "columns of each c", c.extent(2));
  if (experts <= 0) return;
  detail::product_of<Product::tn>("grouped_gemm", a, b, c[0]);  // checks the groups
  detail::run_products(cpu, experts, c.extent(1), c.extent(2), a.extent(0) / experts,
                       output == Output::add, [&](Index e) {
                         const Index first = offsets(e), count = offsets(e + 1) - first;
                         return detail::product_of<Product::tn>("grouped_gemm",
                                                                a.segment(e, first, count),
                                                                b.segment(e, first, count), c[e]);
                       });
}

/// Fused form of quantising each row in groups of 1 x q.group_columns, to the nearest code: the
/// same codes and scales as the row kernel.
///
/// Types    x in bf16 or float; e4m3 or e5m2.
template <class T, class C>
requires((std::is_same_v<T, bf16> ||
          std::is_same_v<T, float>)&&is_fp8<C>) void quantize_rows(Cpu& cpu, View<const T, 2> x,
                                                                   Quantized<C> q, ScaleRule rule) {
  const Index rows = x.extent(0);
  cpu.parallel(rows, std::max<Index>(1, rows / (Index{8} * cpu.threads())),
               [&](Index first, Index last, int) {
                 for (Index t = first; t < last; ++t)
                   detail::quantize_groups(&x(t, 0), x.extent(1), q.group_columns, rule,
                                           &q.scales(t, 0), q.scales.strides[1], &q.codes(t, 0),
                                           t + 1 < last ? x.strides[0] : 0);
               });
}

}  // namespace dsv3
