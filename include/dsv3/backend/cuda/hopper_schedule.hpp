// Where everything lies in a product of codes on Hopper: tiles, shared memory, swizzles, fragments.
// Plain functions without a device, so that the host's tests see them.
#pragma once

#include <dsv3/core/product.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3::detail {

// A block of threads holds a tile of c of 128 `waves` rows and `width` columns, and walks along the
// sum in steps of 128 codes: the interval after which sums are promoted (spec 7.4). Warps 0 ... 3
// bring codes in; each of two groups of four warps multiplies 64 rows of every wave of 128.
constexpr int hopper_tile = 128;
constexpr int hopper_threads = 384;
constexpr int hopper_most_groups = 512;
constexpr int hopper_tile_bytes = hopper_tile * hopper_tile;

// A form of the kernel. The bits of the result depend on the product alone.
template <Product p, bool codes_turned, int tile_waves, int tile_width>
struct HopperForm {
  static constexpr Product product = p;
  // tn of operands whose codes lie along the tokens, as turn_codes_kernel leaves them.
  static constexpr bool turned = codes_turned;
  static constexpr int waves = tile_waves, width = tile_width;
  static constexpr int height = hopper_tile * waves;  // rows of a tile
  static constexpr int step = hopper_tile;            // rows from one wave to the next
  // wgmma wants codes that lie along the sum: whether the kernel has to transpose tiles.
  static constexpr bool transposes = p != Product::nt && !turned;
};

// Shared memory holds an operand as rows of 128 bytes, the sum's direction along the row, with
// TMA's 128-byte swizzle: the 16-byte chunk `chunk` of row r lies in the place of chunk ^ (r % 8).
// Tiles start at multiples of 1024.
DSV3_HD constexpr std::uint32_t hopper_swizzled(int row, int chunk) {
  return static_cast<std::uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4));
}

// What wgmma is told of an operand: bits 0-13 its shared address / 16, 16-29 the leading offset
// (ignored with a swizzle, 1 by convention), 32-45 the distance / 16 of groups of 8 rows, 62-63 the
// swizzle, 1 for 128 bytes. A step of 32 codes along the sum adds 32 / 16 to it: the swizzle is of
// address bits, so it stays right inside a row.
DSV3_HD constexpr std::uint64_t hopper_descriptor(std::uint32_t address) {
  return static_cast<std::uint64_t>((address & 0x3FFFFu) >> 4) | std::uint64_t{1} << 16 |
         std::uint64_t{1024 / 16} << 32 | std::uint64_t{1} << 62;
}
constexpr std::uint64_t hopper_descriptor_step = 32 / 16;

// Element i, of width / 2, of the accumulator of a product of 64 x width, in one of 128 threads.
DSV3_HD constexpr int hopper_fragment_row(int thread, int i) {
  return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
}
DSV3_HD constexpr int hopper_fragment_column(int thread, int i) {
  return i / 4 * 8 + thread % 4 * 2 + i % 2;
}

// One stage of the ring in shared memory: a tile of a, a tile of b and, for tn, their scales.
template <class Form>
struct HopperStages {
  static_assert(Form::waves == 1 || Form::waves == 2);
  static_assert(Form::width == hopper_tile || (Form::width == 64 && Form::product == Product::nt));
  static constexpr int count = Form::height == 256 ? 4 : Form::width == 64 ? 8 : 6;
  static constexpr int a_bytes = Form::height * hopper_tile;
  static constexpr int b_bytes = Form::width * hopper_tile;
  static constexpr int a_scales = Form::product == Product::tn ? Form::height : 0;
  static constexpr int b_scales = Form::product == Product::tn ? hopper_tile : 0;
  static constexpr int scale_bytes = (a_scales + b_scales) * 4;
  static constexpr int arriving_bytes = a_bytes + b_bytes + scale_bytes;

  // Offsets from a multiple of 1024.
  static constexpr int b = count * a_bytes;
  static constexpr int scales = b + count * b_bytes;
  static constexpr int barriers = scales + count * scale_bytes;
  static constexpr int groups = barriers + 3 * 8 * count;
  static constexpr int bytes = groups + 2 * 4 * (hopper_most_groups + 1);
  static_assert(bytes <= 227 * 1024);
};

// Place of tile `index` among rows x columns of them: bands of `band` rows, in each band column by
// column, so that tiles in work at one time share rows of a and of b in the second-level cache.
struct HopperPlace {
  int row, column;
};
DSV3_HD constexpr HopperPlace hopper_place(int index, int rows, int columns, int band) {
  const int first = index / (band * columns) * band;
  const int height = rows - first < band ? rows - first : band;
  const int within = index - first * columns;
  return {first + within % height, within / height};
}

// The groups of a grouped product; a plain product is one group.
struct HopperGroups {
  const int* first;  // [groups + 1] rows of a where the groups begin
  const int* tiles;  // [groups + 1] rows of tiles before each group
};

// Segments of tokens whose groups of 128 begin anew at each: the place of segment `group`, which
// begins at token `first`, in rows of scales (Quantized::segment) and in blocks of turned codes.
DSV3_HD constexpr int hopper_segment(int group, int first) { return first / hopper_tile + group; }

