// Matrices of codes for the tests of products: random or small integers, rows apart, scales in
// either order.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/core/philox.hpp>
#include <vector>

namespace codes {

using namespace dsv3;

/// What codes and scales hold.
enum class Fill {
  any,       ///< every finite code, scales over 16 binades
  positive,  ///< the same without signs: products of these bound the sums of the others
  integers   ///< whole numbers up to 4 and scales that are powers of two: partial sums are exact
};

/// Groups of an operand of a product: along the rows or columns of the output, and along the sum.
/// 0 spans the whole extent.
struct Groups {
  Index i, k;
};

inline float whole_number(std::uint32_t word) { return static_cast<float>(word % 9) - 4; }

template <class C>
C random_code(std::uint32_t word, Fill fill) {
  if constexpr (std::is_same_v<C, double>) {
    return fill == Fill::integers ? double(whole_number(word)) : 2 * uniform(word) - 1;
  } else {
    C code;
    code.code = static_cast<std::uint8_t>(fill == Fill::positive ? word & 0x7F : word);
    if (!std::isfinite(float(code))) code.code &= 0xF0;
    return fill == Fill::integers ? C(whole_number(word)) : code;
  }
}

/// `matrices` matrices, one below the other in memory, with 3 elements between rows.
template <class C>
struct Codes {
  using Scale = accum_t<C>;
  std::vector<C> memory;
  std::vector<Scale> scale_memory;
  QuantizedStack<const C> stack;

  /// Scales lie column by column where `transposed`.
  Codes(Index matrices, Index rows, Index columns, Index group_rows, Index group_columns,
        std::uint64_t stream, Fill fill, bool transposed = false)
      : memory(static_cast<std::size_t>(matrices * rows * (columns + 3) + 1)) {
    const Index down = group_size(group_rows, rows), across = group_size(group_columns, columns);
    const Index n = matrices * groups_of(rows, down), m = groups_of(columns, across);
    Scales<const Scale> scales(nullptr, n, m);
    if (transposed) scales.strides[0] = 1, scales.strides[1] = n;
    scale_memory.resize(static_cast<std::size_t>(n * m));
    scales.data = scale_memory.data();
    View<const C, 3> view(memory.data() + 1, {matrices, rows, columns});
    view.strides[1] = columns + 3;
    view.strides[0] = rows * view.strides[1];
    stack = {view, scales, down, across};
    const Philox philox(3, stream);
    std::uint64_t at = 0;
    for (C& code : memory) code = random_code<C>(philox(at++).word[0], fill);
    for (Scale& scale : scale_memory) {
      const double u = uniform(philox(at++).word[1]);
      if (std::is_same_v<C, double>)
        scale = 1;
      else if (fill == Fill::integers)
        scale = Scale(std::ldexp(1.0, static_cast<int>(5 * u) - 2));
      else
        scale = Scale(std::exp2(16 * u - 8));
    }
  }

  Quantized<const C> matrix() const { return stack[0]; }
};

/// The left (i along the rows of the output) or the right operand of a product.
template <class C>
Codes<C> operand(Index matrices, Index i, Index k, bool columns_are_k, Groups groups,
                 std::uint64_t stream, Fill fill, bool transposed = false) {
  if (columns_are_k) return {matrices, i, k, groups.i, groups.k, stream, fill, transposed};
  return {matrices, k, i, groups.k, groups.i, stream, fill, transposed};
}

/// A dense output of whole numbers, so that what is added to is exact.
template <class T>
struct Out {
  std::vector<T> memory;
  View<T, 3> view;

  Out(Index matrices, Index rows, Index columns)
      : memory(static_cast<std::size_t>(matrices * rows * columns)),
        view(memory.data(), {matrices, rows, columns}) {
    const Philox philox(4, 1);
    std::uint64_t at = 0;
    for (T& x : memory) x = T(whole_number(philox(at++).word[0]));
  }
  View<T, 2> matrix() { return view[0]; }
  bool operator==(const Out& other) const {
    return memory.size() == other.memory.size() &&
           (memory.empty() ||
            std::memcmp(memory.data(), other.memory.data(), memory.size() * sizeof(T)) == 0);
  }
};

/// How many elements of `ours` are further from `theirs` than 1e-6 of `bound`, the sum of the
/// magnitudes of the scaled products: some 128 roundings of 2^-24, of either sign, within a
/// segment. A bf16 output may round to the other neighbour, 2^-7 of the value away. A float output
/// that is added to rounds once more.
template <class T>
Index beyond(const Out<T>& ours, const Out<T>& theirs, const Out<float>& bound) {
  Index count = 0;
  for (std::size_t i = 0; i < ours.memory.size(); ++i) {
    const double x = double(ours.memory[i]), y = double(theirs.memory[i]);
    const double rounding = std::is_same_v<T, bf16> ? 0x1p-7 * std::abs(y) : 0x1p-23 * std::abs(y);
    count += !(std::abs(x - y) <= 1e-6 * double(bound.memory[i]) + rounding);
  }
  return count;
}

/// Fills the workspace of each thread with NaN, so that nothing can be read from it unwritten.
inline void poison(Cpu& cpu) {
  for (int worker = 0; worker < cpu.threads(); ++worker)
    std::memset(cpu.workspace(worker), 0xFF, static_cast<std::size_t>(Cpu::workspace_bytes(1)));
}

}  // namespace codes
