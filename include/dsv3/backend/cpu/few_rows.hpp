// Products of a few rows, as in decoding: weights are read once, along their rows, and never become
// a panel. The sums are those of micro_kernel in the same order, so that an element has the same
// bits whatever else is computed beside it.
#pragma once

#include <dsv3/backend/cpu/arrange.hpp>
#include <dsv3/backend/cpu/micro_kernel.hpp>

#ifdef __CUDACC__
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675  // it does not know g++'s pragmas, which it hands on
#endif

namespace dsv3::detail {

// The most rows that are multiplied so.
constexpr Index few_rows = 8;

// How many bytes before it is read an arranged panel is asked for: what lies behind one panel is
// the next.
constexpr Index arranged_ahead = 8192;

// The lines of a panel of columns along K in the order in which they are read, and those of the
// panel after it, which lies behind it: what is read soon is asked for now.
struct PanelStream {
  static constexpr Index ahead = 8, line = 64;
  Index lines, within, beyond;  // of each column; bytes to add, before and after the column's end

  template <class T>
  PanelStream(const Operand<T>& b, Index columns, Index depth)
      : lines((depth * static_cast<Index>(sizeof(T)) + line - 1) / line),
        within(ahead * line),
        beyond(columns * b.stride * static_cast<Index>(sizeof(T)) + (ahead - lines) * line) {}

  // For line `at` of a column, which is at `p`.
  void ask(const std::byte* p, Index at) const {
    __builtin_prefetch(p + (at + ahead < lines ? within : beyond), 0, 2);
  }

