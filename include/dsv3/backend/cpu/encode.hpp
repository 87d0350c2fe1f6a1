// Rows of numbers as FP8 codes, one scale for each group.
#pragma once

#include <algorithm>
#include <dsv3/backend/cpu/simd.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3::detail {

// The largest |x[j]|, NaN where there is one.
template <class T>
float largest_magnitude(const T* x, Index n) {
  Index j = 0;
  std::uint32_t bits = 0;
#if defined(__AVX512BW__)
  if constexpr (std::is_same_v<T, bf16>) {
    const __m512i mask = _mm512_set1_epi16(0x7FFF);
    __m512i most = _mm512_setzero_si512();
    for (; j + 32 <= n; j += 32)
      most = _mm512_max_epu16(most, _mm512_and_si512(_mm512_loadu_si512(x + j), mask));
    // In the upper and in the lower halves of words of 32 bits.
    const __m512i upper = _mm512_srli_epi32(most, 16);
    const __m512i lower = _mm512_and_si512(most, _mm512_set1_epi32(0xFFFF));
    bits = static_cast<std::uint32_t>(_mm512_reduce_max_epu32(_mm512_max_epu32(upper, lower)))
           << 16;
  } else {
    const __m512i mask = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i most = _mm512_setzero_si512();
    for (; j + 16 <= n; j += 16)
      most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_loadu_si512(x + j), mask));
    bits = _mm512_reduce_max_epu32(most);
  }
#endif
  for (; j < n; ++j) {
    const std::uint32_t size = magnitude_bits(float(x[j]));
    bits = size > bits ? size : bits;
  }
  return from_magnitude(bits);
}

#if defined(__AVX512BW__)
// Codes, as words of 32 bits, of 16 scaled values that are finite and not beyond the format's
// largest, by the arithmetic of NarrowFloat::encode.
template <class Format>
__m512i encode_vector(__m512 value) {
  const __m512i u = _mm512_castps_si512(value);
  const __m512i magnitude = _mm512_and_si512(u, _mm512_set1_epi32(0x7FFFFFFF));
  const __m512i exponent = _mm512_and_si512(u, _mm512_set1_epi32(0x7F800000));
  const __m512i binade =
      _mm512_max_epu32(exponent, _mm512_set1_epi32(static_cast<int>(Format::least_normal)));
  const __m512i anchor = _mm512_add_epi32(binade, _mm512_set1_epi32(Format::shift << 23));
  const __m512i sum = _mm512_castps_si512(
      _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(anchor)));
  const __m512i base =
      _mm512_sub_epi32(_mm512_srli_epi32(binade, Format::shift),
                       _mm512_set1_epi32(static_cast<int>(Format::least_normal >> Format::shift)));
  const __m512i code = _mm512_add_epi32(_mm512_sub_epi32(sum, anchor), base);
  const __m512i signs = _mm512_srli_epi32(u, 24);
  return _mm512_ternarylogic_epi32(code, signs,
                                   _mm512_set1_epi32(static_cast<int>(Format::sign_bit)), 0xF8);
}

inline __m512 load_vector(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 load_vector(const bf16* x) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Asks for what lies `ahead` elements further on, too.
template <class Code, class T>
Index encode_vectors(const T* x, Code* codes, Index n, float scale, Index ahead) {
  const __m512 s = _mm512_set1_ps(scale);
  const auto words = [&](Index at) {
    __builtin_prefetch(x + at + ahead, 0, 3);
    return encode_vector<typename Code::format>(_mm512_div_ps(load_vector(x + at), s));
  };
  Index j = 0;
  // Packing interleaves the vectors by quarters; the permutation puts them in a row again.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (; j + 64 <= n; j += 64) {
    const __m512i lower = _mm512_packus_epi32(words(j), words(j + 16));
    const __m512i upper = _mm512_packus_epi32(words(j + 32), words(j + 48));
    _mm512_storeu_si512(codes + j,
                        _mm512_permutexvar_epi32(order, _mm512_packus_epi16(lower, upper)));
  }
  for (; j + 16 <= n; j += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + j), _mm512_cvtepi32_epi8(words(j)));
  return j;
}
#endif

// codes[j] = Code(x[j] / scale), where no |x[j]| is beyond the largest code's value.
template <class Code, class T>
void encode_group(const T* x, Code* codes, Index n, float scale, [[maybe_unused]] Index ahead) {
  Index j = 0;
#if defined(__AVX512BW__)
  if (scale - scale == 0) j = encode_vectors(x, codes, n, scale, ahead);  // else: NaN
#endif
  for (; j < n; ++j) codes[j] = encode_scaled<Code>(float(x[j]), scale);
}

// One row in groups of `width`: its scales, and its codes. Scales come first for many groups at a
// time, so that no group waits for the division of its own. The next row lies `ahead` elements on.
template <class Code, class T>
void quantize_groups(const T* x, Index n, Index width, const ScaleRule& rule, float* scales,
                     Index stride, Code* codes, Index ahead) {
  constexpr Index most = 64;
  float amax[most], scale[most];
  for (Index first = 0; first * width < n; first += most) {
    const Index left = groups_of(n, width) - first, groups = left < most ? left : most;
    const auto size = [&](Index g) { return std::min(width, n - (first + g) * width); };
    for (Index g = 0; g < groups; ++g)
      amax[g] = largest_magnitude(x + (first + g) * width, size(g));
    for (Index g = 0; g < groups; ++g) scale[g] = rule.scale<Code>(amax[g]);
    for (Index g = 0; g < groups; ++g) {
      const Index j = (first + g) * width;
      scales[(first + g) * stride] = scale[g];
      encode_group(x + j, codes + j, size(g), scale[g], ahead);
    }
  }
}

}  // namespace dsv3::detail
