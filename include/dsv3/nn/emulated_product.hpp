// Products of codes as a tensor core with a short accumulator adds them up: for studies, not fast.
#pragma once

#include <dsv3/core/math.hpp>
#include <dsv3/core/precision.hpp>
#include <dsv3/core/product.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3 {
namespace detail {

// y[j, i] = x[i, j].
template <class C>
struct TransposeRow {
  View<const C, 2> x;
  View<C, 2> y;

  DSV3_HD void operator()(auto team, Index j) const {
    team.each(y.extent(1), [&](Index i) { y(j, i) = x(i, j); });
  }
};

// x, cut off after `bits` significant bits, of at most 24.
DSV3_HD inline float truncate_significand(double x, int bits) {
  const std::uint64_t mask = ~((std::uint64_t{1} << (53 - bits)) - 1);
  return static_cast<float>(
      __builtin_bit_cast(double, __builtin_bit_cast(std::uint64_t, x) & mask));
}

// accumulator + sum of 32 products: all of them aligned to the largest exponent among them, each
// cut off below `bits` bits of it, added exactly, and the sum cut to `bits` significant bits.
template <class CA, class CB>
DSV3_HD float add_products(float accumulator, const CA* a, const CB* b, Index count, int bits) {
  constexpr Index most = 32;
  float product[most];
  std::uint32_t largest = magnitude_bits(accumulator);
  for (Index i = 0; i < most; ++i) product[i] = i < count ? float(a[i]) * float(b[i]) : 0.0f;
  for (Index i = 0; i < most; ++i) {
    const std::uint32_t size = magnitude_bits(product[i]);
    largest = size > largest ? size : largest;
  }
  const std::uint32_t exponent = largest >> 23;  // biased
  if (exponent < 32 || exponent == 255) {        // zero, far below any product of codes, or NaN
    float sum = accumulator;
    for (Index i = 0; i < most; ++i) sum += product[i];
    return sum;
  }
  const float unit = from_magnitude((exponent - static_cast<std::uint32_t>(bits - 1)) << 23);
  const float per_unit = 1.0f / unit;  // powers of two: exact
  auto sum = static_cast<std::int32_t>(accumulator * per_unit);
  for (Index i = 0; i < most; ++i) sum += static_cast<std::int32_t>(product[i] * per_unit);
  return truncate_significand(static_cast<double>(sum) * static_cast<double>(unit), bits);
}

// One row of a product whose operands both lie along K. Row r of c, of which there may be several
// matrices one below the other, multiplies segment matrices as `nt` or, by_segment, sums over the
// tokens of one segment as `tn`.
template <class CA, class CB, class TC>
struct EmulatedRow {
  View<const CA, 2> a;  // [rows, K]; by_segment: [rows of one c, all K]
  View<const CB, 2> b;  // [matrices * columns, K]; by_segment: [columns, all K]
  OperandScales<float> a_scale, b_scale;
  Index b_scale_matrix;          // between the scales of two matrices of b
  View<const Index, 1> offsets;  // [segments + 1]; or empty: one segment
  bool by_segment;
  View<TC, 2> c;  // [rows, columns]; by_segment: [segments * rows of one c, columns]
  bool add;
  Accumulation rule;

  DSV3_HD void operator()(auto team, Index row) const {
    const Index columns = c.extent(1), segments = offsets.extent(0) ? offsets.extent(0) - 1 : 1;
    Index segment = 0, i = row, k0 = 0, k1 = a.extent(1);
    if (by_segment) {
      segment = row / a.extent(0);
      i = row % a.extent(0);
      if (offsets.extent(0)) {
        k0 = offsets(segment);
        k1 = offsets(segment + 1);
      }
    } else {
      while (segment + 1 < segments && offsets(segment + 1) <= row) ++segment;
    }
    // Groups of tokens begin anew at each segment: group k0 / group + segment is its first.
    const Index group_a = by_segment ? k0 / a_scale.k_group + segment : 0;
    const Index group_b = by_segment ? k0 / b_scale.k_group + segment : 0;
    team.each(columns, [&](Index n) {
      const Index at = by_segment ? n : segment * columns + n;
      const auto scale = [&](Index k) {
        const float sa = a_scale.data[i / a_scale.i_group * a_scale.i_stride +
                                      (group_a + k / a_scale.k_group) * a_scale.k_stride];
        const float sb = b_scale.data[(by_segment ? 0 : segment * b_scale_matrix) +
                                      n / b_scale.i_group * b_scale.i_stride +
                                      (group_b + k / b_scale.k_group) * b_scale.k_stride];
        return sa * sb;
      };
      float total = 0, accumulator = 0, unit = 1;
      for (Index k = 0; k < k1 - k0; k += 32) {
        const float next = scale(k);
        if (k == 0) unit = next;
        if (next != unit) {  // the accumulator goes on in units of the new scale
          accumulator = truncate_significand(
              static_cast<double>(accumulator) * static_cast<double>(unit / next), rule.bits);
          unit = next;
        }
        const Index left = k1 - k0 - k;
        accumulator = add_products(accumulator, &a(i, k0 + k), &b(at, k0 + k),
                                   left < 32 ? left : Index{32}, rule.bits);
        if (rule.interval > 0 && (k + 32) % rule.interval == 0) {
          total = fma(accumulator, unit, total);
          accumulator = 0;
        }
      }
      total = fma(accumulator, unit, total);
      c(row, n) = TC(add ? accum_t<TC>(c(row, n)) + total : total);
    });
  }
};

// The codes with K along the columns; transposed into scratch where they lie otherwise.
template <class Backend, class C>
View<const C, 2> along_k(Backend& backend, const View<const C, 2>& x, bool columns_are_k,
                         Arena& scratch) {
  if (columns_are_k) return x;
  const auto y = scratch.take<C>({x.extent(1), x.extent(0)});
  for_each_row(backend, y.extent(0), TransposeRow<C>{x, y});
  return y;
}

}  // namespace detail

