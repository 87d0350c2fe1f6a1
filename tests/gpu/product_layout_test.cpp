// The index arithmetic of the GPU's products, on the host.
// Rows, lanes and bytes are ints, as in the kernels, and index small arrays here.
#pragma GCC diagnostic ignored "-Wsign-conversion"

#include <doctest/doctest.h>

#include <dsv3/backend/cuda/tile_layout.hpp>
#include <dsv3/backend/cuda/tile_schedule.hpp>
#include <set>
#include <vector>

namespace {

using dsv3::Index;
using namespace dsv3::detail;

// An operand's tile in shared memory, every element as its number: row * columns + column.
template <bool along_k, int extent>
struct Filled {
  using Tile = OperandTile<along_k, extent>;
  std::vector<int> elements = std::vector<int>(Tile::bytes / 2, -1);

  void put(std::uint32_t offset, int row, int column, int count) {
    REQUIRE(offset % 16 == 0);
    for (int i = 0; i < count; ++i) {
      int& at = elements.at(offset / 2 + i);
      REQUIRE(at == -1);
      at = row * Tile::columns + column + i;
    }
  }
  template <int threads>
  void copy() {
    using Map = CopyMap<along_k, extent, threads, 2>;
    for (int pass = 0; pass < Map::passes; ++pass)
      for (int t = 0; t < threads; ++t)
        put(Tile::offset(Map::row(t), Map::chunk(t)) + pass * Map::pass_rows * Tile::row_bytes,
            Map::row(t) + pass * Map::pass_rows, Map::chunk(t) * 8, 8);
  }
  template <int threads>
  void widen() {
    using Map = CopyMap<along_k, extent, threads, 1>;
    for (int pass = 0; pass < Map::passes; ++pass)
      for (int t = 0; t < threads; ++t)
        for (int i = 0; i < 2; ++i)
          put(Tile::offset(Map::row(t), 2 * Map::chunk(t) + i) +
                  pass * Map::pass_rows * Tile::row_bytes,
              Map::row(t) + pass * Map::pass_rows, Map::chunk(t) * 16 + 8 * i, 8);
  }
};

// Whether a phase of 8 lanes that each move 16 bytes meets every bank once.
bool spread(const std::vector<std::uint32_t>& offsets) {
  for (std::size_t first = 0; first < offsets.size(); first += 8) {
    std::set<std::uint32_t> banks;
    for (std::size_t i = first; i < first + 8; ++i) banks.insert(offsets[i] / 16 % 8);
    if (banks.size() != 8) return false;
  }
  return true;
}

// What the four registers of every lane hold after a matrix load, against the tensor core's layout.
template <bool along_k, int extent, bool left>
void check_fragments(const std::vector<int>& elements, int warp_extent) {
  using Map = FragmentMap<along_k, extent, left>;
  using Tile = typename Map::Tile;
  for (int origin = 0; origin < extent; origin += warp_extent)
    for (int block = 0; block < warp_extent / 16; ++block)
      for (int step = 0; step < tile_steps; ++step) {
        constexpr std::uint32_t base = 3 * 128;  // any multiple of 128
        std::vector<std::uint32_t> rows;
        for (int lane = 0; lane < 32; ++lane)
          rows.push_back(Map::at(base + Map::lane_offset(lane, origin), block, step) - base);
        CHECK(spread(rows));
        for (int lane = 0; lane < 32; ++lane)
          for (int matrix = 0; matrix < 4; ++matrix)
            for (int i = 0; i < 2; ++i) {
              const int row = along_k ? lane / 4 : lane % 4 * 2 + i;
              const int column = along_k ? lane % 4 * 2 + i : lane / 4;
              const int got = elements.at(rows[8 * matrix + row] / 2 + column);
              const int m_half = left ? matrix % 2 : matrix / 2;
              const int k_half = left ? matrix / 2 : matrix % 2;
              const int outer = origin + 16 * block + 8 * m_half + lane / 4;
              const int k = 16 * step + 8 * k_half + lane % 4 * 2 + i;
              REQUIRE(got == (along_k ? outer * Tile::columns + k : k * Tile::columns + outer));
            }
      }
}

template <bool along_k, int extent, int threads>
void check_tile(int warp_rows, int warp_columns) {
  Filled<along_k, extent> tile;
  tile.template copy<threads>();
  check_fragments<along_k, extent, true>(tile.elements, warp_rows);
  check_fragments<along_k, extent, false>(tile.elements, warp_columns);
}

template <bool along_k, int extent, int threads>
void check_codes(int warp_rows, int warp_columns) {
  Filled<along_k, extent> tile;
  tile.template widen<threads>();
  check_fragments<along_k, extent, true>(tile.elements, warp_rows);
  check_fragments<along_k, extent, false>(tile.elements, warp_columns);
  using Map = CopyMap<along_k, extent, threads, 1>;
  for (int i = 0; i < 2; ++i) {
    std::vector<std::uint32_t> stores;
    for (int t = 0; t < threads; ++t)
      stores.push_back(Map::Tile::offset(Map::row(t), 2 * Map::chunk(t) + i));
    CHECK(spread(stores));
  }
}

}  // namespace

