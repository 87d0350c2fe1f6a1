// Moves rows of elements: between bf16 and float, in pairs, and transposed.
#pragma once

#include <dsv3/backend/cpu/decode.hpp>

namespace dsv3::detail {

// to[j] = T(from[j]).
template <class A, class T>
void narrow_row(const A* from, T* to, Index n) {
  Index j = 0;
  if constexpr (std::is_same_v<T, bf16>)
    for (; j + Simd<A>::lanes <= n; j += Simd<A>::lanes)
      Simd<A>::narrow(to + j, Simd<A>::load(from + j));
  if constexpr (std::is_same_v<T, A>)
    for (; j + Simd<A>::lanes <= n; j += Simd<A>::lanes)
      Simd<A>::store(to + j, Simd<A>::load(from + j));
  for (; j < n; ++j) to[j] = T(from[j]);
}

// to[j] = A(from[j]).
template <class A, class T>
void widen_row(const T* from, A* to, Index n) {
  if constexpr (is_fp8<T>) {
    decode_row(from, to, n);
  } else {
    Index j = 0;
    if constexpr (std::is_same_v<A, float> && (std::is_same_v<T, bf16> || std::is_same_v<T, float>))
      for (; j + Simd<A>::lanes <= n; j += Simd<A>::lanes)
        Simd<A>::store(to + j, Simd<A>::load(from + j));
    for (; j < n; ++j) to[j] = A(from[j]);
  }
}

// sum[j] = A(to[j]) + sum[j].
template <class A, class T>
void add_row(const T* to, A* sum, Index n) {
  Index j = 0;
  if constexpr (std::is_same_v<A, float> && (std::is_same_v<T, bf16> || std::is_same_v<T, float>))
    for (; j + Simd<A>::lanes <= n; j += Simd<A>::lanes)
      Simd<A>::store(sum + j, Simd<A>::add(Simd<A>::load(to + j), Simd<A>::load(sum + j)));
  for (; j < n; ++j) sum[j] = A(to[j]) + sum[j];
}

// Vectors of 32-bit words, and their halves.
template <Index lanes>
struct Words;
template <>
struct Words<4> {
  using Vector [[gnu::vector_size(16)]] = std::uint32_t;
};
template <>
struct Words<8> {
  using Vector [[gnu::vector_size(32)]] = std::uint32_t;
};
template <>
struct Words<16> {
  using Vector [[gnu::vector_size(64)]] = std::uint32_t;
};

// out[j] = the pair (row[j], next[j]), or (row[j], 0) where next is null.
inline void interleave_row(const bf16* row, const bf16* next, Index n, std::uint32_t* out) {
  Index j = 0;
#if defined(__AVX2__)
  constexpr Index lanes = Simd<float>::lanes;
  using Lanes = std::conditional_t<lanes == 16, Lanes16, Lanes8>;
  for (; next && j + lanes <= n; j += lanes) {
    const auto pair = widen_bits<Lanes>(row + j) >> 16 | widen_bits<Lanes>(next + j);
    std::memcpy(out + j, &pair, sizeof pair);
  }
#endif
  for (; j < n; ++j)
    out[j] = row[j].bits | static_cast<std::uint32_t>(next ? next[j].bits : 0) << 16;
}

// Lane i is lane index(i) of a followed by b. The lanes are written out, because nvcc's front end
// loses a parameter pack inside a builtin.
template <Index lanes, class Vector, class F>
auto shuffle(Vector a, Vector b, F index) {
  if constexpr (lanes == 4)
    return __builtin_shufflevector(a, b, index(0), index(1), index(2), index(3));
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(a, b, index(0), index(1), index(2), index(3), index(4), index(5),
                                   index(6), index(7));
  else
    return __builtin_shufflevector(a, b, index(0), index(1), index(2), index(3), index(4), index(5),
                                   index(6), index(7), index(8), index(9), index(10), index(11),
                                   index(12), index(13), index(14), index(15));
}

// Four words at offset k of each row j, j + 4, j + 8, ... Rows are bytes: pairs of bf16 lie at any
// multiple of 2.
template <Index lanes>
typename Words<lanes>::Vector load_quarters(const std::byte* const* rows, Index k) {
  if constexpr (lanes == 4) {
    typename Words<4>::Vector v;
    std::memcpy(&v, rows[0] + 4 * k, sizeof v);
    return v;
  } else {
    return shuffle<lanes>(load_quarters<lanes / 2>(rows, k),
                          load_quarters<lanes / 2>(rows + lanes / 2, k), [](int i) { return i; });
  }
}

// Within each quarter of 4 words, groups of `size` words of a and b in turn: the first halves of
// the quarters, or the second ones.
template <Index lanes, int size, bool second, class Vector>
Vector zip(Vector a, Vector b) {
  return shuffle<lanes>(a, b, [](int i) {
    const int quarter = i / 4 * 4, group = i % 4 / size;
    const int from = quarter + (second ? 2 : 0) + group / 2 * size + i % size;
    return from + (group % 2 ? static_cast<int>(lanes) : 0);
  });
}

#if defined(__AVX512F__) && defined(__AVX512BW__)
// out[k] = word k of each of 16 rows, for 16 words. Whole cache lines are read, each once: rows may
// lie any power of two apart. With `halves` the words of four rows stand as their four lower
// halves, then their four upper ones. Always in place: a call would send the words through memory.
template <bool halves = false>
[[gnu::always_inline]] inline void transpose_block(const std::byte* const (&rows)[16], Index k,
                                                   __m512i (&out)[16]) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_si512(rows[r] + 4 * k);
  if constexpr (halves) {
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) {  // half words of two rows
      b[r] = _mm512_unpacklo_epi16(a[r], a[r + 1]);
      b[r + 1] = _mm512_unpackhi_epi16(a[r], a[r + 1]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {  // of four
      a[r] = _mm512_unpacklo_epi32(b[r], b[r + 2]);
      a[r + 1] = _mm512_unpackhi_epi32(b[r], b[r + 2]);
      a[r + 2] = _mm512_unpacklo_epi32(b[r + 1], b[r + 3]);
      a[r + 3] = _mm512_unpackhi_epi32(b[r + 1], b[r + 3]);
    }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) {  // words of two rows
      b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
      b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {  // of four
      a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
      a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
      a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
      a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // quarters of eight, then of sixteen
    const __m512i even = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xDD);
    const __m512i even2 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
    const __m512i odd2 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xDD);
    out[i] = _mm512_shuffle_i32x4(even, even2, 0x88);
    out[8 + i] = _mm512_shuffle_i32x4(even, even2, 0xDD);
    out[4 + i] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
    out[12 + i] = _mm512_shuffle_i32x4(odd, odd2, 0xDD);
  }
}