/// gemm on codes, every sum as a tensor core of so many bits makes it. Serves every backend.
///
///     per 32 products: all, and the accumulator, are aligned to the largest exponent among them,
///     cut off below rule.bits bits, added, and cut to rule.bits significant bits again; after
///     rule.interval products the accumulator times the scales is added to a float sum
///
/// Where a scale changes within an interval the accumulator is multiplied by their ratio.
/// Source   spec 7.4; the exact rule of Hopper is not public.
template <class Backend, Product p, class CA, class CB, class TC>
void emulated_gemm(Backend& backend, ProductTag<p>, Quantized<const CA> a, Quantized<const CB> b,
                   View<TC, 2> c, Output output, const Accumulation& rule, Arena& scratch) {
  detail::check_product<p>("emulated_gemm", a.extent(0), a.extent(1), b.extent(0), b.extent(1),
                           c.extent(0), c.extent(1));
  constexpr bool left = p != Product::tn, right = p == Product::nt;
  const ArenaScope scope(scratch);
  const auto ak = detail::along_k(backend, a.codes, left, scratch);
  const auto bk = detail::along_k(backend, b.codes, right, scratch);
  for_each_row(backend, c.extent(0),
               detail::EmulatedRow<CA, CB, TC>{ak,
                                               bk,
                                               detail::operand_scales(a, left),
                                               detail::operand_scales(b, right),
                                               0,
                                               {},
                                               false,
                                               c,
                                               output == Output::add,
                                               rule});
}

/// grouped_gemm on codes in the same way: products nt and nn.
template <class Backend, Product p, class CA, class CB, class TC>
requires(p != Product::tn) void emulated_grouped_gemm(Backend& backend, ProductTag<p>,
                                                      Quantized<const CA> a,
                                                      QuantizedStack<const CB> b, View<TC, 2> c,
                                                      View<const Index, 1> offsets, Output output,
                                                      const Accumulation& rule, Arena& scratch) {
  constexpr bool right = p == Product::nt;
  const Index experts = b.extent(0), n = c.extent(1), depth = a.extent(1);
  check_equal("emulated_grouped_gemm", "matrices of b", experts, "experts", offsets.extent(0) - 1);
  const ArenaScope scope(scratch);
  View<const CB, 2> bk(b.codes.data, {experts * n, depth});
  if (!right) {
    const auto all = scratch.take<CB>({experts * n, depth});
    for (Index e = 0; e < experts; ++e)
      for_each_row(backend, n, detail::TransposeRow<CB>{b.codes[e], all.rows(e * n, n)});
    bk = all;
  }
  const Index each = groups_of(b.extent(1), b.group_rows) * b.scales.strides[0];
  for_each_row(backend, c.extent(0),
               detail::EmulatedRow<CA, CB, TC>{a.codes, bk, detail::operand_scales(a, true),
                                               detail::operand_scales(b[0], right), each, offsets,
                                               false, c, output == Output::add, rule});
}

/// The same for tn: one sum over the tokens of each expert.
template <class Backend, class CA, class CB, class TC>
void emulated_grouped_gemm(Backend& backend, ProductTag<Product::tn>, Quantized<const CA> a,
                           Quantized<const CB> b, View<TC, 3> c, View<const Index, 1> offsets,
                           Output output, const Accumulation& rule, Arena& scratch) {
  check_equal("emulated_grouped_gemm", "matrices of c", c.extent(0), "experts",
              offsets.extent(0) - 1);
  const ArenaScope scope(scratch);
  const auto ak = detail::along_k(backend, a.codes, false, scratch);
  const auto bk = detail::along_k(backend, b.codes, false, scratch);
  for_each_row(backend, c.extent(0) * c.extent(1),
               detail::EmulatedRow<CA, CB, TC>{
                   ak, bk, detail::operand_scales(a, false), detail::operand_scales(b, false), 0,
                   offsets, true, View<TC, 2>(c.data, {c.extent(0) * c.extent(1), c.extent(2)}),
                   output == Output::add, rule});
}

}  // namespace dsv3
