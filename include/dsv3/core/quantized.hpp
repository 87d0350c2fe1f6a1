// Quantized: a matrix as narrow codes and the scales of their groups.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/core/scalar.hpp>

namespace dsv3 {

/// Scales of the groups of a matrix: [groups down, groups across], with both strides free, so that
/// a backend may keep them in the order that its products want. S is float or const float (double
/// beside codes of double).
template <class S>
struct Scales {
  S* data = nullptr;
  Index extents[2] = {}, strides[2] = {};

  DSV3_HD constexpr Scales() {}
  /// Dense memory of the given shape.
  DSV3_HD constexpr Scales(S* pointer, Index down, Index across)
      : data(pointer), extents{down, across}, strides{across, 1} {}
  /// Scales may be read as scales of const S.
  template <class U>
  requires(std::is_same_v<const U, S> && !std::is_same_v<U, S>) DSV3_HD
      constexpr Scales(const Scales<U>& o)
      : data(o.data), extents{o.extents[0], o.extents[1]}, strides{o.strides[0], o.strides[1]} {}

  DSV3_HD constexpr S& operator()(Index i, Index j) const {
    return data[i * strides[0] + j * strides[1]];
  }
  DSV3_HD constexpr Scales rows(Index first, Index count) const {
    Scales part = *this;
    if (data) part.data = data + first * strides[0];
    part.extents[0] = count;
    return part;
  }
};

/// The type of the scales beside codes of C, constant where C is.
template <class C>
using scale_t = std::conditional_t<std::is_const_v<C>, const accum_t<C>, accum_t<C>>;

/// How many groups cover n elements.
DSV3_HD constexpr Index groups_of(Index n, Index group) { return (n + group - 1) / group; }

/// A matrix as narrow codes: element (i, j) is codes(i, j) times the scale of its group of
/// group_rows x group_columns elements; groups at the edges are smaller. Like View it owns nothing.
///
/// Types    C is e4m3 or e5m2; or double with scales of 1, through which the same code computes
///          without quantising.
/// Source   DeepSeek-V3 section 3.3.2; spec 7.2.
template <class C>
struct Quantized {
  View<C, 2> codes;  // [rows, columns]
  Scales<scale_t<C>> scales;
  Index group_rows = 1, group_columns = 1;

  DSV3_HD constexpr Quantized() {}
  DSV3_HD constexpr Quantized(View<C, 2> c, Scales<scale_t<C>> s, Index down, Index across)
      : codes(c), scales(s), group_rows(down), group_columns(across) {}
  template <class U>
  requires(std::is_same_v<const U, C> && !std::is_same_v<U, C>) DSV3_HD
      constexpr Quantized(const Quantized<U>& o)
      : codes(o.codes),
        scales(o.scales),
        group_rows(o.group_rows),
        group_columns(o.group_columns) {}

  DSV3_HD constexpr Index extent(int d) const { return codes.extent(d); }
  DSV3_HD constexpr Index size() const { return codes.size(); }

  /// Value of one element: code times scale, rounded to the type of the scale.
  DSV3_HD constexpr auto operator()(Index i, Index j) const {
    return accum_t<C>(codes(i, j)) * scales(i / group_rows, j / group_columns);
  }

  /// Rows [first, first + count). first is the first row of a group.
  DSV3_HD constexpr Quantized rows(Index first, Index count) const {
    return {codes.rows(first, count), scales.rows(first / group_rows, groups_of(count, group_rows)),
            group_rows, group_columns};
  }

  /// Rows [first, first + count) of segment `index`, where the groups of rows begin anew at each of
  /// the ragged segments: the scales of a segment start at row first / group_rows + index, so that
  /// segments share none. A single scale serves all.
  DSV3_HD constexpr Quantized segment(Index index, Index first, Index count) const {
    const Index row = scales.extents[0] == 1 ? 0 : first / group_rows + index;
    return {codes.rows(first, count), scales.rows(row, groups_of(count, group_rows)), group_rows,
            group_columns};
  }
};

/// One quantised matrix for each expert.
template <class C>
struct QuantizedStack {
  View<C, 3> codes;           // [experts, rows, columns]
  Scales<scale_t<C>> scales;  // of all experts' groups, one expert below the other
  Index group_rows = 1, group_columns = 1;

  DSV3_HD constexpr QuantizedStack() {}
  DSV3_HD constexpr QuantizedStack(View<C, 3> c, Scales<scale_t<C>> s, Index down, Index across)
      : codes(c), scales(s), group_rows(down), group_columns(across) {}
  template <class U>
  requires(std::is_same_v<const U, C> && !std::is_same_v<U, C>) DSV3_HD
      constexpr QuantizedStack(const QuantizedStack<U>& o)
      : codes(o.codes),
        scales(o.scales),
        group_rows(o.group_rows),
        group_columns(o.group_columns) {}

  DSV3_HD constexpr Index extent(int d) const { return codes.extent(d); }

