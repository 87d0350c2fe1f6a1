// How a set of weights is viewed: plain elements, or codes for the matrices of projections beside
// plain elements for the rest.
#pragma once

#include <dsv3/core/precision.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3 {

/// Names the elements of a set of weights: codes of C in blocks for projections (the linear layers
/// of attention, MLPs and experts), W for embedding, head, gate, norms and eh_proj.
template <class W, class C, Index block>
struct MixedWeights {};

/// What the operands of a policy's products are made of: the U of its Tensors<U>.
template <class P>
struct OperandOf {
  using type = typename P::weight;
};
template <QuantizedPolicy P>
struct OperandOf<P> {
  static_assert(P::block == 0 || P::block == 32 || P::block == 64 || P::block == 128 ||
                    P::block == 256,
                "block of an FP8 policy must be 32, 64, 128 or 256, or 0 for one scale a matrix");
  using type = MixedWeights<typename P::weight, typename P::code, P::block>;
};
template <class P>
using operand_t = typename OperandOf<P>::type;

/// The views of a set of weights of U.
template <class U>
struct WeightViews {
  using Vector = View<U, 1>;
  using Matrix = View<U, 2>;
  using Projection = View<U, 2>;
  using Stack = View<U, 3>;

  static constexpr Vector take_vector(Arena& arena, Index n) { return arena.take<U>({n}); }
  static constexpr Matrix take_matrix(Arena& arena, Index out, Index in) {
    return arena.take<U>({out, in});
  }
  static constexpr Projection take_projection(Arena& arena, Index out, Index in) {
    return arena.take<U>({out, in});
  }
  static constexpr Stack take_stack(Arena& arena, Index experts, Index out, Index in) {
    return arena.take<U>({experts, out, in});
  }
};

template <class W, class C, Index block>
struct WeightViews<MixedWeights<W, C, block>> {
  using Vector = View<W, 1>;
  using Matrix = View<W, 2>;
  using Projection = Quantized<C>;
  using Stack = QuantizedStack<C>;

  static constexpr Vector take_vector(Arena& arena, Index n) { return arena.take<W>({n}); }
  static constexpr Matrix take_matrix(Arena& arena, Index out, Index in) {
    return arena.take<W>({out, in});
  }
  static constexpr Projection take_projection(Arena& arena, Index out, Index in) {
    return take_quantized<C>(arena, out, in, block, block);
  }
  static constexpr Stack take_stack(Arena& arena, Index experts, Index out, Index in) {
    return take_quantized_stack<C>(arena, experts, out, in, block, block);
  }
};

template <class W, class C, Index block>
struct WeightViews<const MixedWeights<W, C, block>>
    : WeightViews<MixedWeights<const W, const C, block>> {};

template <class U>
using vector_of = typename WeightViews<U>::Vector;
template <class U>
using matrix_of = typename WeightViews<U>::Matrix;
template <class U>
using projection_of = typename WeightViews<U>::Projection;
template <class U>
using stack_of = typename WeightViews<U>::Stack;

}  // namespace dsv3
