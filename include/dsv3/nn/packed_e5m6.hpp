// Matrices of e5m6: two values in 3 bytes, a power-of-two scale for each 1 x tile.
#pragma once

#include <dsv3/nn/quantize.hpp>

namespace dsv3 {

/// A matrix of 12-bit values. Values 2p and 2p + 1 of a row share bytes 3p ... 3p + 2, the first in
/// the lower 12 bits, little end first. Element (i, j) is its value times the scale of its group.
///
/// Source   DeepSeek-V3 section 3.3.3 names the format for cached attention outputs; the layout is
///          ours (spec 7.1, 7.6).
struct PackedE5m6 {
  View<std::uint8_t, 2> bytes;  // [rows, 3 ceil(columns / 2)]
  Scales<float> scales;         // [rows, ceil(columns / group_columns)]
  Index columns = 0, group_columns = 1;

  static constexpr PackedE5m6 take(Arena& arena, Index rows, Index columns, Index group) {
    PackedE5m6 m;
    m.columns = columns;
    m.group_columns = group_size(group, columns);
    m.bytes = arena.take<std::uint8_t>({rows, 3 * ((columns + 1) / 2)});
    const auto scales = arena.take<float>({rows, groups_of(columns, m.group_columns)});
    m.scales = {scales.data, scales.extent(0), scales.extent(1)};
    return m;
  }

  DSV3_HD constexpr Index extent(int d) const { return d == 0 ? bytes.extent(0) : columns; }

  /// The value at (i, j) without its scale.
  DSV3_HD float unscaled(Index i, Index j) const {
    const std::uint8_t* at = &bytes(i, j / 2 * 3);
    const unsigned code =
        j % 2 == 0 ? at[0] | (at[1] & 15u) << 8 : at[1] >> 4 | unsigned{at[2]} << 4;
    return e5m6::format::decode(code);
  }
};

namespace detail {

inline DSV3_HD void for_each_piece_of_row(const PackedE5m6& m, Index i, Index from, Index to,
                                          auto&& f) {
  for (Index first = from; first < to;) {
    const Index group = first / m.group_columns, end = (group + 1) * m.group_columns;
    const Index next = end < to ? end : to;
    const float scale = m.scales(i, group);
    f(first, next - first, [&m, i, scale](Index j) { return m.unscaled(i, j) * scale; });
    first = next;
  }
}

// One row of x, packed.
template <class T>
struct PackE5m6Row {
  View<const T, 2> x;
  PackedE5m6 m;

  DSV3_HD void operator()(auto team, Index t) const {
    const ScaleRule rule{.amax_min = 0, .power_of_two = true};
    const Index n = m.columns, width = m.group_columns;
    const auto value = [&](Index j) { return static_cast<float>(accum_t<T>(x(t, j))); };
    for (Index group = 0; group * width < n; ++group) {
      const Index first = group * width, left = n - first, count = left < width ? left : width;
      const float scale = rule.scale<e5m6>(from_magnitude(
          team.max(count, [&](Index j) { return magnitude_bits(value(first + j)); })));
      team.once([&] { m.scales(t, group) = scale; });
    }
    team.sync();
    team.each((n + 1) / 2, [&](Index p) {
      const Index j = 2 * p;
      const std::uint32_t low = e5m6(value(j) / m.scales(t, j / width)).code;
      const std::uint32_t high =
          j + 1 < n ? e5m6(value(j + 1) / m.scales(t, (j + 1) / width)).code : 0u;
      const std::uint32_t both = low | high << 12;
      for (Index k = 0; k < 3; ++k)
        m.bytes(t, 3 * p + k) = static_cast<std::uint8_t>(both >> 8 * k);
    });
  }
};

}  // namespace detail
}  // namespace dsv3