  DSV3_HD constexpr Quantized<C> operator[](Index expert) const {
    const Index each = groups_of(codes.extent(1), group_rows);
    return {codes[expert], scales.rows(expert * each, each), group_rows, group_columns};
  }
};

template <class C>
DSV3_HD constexpr Quantized<const std::remove_const_t<C>> as_const(const Quantized<C>& q) {
  return q;
}
template <class C>
DSV3_HD constexpr QuantizedStack<const std::remove_const_t<C>> as_const(
    const QuantizedStack<C>& q) {
  return q;
}

/// The size of a group along a dimension of n elements; 0 stands for all of them.
DSV3_HD constexpr Index group_size(Index group, Index n) {
  return group > 0 ? group : (n > 0 ? n : 1);
}

/// A quantised matrix from an arena. A group of 0 rows or columns spans the whole dimension.
template <class C>
constexpr Quantized<C> take_quantized(Arena& arena, Index rows, Index columns, Index group_rows,
                                      Index group_columns) {
  const Index down = group_size(group_rows, rows), across = group_size(group_columns, columns);
  const auto codes = arena.take<C>({rows, columns});
  const auto scales = arena.take<scale_t<C>>({groups_of(rows, down), groups_of(columns, across)});
  return {codes, {scales.data, scales.extent(0), scales.extent(1)}, down, across};
}

/// A matrix of ragged segments whose groups of `tile` rows begin anew at each segment, from an
/// arena; 0: one scale for all.
template <class C>
constexpr Quantized<C> take_segments(Arena& arena, Index rows, Index columns, Index segments,
                                     Index tile) {
  if (tile == 0) return take_quantized<C>(arena, rows, columns, 0, 0);
  const auto codes = arena.take<C>({rows, columns});
  const auto scales = arena.take<scale_t<C>>({rows / tile + segments, columns});
  return {codes, {scales.data, scales.extent(0), scales.extent(1)}, tile, 1};
}

/// One quantised matrix for each expert, from an arena.
template <class C>
constexpr QuantizedStack<C> take_quantized_stack(Arena& arena, Index experts, Index rows,
                                                 Index columns, Index group_rows,
                                                 Index group_columns) {
  const Index down = group_size(group_rows, rows), across = group_size(group_columns, columns);
  const auto codes = arena.take<C>({experts, rows, columns});
  const auto scales =
      arena.take<scale_t<C>>({experts * groups_of(rows, down), groups_of(columns, across)});
  return {codes, {scales.data, scales.extent(0), scales.extent(1)}, down, across};
}

/// How the scale of a group follows from its largest absolute value.
///
/// Source   spec 7.2.
struct ScaleRule {
  double amax_min = 0;  ///< below it counts as it; 1e-4 in DeepSeek's inference code, 0: train
  bool power_of_two = false;  ///< rounds the scale up to a power of two

  /// The scale with which `amax` becomes the format's largest value. Where that would be zero or
  /// subnormal it is 1, and all codes of the group are 0. NaN and infinity go through.
  template <class C>
  DSV3_HD constexpr accum_t<C> scale(accum_t<C> amax) const {
    if constexpr (!is_fp8<C> && !std::is_same_v<std::remove_const_t<C>, e5m6>) {
      return 1;  // codes that need no scale
    } else {
      const float least = static_cast<float>(amax_min);
      const float bounded = amax < least ? least : amax;
      const float exact = bounded / C::max;
      const float normal = exact < 1.17549435e-38f ? 1.0f : exact;
      return power_of_two && normal - normal == 0 ? float(ue8m0(normal)) : normal;
    }
  }
};

namespace detail {

// The scales of an operand of a product: of element (i, k), i along the rows or columns of the
// output, k along the sum.
template <class S>
struct OperandScales {
  const S* data;
  Index i_group, i_stride, k_group, k_stride;

  DSV3_HD S at(Index i, Index k) const {
    return data[i / i_group * i_stride + k / k_group * k_stride];
  }
};

// columns_are_k: the operand's columns run along the sum.
template <class C>
DSV3_HD constexpr OperandScales<accum_t<C>> operand_scales(const Quantized<C>& q,
                                                           bool columns_are_k) {
  // Where there is one group (or none), the scale does not move, whatever the index.
  const Index down = q.scales.extents[0] <= 1 ? 0 : q.scales.strides[0];
  const Index across = q.scales.extents[1] <= 1 ? 0 : q.scales.strides[1];
  if (columns_are_k) return {q.scales.data, q.group_rows, down, q.group_columns, across};
  return {q.scales.data, q.group_columns, across, q.group_rows, down};
}

// |x| as an integer that orders like |x|: float's own bits, NaN above infinity. Largest values are
// found in integers, because loops over them vectorise.
DSV3_HD constexpr std::uint32_t magnitude_bits(float x) {
  return __builtin_bit_cast(std::uint32_t, x) & 0x7FFFFFFFu;
}
DSV3_HD constexpr std::uint64_t magnitude_bits(double x) {
  return __builtin_bit_cast(std::uint64_t, x) & 0x7FFFFFFFFFFFFFFFu;
}
DSV3_HD constexpr float from_magnitude(std::uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}
DSV3_HD constexpr double from_magnitude(std::uint64_t bits) {
  return __builtin_bit_cast(double, bits);
}

// The code of value / scale; double needs neither.
template <class C>
DSV3_HD constexpr C encode_scaled(accum_t<C> value, accum_t<C> scale) {
  if constexpr (std::is_same_v<C, double>)
    return value;
  else
    return C(value / scale);
}

}  // namespace detail

}  // namespace dsv3
