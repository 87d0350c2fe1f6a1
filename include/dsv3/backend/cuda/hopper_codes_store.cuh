// Stores the totals of a tile that lie as wgmma's fragments do. Rows are stored by ordinary
// instructions, not by TMA: where a group ends inside a tile, the rows beyond are not ours.
#pragma once

#include <dsv3/backend/cuda/hopper_codes_scales.cuh>
#include <dsv3/backend/cuda/ptx.cuh>

namespace dsv3::detail {

// Lane q of four has words of columns 8 k + 2 q of word k; afterwards it has, in order, those that
// make up the eight columns 8 q ... 8 q + 7.
__device__ inline void exchange_words(std::uint32_t (&word)[4], int lane) {
  const bool odd = lane & 1, upper = lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t got = __shfl_xor_sync(~0u, odd ? word[i] : word[i + 1], 1);
    word[i] = odd ? got : word[i];
    word[i + 1] = odd ? word[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t got = __shfl_xor_sync(~0u, upper ? word[i] : word[i + 2], 2);
    word[i] = upper ? got : word[i];
    word[i + 2] = upper ? word[i + 2] : got;
  }
}

// One row of the thread's fragments, elements 4 i + 2 half and the next, where all columns of the
// tile are inside and rows lie at multiples of 16 bytes. c: of the tile's row. All of what is added
// to is read before anything is written, so that the reads are on their way together.
template <int n>
__device__ void store_whole_row(bf16* c, bool inside, bool add, int half, int lane,
                                const float (&total)[n]) {
  const auto* own = reinterpret_cast<const std::uint32_t*>(c) + lane % 4;
  auto* out = reinterpret_cast<uint4*>(c) + lane % 4;
  std::uint32_t word[n / 4];
  if (add) {
#pragma unroll
    for (int i = 0; i < n / 4; ++i) word[i] = inside ? own[4 * i] : 0;
#pragma unroll
    for (int i = 0; i < n / 4; ++i) {
      const float left = __uint_as_float(word[i] << 16);
      const float right = __uint_as_float(word[i] & 0xFFFF0000u);
      word[i] = pack_bf16(left + total[4 * i + 2 * half], right + total[4 * i + 2 * half + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < n / 4; ++i)
      word[i] = pack_bf16(total[4 * i + 2 * half], total[4 * i + 2 * half + 1]);
  }
#pragma unroll
  for (int piece = 0; piece < n / 16; ++piece) {
    std::uint32_t four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = word[4 * piece + i];
    exchange_words(four, lane);
    if (inside) out[4 * piece] = make_uint4(four[0], four[1], four[2], four[3]);
  }
}
template <int n>
__device__ void store_whole_row(float* c, bool inside, bool add, int half, int lane,
                                const float (&total)[n]) {
  if (!inside) return;
  auto* own = reinterpret_cast<float2*>(c) + lane % 4;
  if (add) {
    float2 old[n / 4];
#pragma unroll
    for (int i = 0; i < n / 4; ++i) old[i] = own[4 * i];
#pragma unroll
    for (int i = 0; i < n / 4; ++i)
      own[4 * i] =
          make_float2(old[i].x + total[4 * i + 2 * half], old[i].y + total[4 * i + 2 * half + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < n / 4; ++i)
      own[4 * i] = make_float2(total[4 * i + 2 * half], total[4 * i + 2 * half + 1]);
  }
}
// Any row: element by element, `columns` of them.
template <class TC, int n>
__device__ void store_part_of_row(TC* c, int columns, bool inside, bool add, int half, int lane,
                                  const float (&total)[n]) {
  if (!inside) return;
  TC* own = c + lane % 4 * 2;
  const int left = columns - lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < n / 2; ++i) {
    const int column = i / 2 * 8 + i % 2, at = i / 2 * 4 + 2 * half + i % 2;
    if (column >= left) continue;
    own[column] = TC(add ? float(own[column]) + total[at] : total[at]);
  }
}

// Where row `row` of c begins in the tile's columns.
template <Product p, class TC>
__device__ TC* tile_row(const HopperCodes<TC>& work, const HopperTile& tile, int row) {
  TC* c = work.c + row * work.c_row + tile.column;
  if constexpr (p == Product::tn) c += tile.group * work.c_group;
  return c;
}

// Asks the second-level cache for the thread's part of what store_tile will add to: of each row,
// the four threads that share it take a line of 128 bytes each. Early, while codes are multiplied.
template <class Form, class TC>
__device__ void expect_tile(const HopperCodes<TC>& work, const HopperTile& tile, int row_in_tile,
                            int lane) {
  const int column = lane % 4 * static_cast<int>(128 / sizeof(TC));
  if (column >= Form::width || tile.column + column >= work.columns) return;
#pragma unroll
  for (int i = 0; i < 2 * Form::waves; ++i) {
    const int row = tile.row + i / 2 * Form::step + i % 2 * 8 + row_in_tile;
    if (row < tile.row_end)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(
          __cvta_generic_to_global(tile_row<Form::product>(work, tile, row) + column)));
  }
}

template <class Form, class TC, int n>
__device__ void store_tile(const HopperCodes<TC>& work, const HopperTile& tile, int row_in_tile,
                           int lane, const float (&total)[Form::waves][n]) {
  const int columns = work.columns - tile.column;  // of c from the tile's first on
  const bool whole = work.vector && columns >= Form::width;
#pragma unroll
  for (int wave = 0; wave < Form::waves; ++wave)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile.row + wave * Form::step + row_in_tile + 8 * half;
      const bool inside = row < tile.row_end;
      TC* c = tile_row<Form::product>(work, tile, row);
      if (whole)
        store_whole_row(c, inside, work.add, half, lane, total[wave]);
      else
        store_part_of_row(c, columns, inside, work.add, half, lane, total[wave]);
    }
}

}  // namespace dsv3::detail
