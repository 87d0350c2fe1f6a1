// Stores the totals of a tile that lie as wgmma's fragments do. Rows are stored by ordinary
// instructions, not by TMA: where a group ends inside a tile, the rows beyond are not ours.
#pragma once

#include <dsv3/backend/cuda/hopper_codes_scales.cuh>
#include <dsv3/backend/cuda/mma.cuh>

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
// tile are inside and rows lie at multiples of 16 bytes. c: of the tile's row.
__device__ inline void store_whole_row(bf16* c, bool inside, bool add, int half, int lane,
                                       const float (&total)[64]) {
  const auto* own = reinterpret_cast<const std::uint32_t*>(c) + lane % 4;
  auto* out = reinterpret_cast<uint4*>(c) + lane % 4;
#pragma unroll
  for (int piece = 0; piece < 4; ++piece) {
    std::uint32_t word[4], old[4] = {};
    if (add && inside) {
#pragma unroll
      for (int i = 0; i < 4; ++i) old[i] = own[16 * piece + 4 * i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 16 * piece + 4 * i + 2 * half;
      const float left = __uint_as_float(old[i] << 16);
      const float right = __uint_as_float(old[i] & 0xFFFF0000u);
      word[i] = add ? pack_bf16(left + total[at], right + total[at + 1])
                    : pack_bf16(total[at], total[at + 1]);
    }
    exchange_words(word, lane);
    if (inside) out[4 * piece] = make_uint4(word[0], word[1], word[2], word[3]);
  }
}
__device__ inline void store_whole_row(float* c, bool inside, bool add, int half, int lane,
                                       const float (&total)[64]) {
  if (!inside) return;
  auto* own = reinterpret_cast<float2*>(c) + lane % 4;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int at = 4 * i + 2 * half;
    const float2 old = add ? own[4 * i] : make_float2(0, 0);
    own[4 * i] = add ? make_float2(old.x + total[at], old.y + total[at + 1])
                     : make_float2(total[at], total[at + 1]);
  }
}
// Any row: element by element, `columns` of them.
template <class TC>
__device__ void store_part_of_row(TC* c, int columns, bool inside, bool add, int half, int lane,
                                  const float (&total)[64]) {
  if (!inside) return;
  TC* own = c + lane % 4 * 2;
  const int left = columns - lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int column = i / 2 * 8 + i % 2, at = i / 2 * 4 + 2 * half + i % 2;
    if (column >= left) continue;
    own[column] = TC(add ? float(own[column]) + total[at] : total[at]);
  }
}

template <Product p, int waves, class TC>
__device__ void store_tile(const HopperCodes<TC>& work, const HopperTile& tile, int row_in_tile,
                           int lane, const float (&total)[waves][64]) {
  const int columns = work.columns - tile.column;  // of c from the tile's first on
  const bool whole = work.vector && columns >= hopper_tile;
#pragma unroll
  for (int wave = 0; wave < waves; ++wave)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile.row + wave * hopper_tile + row_in_tile + 8 * half;
      const bool inside = row < tile.row_end;
      TC* c = work.c + row * work.c_row + tile.column;
      if constexpr (p == Product::tn) c += tile.group * work.c_group;
      if (whole)
        store_whole_row(c, inside, work.add, half, lane, total[wave]);
      else
        store_part_of_row(c, columns, inside, work.add, half, lane, total[wave]);
    }
}

}  // namespace dsv3::detail