// The same as a call: where the words are decoded next, registers are too few for both.
[[gnu::noinline]] inline void transpose_halves(const std::byte* const (&rows)[16],
                                               __m512i (&out)[16]) {
  transpose_block<true>(rows, 0, out);
}
#endif

// out[k * stride + r] = word k of row r for `lanes` rows r and k in [0, n).
template <Index lanes>
void transpose_words(const std::byte* const (&rows)[lanes], Index n, std::uint32_t* out,
                     Index stride) {
  Index k = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
  if constexpr (lanes == 16)
    for (; k + 16 <= n; k += 16) {
      __m512i words[16];
      transpose_block(rows, k, words);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + (k + i) * stride, words[i]);
    }
#endif
  for (; k + 4 <= n; k += 4) {
    const auto a = load_quarters<lanes>(rows, k), b = load_quarters<lanes>(rows + 1, k);
    const auto c = load_quarters<lanes>(rows + 2, k), d = load_quarters<lanes>(rows + 3, k);
    const auto ab = zip<lanes, 1, false>(a, b), ab2 = zip<lanes, 1, true>(a, b);
    const auto cd = zip<lanes, 1, false>(c, d), cd2 = zip<lanes, 1, true>(c, d);
    auto put = [&](Index column, auto words) {
      std::memcpy(out + (k + column) * stride, &words, sizeof words);
    };
    put(0, zip<lanes, 2, false>(ab, cd));
    put(1, zip<lanes, 2, true>(ab, cd));
    put(2, zip<lanes, 2, false>(ab2, cd2));
    put(3, zip<lanes, 2, true>(ab2, cd2));
  }
  for (; k < n; ++k)
    for (Index r = 0; r < lanes; ++r) std::memcpy(out + k * stride + r, rows[r] + 4 * k, 4);
}

}  // namespace dsv3::detail
