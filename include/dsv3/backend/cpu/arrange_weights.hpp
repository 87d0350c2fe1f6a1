// The primitive that arranges weights, for the products of this backend.
#pragma once

#include <dsv3/backend/cpu/context.hpp>
#include <dsv3/core/arranged.hpp>

namespace dsv3 {

/// Primitive. Names the order into which arrange() puts weights: the `order` of Arranged.
constexpr int arranged_order(const Cpu*) { return detail::order_of_panels; }

/// Primitive. Writes the rows of a weight in the order of its products. source(first row, rows,
/// buffer) says where such rows lie without gaps, as bytes: somewhere else, or in the buffer, where
/// it has put them.
///
/// Shapes   to [n, columns], without gaps between rows; buffer holds that many rows.
/// Types    float, bf16, e4m3, e5m2.
/// Errors   std::invalid_argument where `to` has gaps; std::bad_alloc.
template <detail::Arrangeable T, class Source>
void arrange(Cpu& cpu, View<T, 2> to, Source source) {
  constexpr Index width = 2 * detail::Simd<float>::lanes;
  const Index rows = to.extent(0), columns = to.extent(1);
  check_equal("arrange", "stride of rows", to.strides[0], "columns", columns);
  const Index arranged = detail::arranged_rows<T>(rows, columns);
  const Index panels = groups_of(rows, width);
  cpu.parallel(
      panels, std::max<Index>(1, panels / (Index{8} * cpu.threads())),
      [&](Index first, Index last, int) {
        const Buffer<HostMemory> buffer(cpu, width * columns * static_cast<Index>(sizeof(T)));
        for (Index row = first * width; row < std::min(rows, last * width); row += width) {
          const Index count = std::min(width, rows - row);
          const std::byte* from = source(row, count, static_cast<T*>(buffer.data()));
          T* panel = to.data + row * columns;
          if (row < arranged)
            detail::arrange_panel(from, panel, columns);
          else
            std::memcpy(panel, from, static_cast<std::size_t>(count * columns) * sizeof(T));
        }
      });
}

/// Primitive. The same in place.
template <detail::Arrangeable T>
void arrange(Cpu& cpu, View<T, 2> rows) {
  arrange(cpu, rows, [&](Index first, Index count, T* buffer) {
    std::copy_n(rows.data + first * rows.extent(1), count * rows.extent(1), buffer);
    return reinterpret_cast<const std::byte*>(buffer);
  });
}

}  // namespace dsv3