// A tile of c, and what is summed for it.
struct HopperTile {
  int group;
  int row, row_end;   // of c: rows from row on, below row_end
  int column;         // of c
  int blocks;         // of 128 along the sum
  int first, length;  // tn: the tokens [first, first + length)
};

// Tile `index` of a product whose c has `columns` tiles in a row. group: of an earlier tile, moves
// on. rows: of c in a group of tn; depth: the sum's length in the others.
template <class Form>
DSV3_HD constexpr HopperTile hopper_tile_of(const HopperGroups& groups, int index, int& group,
                                            int columns, int rows, int depth) {
  while (index >= groups.tiles[group + 1] * columns) ++group;
  const int before = groups.tiles[group];
  const auto place = hopper_place(index - before * columns, groups.tiles[group + 1] - before,
                                  columns, Form::height == 256 ? 8 : 16);
  const int first = groups.first[group], next = groups.first[group + 1];
  const int row = place.row * Form::height, column = place.column * Form::width;
  if constexpr (Form::product == Product::tn) {
    const int blocks = (next - first + hopper_tile - 1) / hopper_tile;
    return {group, row, rows, column, blocks, first, next - first};
  } else {
    return {group, first + row, next, column, (depth + hopper_tile - 1) / hopper_tile, 0, depth};
  }
}

// How a product is cut into tiles. The bits of the result do not depend on it.
struct HopperCut {
  int waves, width;

  constexpr int height() const { return hopper_tile * waves; }
};

// The cut that is done first, by the steps that a multiprocessor makes: the larger tiles do most
// per byte, the smaller fill the device better. Costs of a step, relative, from times on an H200:
// one wave has 1.13 times the time of two for the same product; 64 columns pay only where they
// put more multiprocessors to work. rows: of a group, on average.
constexpr HopperCut hopper_cut(Product p, Index groups, Index rows, Index columns,
                               int multiprocessors) {
  struct Choice {
    HopperCut cut;
    Index cost;
  };
  const Choice choices[] = {{{2, 128}, 100}, {{1, 128}, 56}, {{1, 64}, 38}};
  HopperCut best{2, 128};
  Index least = 0;
  for (const auto& [cut, cost] : choices) {
    if (cut.width != hopper_tile && p != Product::nt) continue;
    const Index across = (columns + cut.width - 1) / cut.width;
    const Index down = (rows + cut.waves * hopper_tile - 1) / (cut.waves * hopper_tile);
    const Index turns = (groups * across * down + multiprocessors - 1) / multiprocessors;
    if (least == 0 || turns * cost < least) {
      least = turns * cost;
      best = cut;
    }
  }
  return best;
}

// Codes of 8 bits reach wgmma only with the sum's direction along the row. A tile of 128 x 128 that
// lies the other way is transposed in place, in 8 x 8 squares of 16 x 16 codes. A task of a warp is
// two squares: (x, y) and (y, x) with y = x ^ distance, or two of the diagonal. Distances 0 ... 7
// have four tasks each. Half 0 or 1 of a task: where its square lies.
DSV3_HD constexpr HopperPlace hopper_square(int distance, int task, int half) {
  const int apart = distance ? distance : 1;
  const int bit = apart >= 4 ? 4 : apart >= 2 ? 2 : 1;  // the highest
  const int lower = task / bit * 2 * bit + task % bit;  // without that bit
  const int row = half ? lower ^ apart : lower;
  return {row, row ^ distance};
}

// The squares of a task are read by one ldmatrix of four transposed matrices of 8 x 8 pairs of
// codes, two for each half. Lane l addresses row l % 8 of matrix l / 8: this row of its square.
// Thereby lane 4 g + q receives of each matrix the pairs of columns 2 g and 2 g + 1 in two rows
// that are neighbours, and two matrices together hold rows 4 q ... 4 q + 3; which holds the first
// two is chosen so that the eight addresses of a matrix are in different banks.
DSV3_HD constexpr int hopper_transpose_load_row(int lane) {
  const int pair = lane % 8 / 2, matrix = lane / 8 % 2;
  return 4 * pair + 2 * (matrix ^ (pair >= 2 ? 1 : 0)) + lane % 2;
}
// The column of the square that becomes row l % 8 of matrix l / 8 of the stmatrix: even ones in the
// lower four rows together with odd ones in the upper, or the other way, for the banks again.
DSV3_HD constexpr int hopper_transpose_store_row(int lane) {
  const int i = lane % 8, matrix = lane / 8 % 2;
  return 2 * i + (matrix ^ (i >= 4 ? 1 : 0));
}
// Selectors of bytes among two received words for the two words that lane 4 g + q stores.
DSV3_HD constexpr std::uint32_t hopper_transpose_selector(int lane, int matrix) {
  const bool odd = (matrix ^ (lane / 4 >= 4 ? 1 : 0)) != 0;
  return lane % 4 < 2 ? (odd ? 0x7531u : 0x6420u) : (odd ? 0x3175u : 0x2064u);
}
// Keeps of four codes those at positions first ... below `count`.
DSV3_HD constexpr std::uint32_t hopper_first_codes(int count, int first) {
  const int left = count - first;
  return left >= 4 ? ~0u : left <= 0 ? 0u : (1u << (8 * left)) - 1;
}

}  // namespace dsv3::detail
