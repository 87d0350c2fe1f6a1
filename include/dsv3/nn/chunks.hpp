// Kernels that walk a tensor chunk by chunk, whatever its shape.
#pragma once

#include <dsv3/core/scalar.hpp>

namespace dsv3::detail {

/// Elements of a tensor that one row of such a kernel handles.
inline constexpr Index optimizer_chunk = 4096;

DSV3_HD constexpr Index chunk_size(Index elements, Index chunk) {
  const Index left = elements - chunk * optimizer_chunk;
  return left < optimizer_chunk ? left : optimizer_chunk;
}

// operand = weight in the operand's type.
template <class M, class W>
struct OperandRow {
  View<const M, 1> weight;
  View<W, 1> operand;

  DSV3_HD void operator()(auto team, Index chunk) const {
    const Index first = chunk * optimizer_chunk;
    team.each(chunk_size(weight.extent(0), chunk),
              [&](Index j) { operand(first + j) = W(weight(first + j)); });
  }
};

// Exchanges two tensors.
template <class M>
struct SwapRow {
  View<M, 1> a, b;

  DSV3_HD void operator()(auto team, Index chunk) const {
    const Index first = chunk * optimizer_chunk;
    team.each(chunk_size(a.extent(0), chunk), [&](Index j) {
      const M kept = a(first + j);
      a(first + j) = b(first + j);
      b(first + j) = kept;
    });
  }
};

}  // namespace dsv3::detail
