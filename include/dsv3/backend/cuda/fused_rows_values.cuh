// What a thread of the fused row kernels does: 16 neighbours of a row, read and written in pieces
// of 16 bytes where they are aligned, and turned into codes together with the rest of their group.
#pragma once

#include <dsv3/backend/cuda/mma.cuh>
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

// a / b rounded to nearest, where y is 1 / b rounded to nearest and nothing underflows that
// matters: two corrections by the exact remainder (Markstein 1990). A zero may lose its sign.
__device__ inline float quotient(float a, float b, float y) {
  const float q0 = __fmul_rn(a, y);
  const float q1 = __fmaf_rn(__fmaf_rn(-b, q0, a), y, q0);
  return __fmaf_rn(__fmaf_rn(-b, q1, a), y, q1);
}
// The same for b > 0, with the sign of a.
__device__ inline float signed_quotient(float a, float b, float y) {
  const std::uint32_t sign = __builtin_bit_cast(std::uint32_t, a) & 0x80000000u;
  return word_float(__builtin_bit_cast(std::uint32_t, quotient(a, b, y)) | sign);
}

// 1 / b rounded to nearest for b in [1, 2], or NaN: how a division does it, without its branch.
__device__ inline float reciprocal(float b) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(b));
  return __fmaf_rn(y, __fmaf_rn(-b, y, 1.0f), y);
}

// sigmoid(x) with the bits of core/math.hpp, its divisions without branches. Where e is so small
// that a remainder underflows, e - e^2 / (1 + e) is e whatever the quotient rounds to.
__device__ inline float sigmoid_of(float x) {
  const float e = exp_float<true>(x < 0.0f ? x : -x);
  const float sum = 1.0f + e, large = reciprocal(sum);
  const float small = __fmaf_rn(-e, quotient(e, sum, large), e);
  return x < 0.0f ? small : large;
}

// The codes of two finite values, `low` at the lower address.
template <class C>
__device__ std::uint32_t pack_codes(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  std::uint16_t pair;
  if constexpr (std::is_same_v<C, e4m3>)
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return C(low).code | static_cast<std::uint32_t>(C(high).code) << 8;
#endif
}

// The 16 codes of v / scale. Scales that are neither tiny nor huge have a reciprocal, and exact
// remainders of all quotients that are not code 0 anyway; their groups hold finite values only.
template <class C>
__device__ uint4 encode_values(const RowValues& v, float scale) {
  std::uint32_t word[4];
  if (scale >= 0x1p-80f && scale <= 0x1p100f) {
    const float y = 1.0f / scale;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const auto code = [&](int k) { return signed_quotient(v[4 * w + k], scale, y); };
      word[w] = pack_codes<C>(code(0), code(1)) | pack_codes<C>(code(2), code(3)) << 16;
    }
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

// Codes and scale of the values from column `first` of row t, by all threads of a warp; 2^shift
// neighbours have a group.
template <bool aligned, class C>
__device__ void quantize_values(const Quantized<C>& q, Index t, Index first, int shift,
                                const ScaleRule& rule, const RowValues& v) {
  std::uint32_t largest = 0;
#pragma unroll
  for (int k = 0; k < row_values; ++k) largest = max(largest, magnitude_bits(v[k]));
  for (int by = 1; by < 1 << shift; by *= 2)
    largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, by));
  const float scale = rule.template scale<C>(from_magnitude(largest));
  const Index chunk = first / row_values, left = q.extent(1) - first;
  if (left > 0 && (chunk & ((Index{1} << shift) - 1)) == 0) q.scales(t, chunk >> shift) = scale;
  store_codes<aligned>(q.codes.data + t * q.codes.strides[0] + first, encode_values<C>(v, scale),
                       left);
}

}  // namespace dsv3::detail
