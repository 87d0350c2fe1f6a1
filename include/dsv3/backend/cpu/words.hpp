// Moves rows of elements: between bf16 and float, in pairs, and transposed.
#pragma once

#include <dsv3/backend/cpu/simd.hpp>
#include <utility>

namespace dsv3::detail {

// to[j] = T(from[j]).
template <class A, class T>
void narrow_row(const A* from, T* to, Index n) {
  Index j = 0;
  if constexpr (std::is_same_v<T, bf16>)
    for (; j + Simd<A>::lanes <= n; j += Simd<A>::lanes)
      Simd<A>::narrow(to + j, Simd<A>::load(from + j));
  for (; j < n; ++j) to[j] = T(from[j]);
}

// to[j] = A(from[j]).
template <class A, class T>
void widen_row(const T* from, A* to, Index n) {
  Index j = 0;
  if constexpr (std::is_same_v<A, float> && (std::is_same_v<T, bf16> || std::is_same_v<T, float>))
    for (; j + Simd<A>::lanes <= n; j += Simd<A>::lanes)
      Simd<A>::store(to + j, Simd<A>::load(from + j));
  for (; j < n; ++j) to[j] = A(from[j]);
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

// Four words at offset k of each row j, j + 4, j + 8, ...
template <Index lanes>
typename Words<lanes>::Vector load_quarters(const std::uint32_t* const* rows, Index k) {
  if constexpr (lanes == 4) {
    typename Words<4>::Vector v;
    std::memcpy(&v, rows[0] + k, sizeof v);
    return v;
  } else {
    const auto low = load_quarters<lanes / 2>(rows, k);
    const auto high = load_quarters<lanes / 2>(rows + lanes / 2, k);
    return [&]<std::size_t... i>(std::index_sequence<i...>) {
      return __builtin_shufflevector(low, high, static_cast<int>(i)...);
    }
    (std::make_index_sequence<static_cast<std::size_t>(lanes)>());
  }
}

// Within each quarter of 4 words, groups of `size` words of a and b in turn: the first halves of
// the quarters, or the second ones.
template <Index lanes, int size, bool second, class Vector>
Vector zip(Vector a, Vector b) {
  constexpr auto index = [](int i) {
    const int quarter = i / 4 * 4, group = i % 4 / size;
    const int from = quarter + (second ? 2 : 0) + group / 2 * size + i % size;
    return from + (group % 2 ? static_cast<int>(lanes) : 0);
  };
  return [&]<std::size_t... i>(std::index_sequence<i...>) {
    return __builtin_shufflevector(a, b, index(static_cast<int>(i))...);
  }
  (std::make_index_sequence<static_cast<std::size_t>(lanes)>());
}

// out[k * stride + r] = rows[r][k] for `lanes` rows r and k in [0, n).
template <Index lanes>
void transpose_words(const std::uint32_t* const (&rows)[lanes], Index n, std::uint32_t* out,
                     Index stride) {
  Index k = 0;
  for (; k + 4 <= n; k += 4) {
    const auto a = load_quarters<lanes>(rows, k), b = load_quarters<lanes>(rows + 1, k);
    const auto c = load_quarters<lanes>(rows + 2, k), d = load_quarters<lanes>(rows + 3, k);
    const auto ab = zip<lanes, 1, false>(a, b), ab2 = zip<lanes, 1, true>(a, b);
    const auto cd = zip<lanes, 1, false>(c, d), cd2 = zip<lanes, 1, true>(c, d);
    const typename Words<lanes>::Vector columns[] = {
        zip<lanes, 2, false>(ab, cd), zip<lanes, 2, true>(ab, cd), zip<lanes, 2, false>(ab2, cd2),
        zip<lanes, 2, true>(ab2, cd2)};
    for (Index i = 0; i < 4; ++i)
      std::memcpy(out + (k + i) * stride, &columns[i], sizeof columns[i]);
  }
  for (; k < n; ++k)
    for (Index r = 0; r < lanes; ++r) out[k * stride + r] = rows[r][k];
}

}  // namespace dsv3::detail
