// How a set of weights is viewed: plain elements, or codes for the matrices of projections beside
// plain elements for the rest; as they lie, or arranged for a backend's products.
#pragma once

#include <dsv3/core/arranged.hpp>
#include <dsv3/core/precision.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3 {

/// A projection's matrix as codes and, for delayed scaling, the largest magnitudes of its inputs
/// (row 0) and of the gradients in its outputs (row 1): column 0 of the step that runs, the columns
/// after it of the steps before, newest first. Empty without delayed scaling.
template <class C>
struct QuantizedWeight : Quantized<C> {
  View<float, 2> history;  // [2, 1 + history]

  constexpr QuantizedWeight() = default;
  DSV3_HD constexpr QuantizedWeight(const Quantized<C>& q, View<float, 2> amax)
      : Quantized<C>(q), history(amax) {}
  template <class U>
  requires(std::is_same_v<const U, C> && !std::is_same_v<U, C>) DSV3_HD
      constexpr QuantizedWeight(const QuantizedWeight<U>& o)
      : Quantized<C>(o), history(o.history) {}
};

/// The same for one matrix for each expert, with one history for all of them.
template <class C>
struct QuantizedWeightStack : QuantizedStack<C> {
  View<float, 2> history;

  constexpr QuantizedWeightStack() = default;
  DSV3_HD constexpr QuantizedWeightStack(const QuantizedStack<C>& q, View<float, 2> amax)
      : QuantizedStack<C>(q), history(amax) {}
  template <class U>
  requires(std::is_same_v<const U, C> && !std::is_same_v<U, C>) DSV3_HD
      constexpr QuantizedWeightStack(const QuantizedWeightStack<U>& o)
      : QuantizedStack<C>(o), history(o.history) {}

  DSV3_HD constexpr QuantizedWeight<C> operator[](Index expert) const {
    return {QuantizedStack<C>::operator[](expert), history};
  }
};

/// Names the elements of a set of weights: codes of C in blocks for projections (the linear layers
/// of attention, MLPs and experts), W for embedding, head, gate, norms and eh_proj. `history` is
/// the number of steps that delayed scaling looks back to.
template <class W, class C, Index block, Index history>
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
  using type = MixedWeights<typename P::weight, typename P::code, P::block, P::history>;
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

template <class W, class C, Index block, Index history>
struct WeightViews<MixedWeights<W, C, block, history>> {
  using Vector = View<W, 1>;
  using Matrix = View<W, 2>;
  using Projection = QuantizedWeight<C>;
  using Stack = QuantizedWeightStack<C>;

  static constexpr Vector take_vector(Arena& arena, Index n) { return arena.take<W>({n}); }
  static constexpr Matrix take_matrix(Arena& arena, Index out, Index in) {
    return arena.take<W>({out, in});
  }
  static constexpr Projection take_projection(Arena& arena, Index out, Index in) {
    const auto q = take_quantized<C>(arena, out, in, block, block);
    return {q, take_history(arena)};
  }
  static constexpr Stack take_stack(Arena& arena, Index experts, Index out, Index in) {
    const auto q = take_quantized_stack<C>(arena, experts, out, in, block, block);
    return {q, take_history(arena)};
  }

 private:
  static constexpr View<float, 2> take_history(Arena& arena) {
    if constexpr (history > 0)
      return arena.take<float>({2, 1 + history});
    else
      return {};
  }
};

template <class W, class C, Index block, Index history>
struct WeightViews<const MixedWeights<W, C, block, history>>
    : WeightViews<MixedWeights<const W, const C, block, history>> {};

/// Names a set of weights of U whose products' operands are arranged, in the order of that name.
template <class U, int order>
struct ArrangedWeights {};

template <class U, int order>
struct WeightViews<ArrangedWeights<U, order>> : WeightViews<U> {
  using Plain = WeightViews<U>;
  using Projection = Arranged<typename Plain::Projection>;
  using Stack = Arranged<typename Plain::Stack>;

  static constexpr Projection take_projection(Arena& arena, Index out, Index in) {
    return {Plain::take_projection(arena, out, in), order};
  }
  static constexpr Stack take_stack(Arena& arena, Index experts, Index out, Index in) {
    return {Plain::take_stack(arena, experts, out, in), order};
  }
};
template <class U, int order>
struct WeightViews<const ArrangedWeights<U, order>> : WeightViews<ArrangedWeights<const U, order>> {
};

/// Two kinds of matrix that differ from the others where weights are arranged: those of plain
/// elements that products read and nothing else (lm_head, eh_proj) are arranged too, and the
/// projection that is also read head by head (kv_b_proj) is not.
template <class U>
struct ProductViews {
  using Matrix = typename WeightViews<U>::Matrix;
  using Headwise = typename WeightViews<U>::Projection;
  static constexpr Matrix take_matrix(Arena& arena, Index out, Index in) {
    return WeightViews<U>::take_matrix(arena, out, in);
  }
  static constexpr Headwise take_headwise(Arena& arena, Index out, Index in) {
    return WeightViews<U>::take_projection(arena, out, in);
  }
};
template <class U, int order>
struct ProductViews<ArrangedWeights<U, order>> {
  using Matrix = Arranged<typename WeightViews<U>::Matrix>;
  using Headwise = typename WeightViews<U>::Projection;
  static constexpr Matrix take_matrix(Arena& arena, Index out, Index in) {
    return {WeightViews<U>::take_matrix(arena, out, in), order};
  }
  static constexpr Headwise take_headwise(Arena& arena, Index out, Index in) {
    return WeightViews<U>::take_projection(arena, out, in);
  }
};
template <class U, int order>
struct ProductViews<const ArrangedWeights<U, order>>
    : ProductViews<ArrangedWeights<const U, order>> {};

/// A policy whose weights are arranged, in the order of that name: what InferenceModel computes in.
template <class P, int order>
struct ArrangedPolicy : P {};
template <class P, int order>
struct OperandOf<ArrangedPolicy<P, order>> {
  using type = ArrangedWeights<operand_t<P>, order>;
};

template <class U>
using vector_of = typename WeightViews<U>::Vector;
template <class U>
using matrix_of = typename WeightViews<U>::Matrix;
template <class U>
using projection_of = typename WeightViews<U>::Projection;
template <class U>
using stack_of = typename WeightViews<U>::Stack;
template <class U>
using product_matrix_of = typename ProductViews<U>::Matrix;
template <class U>
using headwise_of = typename ProductViews<U>::Headwise;

}  // namespace dsv3
