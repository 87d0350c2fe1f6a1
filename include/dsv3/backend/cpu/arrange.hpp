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
#include <vector>

namespace dsv3::detail {

// The kernel that multiplies two operands of T.
template <class T>
using ArrangedKernel = KernelFor<T, T, float>;

// Whether four codes are moved as one word.
template <class T>
inline constexpr bool codes_by_four = is_fp8<T>&& ArrangedKernel<T>::step == 2 && Isa::vbmi;

template <class T>
constexpr Index arranged_unit() {
  return codes_by_four<T> ? 4 : ArrangedKernel<T>::step;
}

// Names the order above: what it depends on.
inline constexpr int arranged_order = static_cast<int>(2 * Simd<float>::lanes) * 16 +
                                      static_cast<int>(Bf16Kernel::step) * 2 + (Isa::vbmi ? 1 : 0);

// How many rows of a matrix stand in panels.
template <class T>
Index arranged_rows(Index rows, Index columns) {
  constexpr Index width = 2 * Simd<float>::lanes;
  return columns % arranged_unit<T>() == 0 ? rows / width * width : 0;
}

// Puts one panel of rows into that order, in place. `copy` is memory for it.
template <class T>
void arrange_panel(T* panel, Index columns, std::vector<std::byte>& copy) {
  constexpr Index lanes = Simd<float>::lanes, width = 2 * lanes, unit = arranged_unit<T>();
  const std::size_t bytes = static_cast<std::size_t>(width * columns) * sizeof(T);
  copy.resize(bytes);
  std::memcpy(copy.data(), panel, bytes);
  if constexpr (unit * sizeof(T) == 4) {
    auto* words = reinterpret_cast<std::uint32_t*>(panel);
    const Index row_bytes = columns * static_cast<Index>(sizeof(T)), n = row_bytes / 4;
    for (Index half = 0; half < width; half += lanes) {
      const std::byte* from[lanes];
      for (Index c = 0; c < lanes; ++c) from[c] = copy.data() + (half + c) * row_bytes;
      transpose_words<lanes>(from, n, words + half, width);
    }
#if defined(__AVX512BW__) && defined(__AVX512VBMI__)
    if constexpr (codes_by_four<T>) {
      const __m512i pairs = byte_order(pairs_of_words);
      for (Index w = 0; w < n * width; w += lanes)
        _mm512_storeu_si512(words + w,
                            _mm512_permutexvar_epi8(pairs, _mm512_loadu_si512(words + w)));
    }
#endif
  } else {
    const T* from = reinterpret_cast<const T*>(copy.data());
    for (Index k = 0; k < columns; k += unit)
      for (Index c = 0; c < width; ++c)
        for (Index i = 0; i < unit; ++i) *panel++ = from[c * columns + k + i];
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
