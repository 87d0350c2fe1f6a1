// How a warp's results leave its registers, where the tensor core has left them.
#pragma once

#include <dsv3/backend/cuda/ptx.cuh>

namespace dsv3::detail {

// Neighbours of the output, `first` at the lower address.
template <class TC>
struct alignas(2 * sizeof(TC)) OutputPair {
  TC first, second;
};

// bf16 is rounded by the instruction whether it is stored alone or in a pair: that knows one NaN
// only, and bits must not depend on the place in a tile.
template <class TC>
__device__ TC rounded_output(float x) {
  if constexpr (std::is_same_v<TC, bf16>) {
    bf16 result;
    result.bits = static_cast<std::uint16_t>(pack_bf16(x, 0));
    return result;
  } else {
    return TC(x);
  }
}

// A block of 16 x 8 as each lane holds it: rows lane / 4 and eight below, two columns of each.
template <int blocks_m, int blocks_n, class TC>
struct BlockWriter {
  using Pair = OutputPair<TC>;
  using Sums = float[blocks_m][blocks_n][4];

  View<TC, 2> c;
  int row, column;  // of the lane
  bool add;

  __device__ TC* at(int half) const { return c.data + (row + 8 * half) * c.strides[0] + column; }

  // Everything lies inside c, whose rows begin at multiples of 8 bytes.
  template <bool add_old>
  __device__ void store_inside(const Sums& sum) const {
#pragma unroll
    for (int half = 0; half < 2 * blocks_m; ++half) {
      TC* const to = at(half);
#pragma unroll
      for (int n = 0; n < blocks_n; n += 2) {
        float values[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] = sum[half / 2][n + i / 2][half % 2 * 2 + i % 2];
        if constexpr (add_old) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const Pair old = *reinterpret_cast<const Pair*>(to + 8 * (n + i));
            values[2 * i] = float(old.first) + values[2 * i];
            values[2 * i + 1] = float(old.second) + values[2 * i + 1];
          }
        }
        if constexpr (std::is_same_v<TC, bf16>) {
          store_exchanged(to + 8 * n, pack_bf16(values[0], values[1]),
                          pack_bf16(values[2], values[3]));
        } else {
          *reinterpret_cast<Pair*>(to + 8 * n) = {TC(values[0]), TC(values[1])};
          *reinterpret_cast<Pair*>(to + 8 * n + 8) = {TC(values[2]), TC(values[3])};
        }
      }
    }
  }

  // Lanes side by side swap a pair, so that each has four neighbours of one of two blocks, and four
  // lanes write 32 bytes at once.
  __device__ static void store_exchanged(TC* to, std::uint32_t first, std::uint32_t second) {
    const bool odd = threadIdx.x % 2;
    const std::uint32_t mine = odd ? second : first, given = odd ? first : second;
    const std::uint32_t taken = __shfl_xor_sync(0xFFFFFFFFu, given, 1);
    // Even lanes stay in the first block; odd ones go to the second, and two columns back.
    struct alignas(8) Four {
      std::uint32_t first, second;
    };
    *reinterpret_cast<Four*>(to + (odd ? 6 : 0)) = odd ? Four{taken, mine} : Four{mine, taken};
  }

  // Element by element; what lies outside c is left out.
  __device__ void store_some(const Sums& sum) const {
    const Index rows = c.extent(0), columns = c.extent(1);
#pragma unroll
    for (int half = 0; half < 2 * blocks_m; ++half) {
      if (row + 8 * half >= rows) return;
      TC* const to = at(half);
#pragma unroll
      for (int i = 0; i < 2 * blocks_n; ++i) {
        const int j = i / 2 * 8 + i % 2;
        if (column + j >= columns) continue;
        const float value = sum[half / 2][i / 2][half % 2 * 2 + i % 2];
        to[j] = rounded_output<TC>(add ? float(to[j]) + value : value);
      }
    }
  }
};

// The results of a warp whose part begins at (row, column): c = sum, or c += sum, rounded once.
template <int blocks_m, int blocks_n, class TC>
__device__ void store_blocks(const View<TC, 2>& c, int row, int column,
                             const float (&sum)[blocks_m][blocks_n][4], bool add) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const BlockWriter<blocks_m, blocks_n, TC> writer{c, row + lane / 4, column + lane % 4 * 2, add};
  const bool inside = row + 16 * blocks_m <= c.extent(0) && column + 8 * blocks_n <= c.extent(1);
  if (inside && reinterpret_cast<std::uintptr_t>(c.data) % 8 == 0 &&
      c.strides[0] * static_cast<Index>(sizeof(TC)) % 8 == 0) {
    if (add)
      writer.template store_inside<true>(sum);
    else
      writer.template store_inside<false>(sum);
  } else {
    writer.store_some(sum);
  }
}

}  // namespace dsv3::detail