TEST_CASE("Copies fill a tile of bf16, and matrix loads find what the tensor core multiplies") {
  check_tile<true, 128, 256>(64, 64);  // the large tile's rows
  check_tile<false, 128, 256>(64, 64);
  check_tile<true, 256, 256>(64, 64);  // its columns
  check_tile<false, 256, 256>(64, 64);
  check_tile<true, 128, 128>(64, 64);
  check_tile<false, 128, 128>(64, 64);
  check_tile<true, 64, 128>(32, 32);
  check_tile<false, 64, 128>(32, 32);
}

TEST_CASE("Widened codes fill a tile of fp16 in the same way, without conflicts of banks") {
  check_codes<true, 128, 256>(64, 32);
  check_codes<false, 128, 256>(64, 32);
  check_codes<true, 64, 128>(32, 32);
  check_codes<false, 64, 128>(32, 32);
}

TEST_CASE("Bands visit every tile of the output once") {
  for (int rows : {1, 2, 15, 16, 17, 40})
    for (int columns : {1, 3, 28}) {
      std::set<int> seen;
      for (int tile = 0; tile < rows * columns; ++tile) {
        const auto at = tile_position(tile, rows, columns);
        REQUIRE(at.row >= 0);
        REQUIRE(at.row < rows);
        REQUIRE(at.column >= 0);
        REQUIRE(at.column < columns);
        seen.insert(at.row * columns + at.column);
      }
      CHECK(static_cast<int>(seen.size()) == rows * columns);
    }
}

TEST_CASE("Every row of every ragged segment has a tile, and each tile one segment") {
  unsigned random = 1;
  const auto next = [&](unsigned bound) {
    random = random * 1664525u + 1013904223u;
    return static_cast<Index>((random >> 8) % bound);
  };
  for (int size : {64, 128})
    for (int trial = 0; trial < 200; ++trial) {
      const Index segments = 1 + next(70);
      std::vector<Index> offsets = {0};
      for (Index e = 0; e < segments; ++e)
        offsets.push_back(offsets.back() + (next(3) ? next(300) : 64 * next(3)));
      std::vector<int> covered(static_cast<std::size_t>(offsets.back()));
      for (Index tile = 0; tile < segment_tiles(offsets.back(), segments, size); ++tile) {
        Index before = 0;  // as a block counts them
        for (Index e = 0; e < segments; ++e) before += segment_tile(offsets[e], e, size) <= tile;
        const Index e = before - 1;
        REQUIRE(e >= 0);
        const Index row = (tile - segment_tile(offsets[e], e, size)) * size;
        REQUIRE(row >= 0);
        for (Index r = offsets[e] + row; r < offsets[e + 1] && r < offsets[e] + row + size; ++r)
          ++covered[static_cast<std::size_t>(r)];
      }
      for (int count : covered) REQUIRE(count == 1);
    }
}

TEST_CASE("Segments end where a scale changes, and after 128 products") {
  for (Index left : {0, 32, 64, 96, 128, 256, 40, 1})
    for (Index right : {0, 32, 128, 7}) {
      const OperandScales<float> a{nullptr, 1, 1, left ? left : 300, left ? 1 : 0};
      const OperandScales<float> b{nullptr, 1, 1, right ? right : 300, right ? 1 : 0};
      const SegmentMap segments(a, b);
      CHECK(segments.of_whole_steps() == (left % 32 == 0 && right % 32 == 0));
      const int depth = 1000;
      for (int k = 0; k < depth;) {
        Index count = 128;  // as in backend/eigen.hpp
        for (const auto& scales : {a, b})
          if (scales.k_stride != 0) count = std::min(count, scales.k_group - k % scales.k_group);
        REQUIRE(segments.end(k) == k + count);
        k += static_cast<int>(count);
      }
    }
}

TEST_CASE("Few rows take small tiles, large outputs large ones") {
  const TileTraits large{128, 256, 1, 1}, small{64, 64, 3, 0.5};
  const auto cost = [&](const TileTraits& tile, Index entries, Index rows, Index columns) {
    return tiles_cost(tile, entries, rows, columns, 132);
  };
  CHECK(cost(small, 1, 16, 7168) < cost(large, 1, 16, 7168));
  CHECK(cost(large, 1, 4096, 7168) < cost(small, 1, 4096, 7168));
  CHECK(cost(large, 1, 0, 0) == cost(large, 1, 0, 128));  // no tile: no cost
}
