// Scales of a product of codes on Hopper: total = fma(sum, scale_a * scale_b, total) after every
// 128 codes. Only in code for sm_90a.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/backend/cuda/hopper_schedule.hpp>
#include <dsv3/core/math.hpp>

namespace dsv3::detail {

// One product of codes, as the kernel sees it.
template <class TC>
struct HopperCodes {
  TC* c;
  Index c_group, c_row;  // elements from one to the next; c_group: of tn
  int rows, columns;     // nt, nn: of c; tn: of c in a group
  int depth;             // the sum's length; tn: all tokens
  int groups;
  const Index* offsets;  // [groups + 1] in device memory; or null: one group
  // nt, nn: distances of the scales of neighbours in each direction. tn's come by TMA.
  const float *a_scales, *b_scales;
  int a_row, a_block, b_group, b_column, b_block;
  int column_tiles;  // of a row of c
  bool add;
  bool vector;  // rows of c at multiples of 16 bytes
  Cuda::Fault* fault;
};

// nt, nn: a in groups of 1 x 128, b in blocks of 128 x 128. The four lanes that share a row read
// the scales of four blocks of 128 each, two such groups ahead of their use.
template <class Form, Product p = Form::product>
struct HopperScales {
  static constexpr int waves = Form::waves;
  int row, b, last, lane;  // b: offset of its scale of the first 128
  float a_next[2 * waves], b_next, scale[2 * waves];

  template <class TC>
  __device__ HopperScales(const HopperCodes<TC>& work, const HopperTile& tile, int row_in_tile,
                          int lane)
      : row(tile.row + row_in_tile), last(tile.blocks - 1), lane(lane) {
    b = tile.group * work.b_group + tile.column / hopper_tile * work.b_column;
    load(work, 0);
  }

  template <class TC>
  __device__ void load(const HopperCodes<TC>& work, int block) {
    const int wanted = block + lane % 4, at = wanted < last ? wanted : last;
#pragma unroll
    for (int i = 0; i < 2 * waves; ++i) {
      const int down = row + i / 2 * hopper_tile + i % 2 * 8;
      const int inside = down < work.rows ? down : work.rows - 1;
      a_next[i] = __ldg(work.a_scales + (inside * work.a_row + at * work.a_block));
    }
    b_next = __ldg(work.b_scales + (b + at * work.b_block));
  }

  template <class TC>
  __device__ void begin(const HopperCodes<TC>& work, int block, const float*) {
    if (block % 4 != 0) return;
#pragma unroll
    for (int i = 0; i < 2 * waves; ++i) scale[i] = a_next[i] * b_next;
    load(work, block + 4);
  }

  // Of the upper and the lower row of the fragments; before the products, to be there after them.
  __device__ float2 factors(int wave, int block) const {
    const int from = lane / 4 * 4 + block % 4;
    return make_float2(__shfl_sync(~0u, scale[2 * wave], from),
                       __shfl_sync(~0u, scale[2 * wave + 1], from));
  }
  template <int n>
  __device__ void promote(float (&total)[n], const float (&sum)[n], float2 factor) const {
#pragma unroll
    for (int i = 0; i < n; ++i)
      total[i] = dsv3::fma(sum[i], i / 2 % 2 ? factor.y : factor.x, total[i]);
  }
};

// tn: both in groups of 128 x 1, in the stage's shared memory.
template <class Form>
struct HopperScales<Form, Product::tn> {
  int row, quarter;
  const float* values;

  template <class TC>
  __device__ HopperScales(const HopperCodes<TC>&, const HopperTile&, int row_in_tile, int lane)
      : row(row_in_tile), quarter(lane % 4), values(nullptr) {}

  template <class TC>
  __device__ void begin(const HopperCodes<TC>&, int, const float* stage) {
    values = stage;
  }

  __device__ float2 factors(int wave, int) const {
    const float* from = values + wave * hopper_tile + row;
    return make_float2(from[0], from[8]);
  }
  __device__ void promote(float (&total)[64], const float (&sum)[64], float2 factor) const {
    const auto* b = reinterpret_cast<const float2*>(values + Form::height) + quarter;
#pragma unroll
    for (int i = 0; i < 64; i += 4) {
      const float2 pair = b[i];
      total[i] = dsv3::fma(sum[i], factor.x * pair.x, total[i]);
      total[i + 1] = dsv3::fma(sum[i + 1], factor.x * pair.y, total[i + 1]);
      total[i + 2] = dsv3::fma(sum[i + 2], factor.y * pair.x, total[i + 2]);
      total[i + 3] = dsv3::fma(sum[i + 3], factor.y * pair.y, total[i + 3]);
    }
  }
};

}  // namespace dsv3::detail
