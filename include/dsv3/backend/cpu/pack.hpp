// Copies blocks of a product's operands into the order in which the micro-kernel reads them.
#pragma once

#include <algorithm>
#include <dsv3/backend/cpu/words.hpp>

namespace dsv3::detail {

// One operand of a product: element (i, k), i along the rows or columns of the output, k along the
// sum.
template <class T>
struct Operand {
  const T* data;
  Index stride;
  bool along_k;        // k is the contiguous dimension
  Index arranged = 0;  // the first so many i stand in panels (arrange.hpp)

  const T* at(Index i, Index k) const {
    return along_k ? data + i * stride + k : data + k * stride + i;
  }
  // From k on in the panel of `width` positions that begins at i; arranged operands have no gaps
  // between rows.
  const T* panel(Index i, Index k, Index width) const { return data + i * stride + k * width; }
};

// The elements of one step of a product, as one word: a float, or a pair of bf16 along K. Only such
// operands take the fast ways below; double goes element by element.
template <class Kernel>
inline constexpr bool by_words = Kernel::step * sizeof(typename Kernel::Packed) == 4;

// Words [0, n) of `count` rows of words, where word w of a row stands for elements
// [w * step, (w + 1) * step) along K at position i, and rows follow one another along i. Rows come
// as they lie, or by way of `buffer` [count][n] where a type must change.
template <class Kernel, class T>
const std::byte* words_along_k(const T* row, Index n, std::uint32_t* buffer) {
  if constexpr (std::is_same_v<T, typename Kernel::Packed>) {
    return reinterpret_cast<const std::byte*>(row);
  } else {
    widen_row(row, reinterpret_cast<typename Kernel::Packed*>(buffer), n * Kernel::step);
    return reinterpret_cast<const std::byte*>(buffer);
  }
}

// out[j] = the word of column j, from the rows of b at k ... k + step - 1; a row that is null
// counts as zero.
template <class Kernel, class T>
void words_across_k(const T* row, const T* next, Index n, std::uint32_t* out) {
  if constexpr (Kernel::step == 2 && is_fp8<T>) {
    constexpr Index most = 32;  // columns of a panel, rows of a block
    if (n == most && next) return decode_pairs(row, next, out);
    bf16 pair[2][most];
    widen_row(row, pair[0], n);
    if (next) widen_row(next, pair[1], n);
    interleave_row(pair[0], next ? pair[1] : nullptr, n, out);
  } else if constexpr (Kernel::step == 2) {
    interleave_row(row, next, n, out);
  } else {
    widen_row(row, reinterpret_cast<float*>(out), n);
  }
}

// Rows [i, i + rows) and [k, k + depth) of the left operand, row by row; a row is filled with zeros
// to whole steps.
template <class Kernel, class T>
void pack_left(const Operand<T>& a, Index i, Index rows, Index k, Index depth,
               typename Kernel::Packed* out, Index out_stride) {
  using P = typename Kernel::Packed;
  using A = typename Kernel::Sum;
  constexpr Index step = Kernel::step;
  const Index padded = (depth + step - 1) / step * step;
  if constexpr (by_words<Kernel>) {
    if (a.along_k) {
      for (Index r = 0; r < rows; ++r) {
        P* row = out + r * out_stride;
        if constexpr (std::is_same_v<T, P>)
          std::memcpy(row, a.at(i + r, k), static_cast<std::size_t>(depth) * sizeof(P));
        else
          widen_row(a.at(i + r, k), row, depth);
        for (Index s = depth; s < padded; ++s) row[s] = P(A(0));
      }
      return;
    }
    // Blocks of `lanes` words along K and 32 rows: first as words with K down, then transposed.
    constexpr Index lanes = Kernel::S::lanes, across = 32;
    std::uint32_t words[lanes][across];
    for (Index s = 0; s < padded; s += lanes * step)
      for (Index r = 0; r < rows; r += across) {
        const Index width = std::min(across, rows - r);
        const std::byte* from[lanes];
        for (Index w = 0; w < lanes; ++w) {
          const Index at = s + w * step;
          from[w] = reinterpret_cast<const std::byte*>(words[w]);
          if (at >= depth) {
            // Beyond the end: never read again, the row has room for it.
            from[w] = reinterpret_cast<const std::byte*>(words[0]);
          } else {
            const T* first = a.at(i + r, k + at);
            words_across_k<Kernel>(first, at + 1 < depth ? first + a.stride : nullptr, width,
                                   words[w]);
          }
        }
        transpose_words<lanes>(from, width,
                               reinterpret_cast<std::uint32_t*>(out + r * out_stride + s),
                               out_stride / step);
      }
  } else {
    for (Index r = 0; r < rows; ++r)
      for (Index s = 0; s < depth; ++s) out[r * out_stride + s] = P(A(*a.at(i + r, k + s)));
  }
}

#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
// Sixteen columns of codes along K, `depth` long (a multiple of 4): four codes at a time are moved
// as one word, and become words of pairs only after the transposition.
template <class Code>
void pack_codes_along_k(const Code* const (&columns)[16], Index depth, std::uint32_t* out,
                        Index out_stride) {
  constexpr Index line = 64, ahead = 8 * line;
  const __m512i pairs = byte_order(pairs_of_words);
  alignas(64) std::uint32_t words[line / 4][16];
  for (Index k = 0; k < depth; k += line) {
    const Index n = std::min(line, depth - k) / 4;
    const std::byte* from[16];
    for (int c = 0; c < 16; ++c) {
      from[c] = reinterpret_cast<const std::byte*>(columns[c] + k);
      __builtin_prefetch(from[c] + ahead, 0, 2);
    }
    transpose_words<16>(from, n, words[0], 16);
    for (Index w = 0; w < n; ++w) {
      __m512i first, second;
      decode_words<Code>(_mm512_permutexvar_epi8(pairs, _mm512_load_si512(words[w])), first,
                         second);
      std::uint32_t* to = out + (k / 2 + 2 * w) * out_stride;
      _mm512_storeu_si512(to, first);
      _mm512_storeu_si512(to + out_stride, second);
    }
  }
}
#endif

// Columns [j, j + columns) and [k, k + depth) of the right operand as one panel, filled with zeros
// to whole steps. What stands in the columns beyond is arbitrary.
template <class Kernel, class T>
void pack_right(const Operand<T>& b, Index j, Index columns, Index k, Index depth,
                typename Kernel::Packed* out) {
  using P = typename Kernel::Packed;
  using A = typename Kernel::Sum;
  constexpr Index lanes = Kernel::S::lanes, width = 2 * lanes, step = Kernel::step;
  if constexpr (by_words<Kernel>) {
    auto* words = reinterpret_cast<std::uint32_t*>(out);
    if (!b.along_k) {
      for (Index s = 0; s < depth; s += step) {
        const T* row = b.at(j, k + s);
        words_across_k<Kernel>(row, s + 1 < depth ? row + b.stride : nullptr, columns,
                               words + s / step * width);
      }
      return;
    }
#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
    if constexpr (is_fp8<T> && step == 2) {
      if (depth % 4 == 0) {
        for (Index half = 0; half < width; half += lanes) {
          const T* from[lanes];
          for (Index c = 0; c < lanes; ++c) from[c] = b.at(j + std::min(half + c, columns - 1), k);
          pack_codes_along_k(from, depth, words + half, width);
        }
        return;
      }
    }
#endif
    constexpr Index chunk = 64;  // words along K at a time, so that the buffer stays small
    std::uint32_t buffer[std::is_same_v<T, P> ? 1 : lanes][std::is_same_v<T, P> ? 1 : chunk];
    const Index whole = depth / step;
    for (Index half = 0; half < width; half += lanes)
      for (Index s = 0; s < whole; s += chunk) {
        const Index n = std::min(chunk, whole - s);
        const std::byte* from[lanes];
        for (Index c = 0; c < lanes; ++c) {  // a column that does not exist repeats the last one
          const Index column = std::min(half + c, columns - 1);
          from[c] = words_along_k<Kernel>(b.at(j + column, k + s * step), n,
                                          buffer[std::is_same_v<T, P> ? 0 : c]);
        }
        transpose_words<lanes>(from, n, words + s * width + half, width);
      }
    if (whole * step < depth)
      for (Index c = 0; c < width; ++c) {
        P* at = out + whole * step * width + c * step;
        at[0] = P(A(*b.at(j + std::min(c, columns - 1), k + depth - 1)));
        at[step - 1] = P(A(0));
      }
  } else {
    for (Index s = 0; s < depth; ++s)
      for (Index c = 0; c < width; ++c)
        out[s * width + c] = P(A(*b.at(j + std::min(c, columns - 1), k + s)));
  }
}

}  // namespace dsv3::detail
