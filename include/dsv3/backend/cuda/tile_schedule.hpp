// Which tiles the output of a product has, in which order, whose rows they are and where sums of
// codes are promoted. Plain index arithmetic, for the host's tests too.
#pragma once

#include <dsv3/core/quantized.hpp>

namespace dsv3::detail {

struct TilePosition {
  int row, column;
};

// Tiles in bands of 16 rows of tiles, down the columns inside a band: tiles that run side by side
// then read few different rows and columns of the operands.
DSV3_HD constexpr TilePosition tile_position(int tile, int row_tiles, int column_tiles) {
  constexpr int band = 16;
  const int first = tile / (band * column_tiles) * band;
  const int height = row_tiles - first < band ? row_tiles - first : band;
  const int inside = tile - first * column_tiles;
  return {first + inside % height, inside / height};
}

// Rows of tiles for ragged segments of rows, `size` rows each: those of segment e begin at
// segment_tile(e), which needs no sum over the segments before it. Some stay empty.
DSV3_HD constexpr Index segment_tile(Index first_row, Index segment, int size) {
  return first_row / size + segment;
}
DSV3_HD constexpr Index segment_tiles(Index rows, Index segments, int size) {
  return rows / size + segments;
}

// The segments of a sum of codes: as long as no scale changes, at most 128. Groups of 0 elements:
// one scale for all.
struct SegmentMap {
  unsigned left_group = 0, right_group = 0;

  constexpr SegmentMap() = default;
  template <class SA, class SB>
  DSV3_HD constexpr SegmentMap(const OperandScales<SA>& a, const OperandScales<SB>& b)
      : left_group(a.k_stride ? static_cast<unsigned>(a.k_group) : 0),
        right_group(b.k_stride ? static_cast<unsigned>(b.k_group) : 0) {}

  // Where the segment that begins at k ends, if the sum does not end before.
  DSV3_HD constexpr int end(int k) const {
    const auto at = static_cast<unsigned>(k);
    unsigned count = 128;
    if (left_group && left_group - at % left_group < count) count = left_group - at % left_group;
    if (right_group && right_group - at % right_group < count)
      count = right_group - at % right_group;
    return static_cast<int>(at + count);
  }
  // Whether segments end at multiples of 32 only, as the tensor core's loop needs it.
  DSV3_HD constexpr bool of_whole_steps() const {
    return left_group % 32 == 0 && right_group % 32 == 0;
  }
};

// What a choice between tiles needs to know of one: blocks that share a multiprocessor, and how
// fast it multiplies, the largest tile as 1.
struct TileTraits {
  int rows, columns, blocks;
  double rate;
};

// How long a product takes in such tiles, in units of elements of the output.
constexpr double tiles_cost(const TileTraits& tile, Index entries, Index rows, Index columns,
                            int multiprocessors) {
  const Index tiles = entries * groups_of(rows, tile.rows) * groups_of(columns, tile.columns);
  const Index filled = groups_of(tiles, multiprocessors);
  const Index blocks = filled < tile.blocks ? (filled > 0 ? filled : 1) : tile.blocks;
  const Index waves = groups_of(tiles, multiprocessors * blocks);
  return static_cast<double>(waves * blocks * tile.rows * tile.columns) / tile.rate;
}

}  // namespace dsv3::detail
