// The primitive that arranges weights, for the products of this backend.
#pragma once

#include <dsv3/backend/cpu/context.hpp>
#include <dsv3/core/arranged.hpp>

namespace dsv3 {

/// Primitive. Names the order into which arrange() puts weights: the `order` of Arranged.
constexpr int arranged_order(const Cpu*) { return detail::arranged_order; }

/// Primitive. Puts rows of a weight into the order of its products, in place: all rows of the
/// matrix, or a band of them that begins at a multiple of 32 and, unless it is the last, ends at
/// one.
///
/// Shapes   rows [n, columns], without gaps between rows.
/// Types    float, bf16, e4m3, e5m2.
/// Errors   std::invalid_argument where there are gaps; std::bad_alloc.
template <class T>
requires(std::is_same_v<T, float> || std::is_same_v<T, bf16> ||
         is_fp8<T>) void arrange(Cpu& cpu, View<T, 2> rows) {
  constexpr Index width = 2 * detail::Simd<float>::lanes;
  const Index columns = rows.extent(1);
  check_equal("arrange", "stride of rows", rows.strides[0], "columns", columns);
  const Index panels = detail::arranged_rows<T>(rows.extent(0), columns) / width;
  cpu.parallel(panels, 1, [&](Index first, Index last, int) {
    std::vector<std::byte> copy;
    for (Index p = first; p < last; ++p)
      detail::arrange_panel(rows.data + p * width * columns, columns, copy);
  });
}

}  // namespace dsv3
