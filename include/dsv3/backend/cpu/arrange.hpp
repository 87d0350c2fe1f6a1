// Weights in the order in which the micro-kernel reads them, so that no product has to pack them.
//
// Rows are taken together by panels, 2 lanes wide; within a panel the elements are
//
//     [columns / unit][2 lanes][unit]
//
// where a unit is one step of the kernel along K. With AVX-512 VBMI units of codes are four columns
// long, and every 64 of them in the order of decode_words. Rows beyond the last whole panel, and
// matrices whose columns are not a multiple of the unit, lie as they did.
#pragma once

#include <dsv3/backend/cpu/pack.hpp>

namespace dsv3::detail {

// The kernel that multiplies two operands of T.
template <class T>
using ArrangedKernel = KernelFor<T, T, float>;

// What is arranged.
template <class T>
concept Arrangeable = std::is_same_v<T, float> || std::is_same_v<T, bf16> || is_fp8<T>;

// Whether four codes are moved as one word.
template <class T>
inline constexpr bool codes_by_four = is_fp8<T>&& ArrangedKernel<T>::step == 2 && Isa::vbmi;

template <class T>
constexpr Index arranged_unit() {
  return codes_by_four<T> ? 4 : ArrangedKernel<T>::step;
}

// Names the order above: what it depends on.
inline constexpr int order_of_panels = static_cast<int>(2 * Simd<float>::lanes) * 16 +
                                       static_cast<int>(Bf16Kernel::step) * 2 + (Isa::vbmi ? 1 : 0);

// How many rows of a matrix stand in panels.
template <class T>
Index arranged_rows(Index rows, Index columns) {
  constexpr Index width = 2 * Simd<float>::lanes;
  return columns % arranged_unit<T>() == 0 ? rows / width * width : 0;
}

// Puts the rows of one panel, which lie at `from` without gaps, into that order.
template <class T>
void arrange_panel(const std::byte* from, T* panel, Index columns) {
  constexpr Index lanes = Simd<float>::lanes, width = 2 * lanes, unit = arranged_unit<T>();
  const Index row_bytes = columns * static_cast<Index>(sizeof(T));
  if constexpr (unit * sizeof(T) == 4) {
    auto* words = reinterpret_cast<std::uint32_t*>(panel);
    const Index n = row_bytes / 4;
    [[maybe_unused]] const bool is_aligned = reinterpret_cast<std::uintptr_t>(panel) % 64 == 0;
    // Sixteen words of both halves at a time: what is written follows what was written.
    for (Index w = 0; w < n; w += 16)
      for (Index half = 0; half < width; half += lanes) {
        const std::byte* rows[lanes];
        for (Index c = 0; c < lanes; ++c) rows[c] = from + (half + c) * row_bytes + 4 * w;
        const Index count = std::min<Index>(16, n - w);
        std::uint32_t* to = words + w * width + half;
#if defined(__AVX512F__) && defined(__AVX512BW__)
        if (count == 16 && is_aligned) {
          // Past the caches: weights are many, and are read later.
          __m512i block[16];
          transpose_block<codes_by_four<T>>(rows, 0, block);
          for (int i = 0; i < 16; ++i)
            _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i * width), block[i]);
          continue;
        }
#endif
        transpose_words<lanes>(rows, count, to, width);
#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
        if constexpr (codes_by_four<T>)
          for (Index i = 0; i < count; ++i, to += width)
            _mm512_storeu_si512(
                to, _mm512_permutexvar_epi8(byte_order(pairs_of_words), _mm512_loadu_si512(to)));
#endif
      }
#if defined(__AVX512F__) && defined(__AVX512BW__)
    _mm_sfence();  // such stores are ordered by nothing else, and other threads will read
#endif
  } else {
    for (Index k = 0; k < columns; k += unit)
      for (Index c = 0; c < width; ++c, panel += unit)
        std::memcpy(panel, from + c * row_bytes + k * static_cast<Index>(sizeof(T)),
                    unit * sizeof(T));
  }
}

// Columns [k, k + depth) of the panel at row j of an arranged operand, as the micro-kernel reads
// them.
template <class Kernel, class T>
void unpack_arranged(const Operand<T>& b, Index j, Index k, Index depth,
                     typename Kernel::Packed* out) {
  constexpr Index width = 2 * Simd<float>::lanes;
  const T* from = b.panel(j, k, width);
#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
  if constexpr (codes_by_four<T> && std::is_same_v<typename Kernel::Packed, bf16>) {
    // Four columns of 32 rows are two vectors, and become two steps of two vectors each.
    for (Index i = 0; i < depth; i += 4, from += 4 * width, out += 4 * width)
      for (int half = 0; half < 2; ++half) {
        __m512i first, second;
        decode_words<T>(_mm512_loadu_si512(from + 64 * half), first, second);
        _mm512_storeu_si512(out + 32 * half, first);
        _mm512_storeu_si512(out + 2 * width + 32 * half, second);
      }
    return;
  }
#endif
  widen_row(from, out, depth * width);
}

}  // namespace dsv3::detail