  // The first lines of columns that nobody asked for.
  template <class T>
  static void begin(const Operand<T>& b, Index j, Index columns, Index k) {
    for (Index at = 0; at < ahead; ++at)
      for (Index c = 0; c < columns; ++c)
        __builtin_prefetch(reinterpret_cast<const std::byte*>(b.at(j + c, k)) + at * line, 0, 2);
  }
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VBMI__)
// A few rows against 32 columns of codes along K, which never become a panel: the sums of
// micro_kernel in the same order.
template <int Rows, class Code>
void multiply_codes(const Operand<Code>& b, Index j, Index columns, Index k, Index depth,
                    Index segment, Index rows, const bf16* a, Index a_stride,
                    const ScaledTarget<Bf16Kernel>& target) {
  constexpr Index line = 64;
  const PanelStream stream(b, 32, depth);
  const __m512i pairs = byte_order(pairs_of_words);
  const Code* column[32];
  for (Index c = 0; c < 32; ++c) column[c] = b.at(j + std::min(c, columns - 1), k);
  const bf16* left[Rows];
  for (int r = 0; r < Rows; ++r) left[r] = a + std::min<Index>(r, rows - 1) * a_stride;
  alignas(64) std::uint32_t words[2][line / 4][16];
  for (Index first = 0; first < depth; first += segment) {
    const Index end = std::min(depth, first + segment);
    __m512 sum[Rows][2];
    for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    Index at = first;
    for (; at + line <= end; at += line) {
      __m512i block[2][16];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const std::byte* from[16];
        for (int c = 0; c < 16; ++c) {
          from[c] = reinterpret_cast<const std::byte*>(column[16 * half + c] + at);
          stream.ask(from[c], at / line);
        }
        transpose_halves(from, block[half]);
      }
      // Both halves in turn: each sum waits for its last addition.
#pragma GCC unroll 16
      for (int w = 0; w < 16; ++w) {
        __m512i pair[2][2];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
          decode_words<Code>(block[half][w], pair[half][0], pair[half][1]);
#pragma GCC unroll 2
        for (int step = 0; step < 2; ++step)
#pragma GCC unroll 8
          for (int r = 0; r < Rows; ++r) {
            const __m512i x = Bf16Kernel::broadcast(left[r] + at + 4 * w + 2 * step);
            sum[r][0] = Bf16Kernel::multiply_add(x, pair[0][step], sum[r][0]);
            sum[r][1] = Bf16Kernel::multiply_add(x, pair[1][step], sum[r][1]);
          }
      }
    }
    for (; at < end; at += line) {
      const Index n = (end - at) / 4;
      for (int half = 0; half < 2; ++half) {
        const std::byte* from[16];
        for (int c = 0; c < 16; ++c) {
          from[c] = reinterpret_cast<const std::byte*>(column[16 * half + c] + at);
          stream.ask(from[c], at / line);
        }
        transpose_words<16>(from, n, words[half][0], 16);
      }
      for (Index w = 0; w < n; ++w) {
        __m512i pair[2][2];
        for (int half = 0; half < 2; ++half)
          decode_words<Code>(_mm512_permutexvar_epi8(pairs, _mm512_load_si512(words[half][w])),
                             pair[half][0], pair[half][1]);
        for (int step = 0; step < 2; ++step)
#pragma GCC unroll 8
          for (int r = 0; r < Rows; ++r) {
            const __m512i x = Bf16Kernel::broadcast(left[r] + at + 4 * w + 2 * step);
            sum[r][0] = Bf16Kernel::multiply_add(x, pair[0][step], sum[r][0]);
            sum[r][1] = Bf16Kernel::multiply_add(x, pair[1][step], sum[r][1]);
          }
      }
    }
    const auto to = target.segment(first / segment);
    for (int r = 0; r < Rows; ++r)
      if (r < rows) to.put(r, sum[r][0], sum[r][1]);
  }
}
#endif

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VBMI__)
// The same against an arranged panel.
template <int Rows, class Code>
void multiply_arranged_codes(const Code* panel, Index depth, Index segment, Index rows,
                             const bf16* a, Index a_stride,
                             const ScaledTarget<Bf16Kernel>& target) {
  const bf16* left[Rows];
  for (int r = 0; r < Rows; ++r) left[r] = a + std::min<Index>(r, rows - 1) * a_stride;
  for (Index first = 0; first < depth; first += segment) {
    const Index end = std::min(depth, first + segment);
    __m512 sum[Rows][2];
    for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (Index at = first; at < end; at += 4, panel += 128) {
      __m512i pair[2][2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const Code* codes = panel + 64 * half;
        __builtin_prefetch(codes + arranged_ahead, 0, 2);
        decode_words<Code>(_mm512_loadu_si512(codes), pair[half][0], pair[half][1]);
      }
#pragma GCC unroll 2
      for (int step = 0; step < 2; ++step)
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          const __m512i x = Bf16Kernel::broadcast(left[r] + at + 2 * step);
          sum[r][0] = Bf16Kernel::multiply_add(x, pair[0][step], sum[r][0]);
          sum[r][1] = Bf16Kernel::multiply_add(x, pair[1][step], sum[r][1]);
        }
    }
    const auto to = target.segment(first / segment);
    for (int r = 0; r < Rows; ++r)
      if (r < rows) to.put(r, sum[r][0], sum[r][1]);
  }
}
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
// A few rows against the columns [j, j + columns) along K. Rows beyond `rows` repeat the last one.
template <class Kernel, int Rows>
void multiply_words(const Operand<typename Kernel::Packed>& b, Index j, Index columns, Index k,
                    Index depth, Index rows, const typename Kernel::Packed* a, Index a_stride,
                    const PlainTarget<Kernel>& target) {
  using S = typename Kernel::S;
  using P = typename Kernel::Packed;
  constexpr Index lanes = S::lanes, width = 2 * lanes, step = Kernel::step, line = 16;
  const Index whole = depth / step;
  const PanelStream stream(b, width, depth);
  const std::byte* column[width];
  for (Index c = 0; c < width; ++c)
    column[c] = reinterpret_cast<const std::byte*>(b.at(j + std::min(c, columns - 1), k));
  const P* left[Rows];
  for (int r = 0; r < Rows; ++r) left[r] = a + std::min<Index>(r, rows - 1) * a_stride;
  typename S::Vector sum[Rows][2];
  for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = S::zero();
  Index s = 0;
  for (; s + line <= whole; s += line) {
    __m512i block[2][16];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const std::byte* from[16];
      for (Index c = 0; c < 16; ++c) {
        from[c] = column[16 * half + c] + 4 * s;
        stream.ask(from[c], s / line);
      }
      transpose_block(from, 0, block[half]);
    }
    // Both halves in turn: each sum waits for its last addition.
#pragma GCC unroll 16
    for (int w = 0; w < 16; ++w) {
      const auto b0 = Kernel::panel_of(block[0][w]), b1 = Kernel::panel_of(block[1][w]);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const auto x = Kernel::broadcast(left[r] + (s + w) * step);
        sum[r][0] = Kernel::multiply_add(x, b0, sum[r][0]);
        sum[r][1] = Kernel::multiply_add(x, b1, sum[r][1]);
      }
    }
  }
  alignas(64) std::uint32_t words[line][width];
  const auto multiply = [&](Index first, Index n) {
    for (Index w = 0; w < n; ++w) {
      const P* panel = reinterpret_cast<const P*>(words[w]);
      const auto b0 = Kernel::panel(panel), b1 = Kernel::panel(panel + lanes * step);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const auto x = Kernel::broadcast(left[r] + (first + w) * step);
        sum[r][0] = Kernel::multiply_add(x, b0, sum[r][0]);
        sum[r][1] = Kernel::multiply_add(x, b1, sum[r][1]);
      }
    }
  };
  for (; s < whole; s += line) {
    const Index n = std::min(line, whole - s);
    for (Index half = 0; half < width; half += lanes) {
      const std::byte* from[lanes];
      for (Index c = 0; c < lanes; ++c) {
        from[c] = column[half + c] + 4 * s;
        stream.ask(from[c], s / line);
      }
      transpose_words<lanes>(from, n, &words[0][half], width);
    }
    multiply(s, n);
  }
  if (whole * step < depth) {  // the last element of a pair has no partner
    for (Index c = 0; c < width; ++c) {
      std::uint16_t bits;
      std::memcpy(&bits, column[c] + 4 * whole, sizeof bits);
      words[0][c] = bits;
    }
    multiply(whole, 1);
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
    if (r < rows) target.put(r, sum[r][0], sum[r][1]);
}
#endif

