// What a thread of the fused row kernels does: 16 neighbours of a row, read and written in pieces
// of 16 bytes where they are aligned, and turned into codes together with the rest of their group.
#pragma once

#include <dsv3/backend/cuda/fused_columns_codes.cuh>
#include <dsv3/backend/cuda/ptx.cuh>
#include <dsv3/core/math.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3::detail {

// Neighbours of a row that one thread has.
inline constexpr int row_values = 16;

using RowValues = float[row_values];

__device__ inline float word_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

// v = from[0 ... count), and zeros. Where rows are aligned, count is at least 16 or at most 0.
template <bool aligned, class T>
__device__ void load_values(RowValues& v, const T* from, Index count) {
  if constexpr (aligned) {
    constexpr int words = row_values * int(sizeof(T)) / 16;
#pragma unroll
    for (int w = 0; w < words; ++w) {
      uint4 bits{0, 0, 0, 0};
      if (count > 0) bits = reinterpret_cast<const uint4*>(from)[w];
      const std::uint32_t word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if constexpr (sizeof(T) == 2) {
          v[8 * w + 2 * k] = word_float(word[k] << 16);
          v[8 * w + 2 * k + 1] = word_float(word[k] & 0xFFFF0000u);
        } else {
          v[4 * w + k] = word_float(word[k]);
        }
    }
  } else {
#pragma unroll
    for (int k = 0; k < row_values; ++k) v[k] = k < count ? float(from[k]) : 0.0f;
  }
}

// Rounds values to T. NaN that arithmetic gave has one pattern on a GPU, and that of the conversion
// is its upper half: what T(float) makes of it.
template <class T>
__device__ void round_values(RowValues& v) {
  if constexpr (std::is_same_v<T, bf16>)
#pragma unroll
    for (int k = 0; k < row_values; k += 2) {
      const std::uint32_t pair = pack_bf16(v[k], v[k + 1]);
      v[k] = word_float(pair << 16);
      v[k + 1] = word_float(pair & 0xFFFF0000u);
    }
}

// to[0 ... count) = values that are of type T already.
template <bool aligned, class T>
__device__ void store_values(T* to, const RowValues& v, Index count) {
  const auto bits = [&](int k) { return __builtin_bit_cast(std::uint32_t, v[k]); };
  if constexpr (aligned) {
    if (count <= 0) return;
    constexpr int words = row_values * int(sizeof(T)) / 16;
#pragma unroll
    for (int w = 0; w < words; ++w) {
      std::uint32_t word[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if constexpr (sizeof(T) == 2)
          word[k] = bits(8 * w + 2 * k) >> 16 | (bits(8 * w + 2 * k + 1) & 0xFFFF0000u);
        else
          word[k] = bits(4 * w + k);
      reinterpret_cast<uint4*>(to)[w] = {word[0], word[1], word[2], word[3]};
    }
  } else {
#pragma unroll
    for (int k = 0; k < row_values; ++k)
      if (k < count) {
        if constexpr (sizeof(T) == 2)
          to[k].bits = static_cast<std::uint16_t>(bits(k) >> 16);
        else
          to[k] = v[k];
      }
  }
}

// f(k, sigmoid(x[k])) for all k, with the bits of core/math.hpp.
__device__ __forceinline__ void for_each_sigmoid(const RowValues& x, auto&& f) {
  float most = 0;
#pragma unroll
  for (int k = 0; k < row_values; ++k) most = larger_magnitude(most, x[k]);
  if (most <= 87.0f) {
#pragma unroll
    for (int k = 0; k < row_values; ++k) f(k, sigmoid_within_87(x[k]));
  } else {  // NaN too
#pragma unroll
    for (int k = 0; k < row_values; ++k) f(k, sigmoid(x[k]));
  }
}

// The 16 codes of v / scale.
template <class C>
__device__ uint4 encode_values(const RowValues& v, float scale) {
  std::uint32_t word[4];
  const CodeDivisor divisor(scale);
  if (divisor.high != 0) {  // then all of the group are finite
    const float high[4] = {divisor.high, divisor.high, divisor.high, divisor.high};
    const float low[4] = {divisor.low, divisor.low, divisor.low, divisor.low};
#pragma unroll
    for (int w = 0; w < 4; ++w) word[w] = encode_four<C>(v + 4 * w, high, low);
  } else {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      word[w] = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        word[w] |= static_cast<std::uint32_t>(encode_scaled<C>(v[4 * w + k], scale).code) << 8 * k;
    }
  }
  return {word[0], word[1], word[2], word[3]};
}

template <bool aligned, class C>
__device__ void store_codes(C* to, const uint4& codes, Index count) {
  if constexpr (aligned) {
    if (count > 0) *reinterpret_cast<uint4*>(to) = codes;
  } else {
    const std::uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int k = 0; k < row_values; ++k)
      if (k < count) to[k].code = static_cast<std::uint8_t>(word[k / 4] >> 8 * (k % 4));
  }
}

// Codes and scale of the values from column `first` of row t, by all threads of a warp, whose
// columns begin at a multiple of 512; 2^shift neighbours have a group.
template <bool aligned, class C>
__device__ void quantize_values(const Quantized<C>& q, Index t, Index first, int shift,
                                const ScaleRule& rule, const RowValues& v) {
  float most = 0;
#pragma unroll
  for (int k = 0; k < row_values; ++k) most = larger_magnitude(most, v[k]);
  std::uint32_t largest = __builtin_bit_cast(std::uint32_t, most);
  if (shift == 3) {  // groups of 128, without a loop
#pragma unroll
    for (int by = 1; by < 8; by *= 2)
      largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, by));
  } else {
    for (int by = 1; by < 1 << shift; by *= 2)
      largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, by));
  }
  const float scale = scale_of<C>(rule, from_magnitude(largest));
  const Index left = q.extent(1) - first;
  const bool leads = (threadIdx.x & ((1u << shift) - 1)) == 0;  // the threads of its group
  if (left > 0 && leads) {
    static_assert(row_values == 16);
    q.scales(t, static_cast<Index>(static_cast<std::uint64_t>(first) >> (4 + shift))) = scale;
  }
  store_codes<aligned>(q.codes.data + t * q.codes.strides[0] + first, encode_values<C>(v, scale),
                       left);
}

}  // namespace dsv3::detail
