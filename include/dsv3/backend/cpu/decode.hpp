// Rows of FP8 codes as the numbers they stand for, without scales.
#pragma once

#include <dsv3/backend/cpu/simd.hpp>

namespace dsv3::detail {

#if defined(__AVX2__)
// The float bits of each code, by the arithmetic of NarrowFloat::decode.
template <class Format, class Lanes>
typename Lanes::U32 decode_bits(typename Lanes::U32 code) {
  using U32 = typename Lanes::U32;
  const U32 magnitude = code & Format::nan_code;
  const U32 subnormal =
      1u - ((magnitude + (Format::sign_bit - Format::first_normal)) >> Format::width);
  const U32 upper = (magnitude + Format::offset + subnormal * Format::first_normal)
                    << Format::shift;
  const U32 excess = -subnormal & Format::least_normal;
  const auto finite =
      reinterpret_cast<typename Lanes::F32>(upper) - reinterpret_cast<typename Lanes::F32>(excess);
  const U32 beyond = (magnitude + (Format::nan_code - Format::largest)) >> Format::width;
  return (code & Format::sign_bit) << (31 - Format::width) | reinterpret_cast<U32>(finite) |
         (-beyond & 0x7F800000u);
}
#endif

#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
// The bf16 of the codes 0 ... 127 of a format, lower and upper bytes apart.
template <class Code>
struct Bf16Table {
  alignas(64) std::uint8_t low[128] = {};
  alignas(64) std::uint8_t high[128] = {};

  constexpr Bf16Table() {
    for (unsigned i = 0; i < 128; ++i) {
      const std::uint16_t bits = bf16(Code::format::decode(i)).bits;
      low[i] = static_cast<std::uint8_t>(bits);
      high[i] = static_cast<std::uint8_t>(bits >> 8);
    }
  }
};
template <class Code>
inline constexpr Bf16Table<Code> bf16_table{};

// Words of 64 codes, in two vectors: those of the lower and of the upper 8 bytes of each 16.
template <class Code>
void decode_words(__m512i codes, __m512i& first, __m512i& second) {
  const auto& table = bf16_table<Code>;
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(table.low), codes,
                                               _mm512_load_si512(table.low + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(table.high), codes,
                                                _mm512_load_si512(table.high + 64));
  const __m512i signs = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i with_sign =
      _mm512_ternarylogic_epi32(high, codes, signs, 0xF8);  // high | codes & signs
  first = _mm512_unpacklo_epi8(low, with_sign);
  second = _mm512_unpackhi_epi8(low, with_sign);
}
#endif

#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
// The bytes that make decode_words give the words of 64 codes in turn, where code i of the sequence
// is byte source(i) of the vector.
template <class F>
__m512i byte_order(F source) {
  alignas(64) std::uint8_t bytes[64];
  for (int q = 0; q < 8; ++q)
    for (int b = 0; b < 8; ++b)
      bytes[8 * q + b] = static_cast<std::uint8_t>(source((q % 2 * 4 + q / 2) * 8 + b));
  return _mm512_load_si512(bytes);
}

// For sixteen words of four codes: first the lower two codes of each word, then the upper two.
constexpr int pairs_of_words(int i) { return i % 32 / 2 * 4 + i / 32 * 2 + i % 2; }
#endif

// out[j] = the words of row[j] and next[j] for 32 columns.
template <class Code>
void decode_pairs(const Code* row, const Code* next, std::uint32_t* out) {
#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
  const __m512i order = byte_order([](int i) { return i / 2 + i % 2 * 32; });
  const auto half = [](const Code* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  };
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(half(row)), half(next), 1);
  __m512i first, second;
  decode_words<Code>(_mm512_permutexvar_epi8(order, both), first, second);
  _mm512_storeu_si512(out, first);
  _mm512_storeu_si512(out + 16, second);
#else
  for (int j = 0; j < 32; ++j)
    out[j] = bf16(float(row[j])).bits | static_cast<std::uint32_t>(bf16(float(next[j])).bits) << 16;
#endif
}

// to[j] = the number that from[j] stands for. bf16 holds each exactly.
template <class Code, class To>
void decode_row(const Code* from, To* to, Index n) {
  Index j = 0;
#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
  if constexpr (std::is_same_v<To, bf16>) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (; j + 64 <= n; j += 64) {
      __m512i first, second;
      decode_words<Code>(_mm512_permutexvar_epi64(order, _mm512_loadu_si512(from + j)), first,
                         second);
      _mm512_storeu_si512(to + j, first);
      _mm512_storeu_si512(to + j + 32, second);
    }
  }
#endif
#if defined(__AVX2__)
  using Lanes = std::conditional_t<Simd<float>::lanes == 16, Lanes16, Lanes8>;
  for (; j + Simd<float>::lanes <= n; j += Simd<float>::lanes) {
    typename Lanes::U8 codes;
    std::memcpy(&codes, from + j, sizeof codes);
    const auto bits = decode_bits<typename Code::format, Lanes>(
        __builtin_convertvector(codes, typename Lanes::U32));
    if constexpr (std::is_same_v<To, bf16>)
      narrow_bits<Lanes>(to + j, bits);
    else
      std::memcpy(to + j, &bits, sizeof bits);
  }
#endif
  for (; j < n; ++j) to[j] = To(float(from[j]));
}

}  // namespace dsv3::detail
