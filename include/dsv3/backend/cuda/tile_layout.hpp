// Where the elements of a product's tiles lie in shared memory, which of them a thread copies and
// which a lane loads for the tensor core. Plain index arithmetic, for the host's tests too.
#pragma once

#include <dsv3/core/view.hpp>

namespace dsv3::detail {

// Elements of the sum in one tile, and in one instruction.
inline constexpr int tile_depth = 64;
inline constexpr int step_depth = 16;
inline constexpr int tile_steps = tile_depth / step_depth;

// An operand's tile of 16-bit elements: `extent` rows or columns of the output by tile_depth of the
// sum, with rows as in the operand: along_k says that these run along the sum. Chunks of 16 bytes
// are exchanged within 128 bytes by the row, so that the 8 rows of one chunk, which a matrix load
// reads at a time, lie in different banks.
template <bool along_k, int extent>
struct OperandTile {
  static constexpr int rows = along_k ? extent : tile_depth;
  static constexpr int columns = along_k ? tile_depth : extent;
  static constexpr int chunks = columns / 8;
  static constexpr std::uint32_t row_bytes = columns * 2;
  static constexpr std::uint32_t bytes = rows * row_bytes;
  static_assert(chunks % 8 == 0, "the exchange needs rows of whole 128 bytes");

  DSV3_HD static constexpr std::uint32_t offset(int row, int chunk) {
    return static_cast<std::uint32_t>((row * chunks + (chunk ^ (row & 7))) * 16);
  }
};

// Loads of four 8 x 8 matrices: 16 elements of the output by 16 of the sum. On the left the
// registers are those of `a` of one instruction; on the right the first two are `b` for the first 8
// columns, the others for the next 8. Where the operand's rows do not run along the sum, the load
// transposes.
template <bool along_k, int extent, bool left>
struct FragmentMap {
  using Tile = OperandTile<along_k, extent>;

  // Of the lane's row for the block of the output at `origin`, a multiple of the warp's part.
  DSV3_HD static constexpr std::uint32_t lane_offset(int lane, int origin) {
    const int matrix = lane >> 3;
    const int half = left ? matrix & 1 : matrix >> 1;  // of the 16 elements of the output
    const int k_half = left ? matrix >> 1 : matrix & 1;
    return along_k ? Tile::offset(origin + 8 * half + (lane & 7), k_half)
                   : Tile::offset(8 * k_half + (lane & 7), origin / 8 + half);
  }
  // From the lane's address, in a tile that begins at a multiple of 128: the row for a later block
  // of 16 and a later step of the sum. Moving on by two chunks is an exchange as well.
  DSV3_HD static constexpr std::uint32_t at(std::uint32_t lane_address, int block, int step) {
    const auto across = static_cast<std::uint32_t>(along_k ? step : block) * 32;
    const auto down = static_cast<std::uint32_t>(along_k ? block : step) * 16;
    return (lane_address ^ across) + down * Tile::row_bytes;
  }
};

// Which chunks of 16 bytes of an operand's tile a thread copies: one chunk of every pass, each pass
// `pass_rows` below the one before. Elements of 2 bytes, or codes of 1.
template <bool along_k, int extent, int threads, int element_bytes>
struct CopyMap {
  using Tile = OperandTile<along_k, extent>;
  static constexpr int elements = 16 / element_bytes;
  static constexpr int chunks = Tile::columns / elements;
  static constexpr int pass_rows = threads / chunks;
  static constexpr int passes = Tile::rows / pass_rows;
  static_assert(threads % chunks == 0 && Tile::rows % pass_rows == 0);
  static_assert(pass_rows % 8 == 0, "the exchange of chunks is the same in every pass");
  static_assert(element_bytes == 2 || chunks % 4 == 0);

  // Codes: 8 neighbours share two rows, so that the elements made of them, twice as wide, go to
  // different banks.
  DSV3_HD static constexpr int row(int thread) {
    if (element_bytes == 2) return thread / chunks;
    return (thread >> 2 & 1) + 2 * ((thread >> 3) / (chunks / 4));
  }
  DSV3_HD static constexpr int chunk(int thread) {
    if (element_bytes == 2) return thread % chunks;
    return (thread & 3) + 4 * ((thread >> 3) % (chunks / 4));
  }
};

}  // namespace dsv3::detail
