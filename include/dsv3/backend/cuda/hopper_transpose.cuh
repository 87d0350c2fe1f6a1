// A tile of 128 x 128 codes in shared memory, transposed where it lies. Only in code for sm_90a.
#pragma once

#include <dsv3/backend/cuda/hopper_schedule.hpp>

namespace dsv3::detail {

__device__ inline void load_pairs(std::uint32_t (&r)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ inline void store_words(std::uint32_t row, const std::uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// What a lane needs to know for every tile.
struct TransposeLane {
  int load_row, store_row, half, first_code;
  std::uint32_t selector[2];

  __device__ explicit TransposeLane(int lane)
      : load_row(hopper_transpose_load_row(lane)),
        store_row(hopper_transpose_store_row(lane)),
        half(lane / 16),
        first_code(lane % 4 * 4),
        selector{hopper_transpose_selector(lane, 0), hopper_transpose_selector(lane, 1)} {}
};

// Warp `warp` of `warps`: its part of a tile, whose rows from `count` on become zeros. Tasks share
// no square, so `at_once` of them are on their way together.
template <int at_once, bool cut>
__device__ void transpose_tile(std::uint32_t tile, const TransposeLane& lane, int warp, int warps,
                               int count) {
#pragma unroll 1
  for (int task = warp * at_once; task < 32; task += warps * at_once) {
    const int distance = task / 4;
    std::uint32_t pairs[at_once][4];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const auto from = hopper_square(distance, task % 4 + i, lane.half);
      load_pairs(pairs[i], tile + hopper_swizzled(16 * from.row + lane.load_row, from.column));
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      std::uint32_t words[4];
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const int half = word / 2;
        words[word] =
            __byte_perm(pairs[i][2 * half], pairs[i][2 * half + 1], lane.selector[word % 2]);
        if constexpr (cut) {
          const int row = 16 * hopper_square(distance, task % 4 + i, half).row;
          words[word] &= hopper_first_codes(count, row + lane.first_code);
        }
      }
      const auto from = hopper_square(distance, task % 4 + i, lane.half);
      store_words(tile + hopper_swizzled(16 * from.column + lane.store_row, from.row), words);
    }
  }
}

}  // namespace dsv3::detail