// A few rows against an arranged panel.
template <class Kernel, int Rows>
void multiply_arranged_words(const typename Kernel::Packed* panel, Index depth, Index rows,
                             const typename Kernel::Packed* a, Index a_stride,
                             const PlainTarget<Kernel>& target) {
  constexpr Index lanes = Kernel::S::lanes, step = Kernel::step;
  const typename Kernel::Packed* left[Rows];
  for (int r = 0; r < Rows; ++r) left[r] = a + std::min<Index>(r, rows - 1) * a_stride;
  typename Kernel::S::Vector sum[Rows][2];
  for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = Kernel::S::zero();
  for (Index at = 0; at < depth; at += step, panel += 2 * lanes * step) {
    const char* soon = reinterpret_cast<const char*>(panel) + arranged_ahead;
    __builtin_prefetch(soon, 0, 2);
    __builtin_prefetch(soon + 64, 0, 2);
    const auto b0 = Kernel::panel(panel), b1 = Kernel::panel(panel + lanes * step);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const auto x = Kernel::broadcast(left[r] + at);
      sum[r][0] = Kernel::multiply_add(x, b0, sum[r][0]);
      sum[r][1] = Kernel::multiply_add(x, b1, sum[r][1]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    if (r < rows) target.put(r, sum[r][0], sum[r][1]);
}

// Calls run with the smallest of 1, 2, 4 and 8 that holds `rows`, as a constant.
template <class F>
bool with_few_rows(Index rows, F run) {
  if (rows == 1)
    run(std::integral_constant<int, 1>{});
  else if (rows == 2)
    run(std::integral_constant<int, 2>{});
  else if (rows <= 4)
    run(std::integral_constant<int, 4>{});
  else
    run(std::integral_constant<int, 8>{});
  return true;
}

// Multiplies without a panel where that is faster: returns whether it did.
template <class Kernel, class TB>
bool multiply_unpacked([[maybe_unused]] const Operand<TB>& b, [[maybe_unused]] Index j,
                       [[maybe_unused]] Index columns, [[maybe_unused]] Index k,
                       [[maybe_unused]] Index depth, [[maybe_unused]] Index rows,
                       [[maybe_unused]] const typename Kernel::Packed* a,
                       [[maybe_unused]] Index a_stride,
                       [[maybe_unused]] const PlainTarget<Kernel>& target) {
  if constexpr (std::is_same_v<TB, typename Kernel::Packed>)
    if (rows <= few_rows && j < b.arranged)
      return with_few_rows(rows, [&](auto count) {
        multiply_arranged_words<Kernel, count>(b.panel(j, k, 2 * Kernel::S::lanes), depth, rows, a,
                                               a_stride, target);
      });
#if defined(__AVX512F__) && defined(__AVX512BW__)
  if constexpr (by_words<Kernel> && std::is_same_v<TB, typename Kernel::Packed>) {
    if (rows > few_rows || !b.along_k) return false;
    return with_few_rows(rows, [&](auto count) {
      multiply_words<Kernel, count>(b, j, columns, k, depth, rows, a, a_stride, target);
    });
  }
#endif
  return false;
}
template <class Kernel, class TB>
bool multiply_unpacked([[maybe_unused]] const Operand<TB>& b, [[maybe_unused]] Index j,
                       [[maybe_unused]] Index columns, [[maybe_unused]] Index k,
                       [[maybe_unused]] Index depth, [[maybe_unused]] Index segment,
                       [[maybe_unused]] Index rows,
                       [[maybe_unused]] const typename Kernel::Packed* a,
                       [[maybe_unused]] Index a_stride,
                       [[maybe_unused]] const ScaledTarget<Kernel>& target) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VBMI__)
  if constexpr (is_fp8<TB>) {
    if (rows > few_rows || !b.along_k || depth % 4 != 0) return false;
    if (j < b.arranged)
      return with_few_rows(rows, [&](auto count) {
        multiply_arranged_codes<count>(b.panel(j, k, 32), depth, segment, rows, a, a_stride,
                                       target);
      });
    return with_few_rows(rows, [&](auto count) {
      multiply_codes<count>(b, j, columns, k, depth, segment, rows, a, a_stride, target);
    });
  }
#endif
  return false;
}

}  // namespace dsv3::detail

#ifdef __CUDACC__
#pragma nv_diagnostic pop
#endif
