// AdamW's moments as narrow codes: a study of how few bits they need.
#pragma once

#include <dsv3/core/weights.hpp>

namespace dsv3 {

/// Names a set of moments as codes of C in groups of 1 x 128: the `moment` of a policy.
template <class C>
struct QuantizedMoment {};

/// One tensor of such moments: [..., n] codes, [..., ceil(n / 128)] scales.
template <class C, int Rank>
struct MomentView {
  static constexpr Index group = 128;
  View<C, Rank> codes;
  View<float, Rank> scales;

  DSV3_HD constexpr Index extent(int d) const { return codes.extent(d); }
  DSV3_HD constexpr MomentView<C, Rank - 1> operator[](Index i) const requires(Rank > 1) {
    return {codes[i], scales[i]};
  }
};

template <class C>
struct WeightViews<QuantizedMoment<C>> {
  using Vector = MomentView<C, 1>;
  using Matrix = MomentView<C, 2>;
  using Projection = MomentView<C, 2>;
  using Stack = MomentView<C, 3>;

  static constexpr Vector take_vector(Arena& arena, Index n) {
    const auto codes = arena.take<C>({n});
    return {codes, arena.take<float>({groups_of(n, Vector::group)})};
  }
  static constexpr Matrix take_matrix(Arena& arena, Index out, Index in) {
    const auto codes = arena.take<C>({out, in});
    return {codes, arena.take<float>({out, groups_of(in, Matrix::group)})};
  }
  static constexpr Projection take_projection(Arena& arena, Index out, Index in) {
    return take_matrix(arena, out, in);
  }
  static constexpr Stack take_stack(Arena& arena, Index experts, Index out, Index in) {
    const auto codes = arena.take<C>({experts, out, in});
    return {codes, arena.take<float>({experts, out, groups_of(in, Stack::group)})};
  }
};

/// The type of AdamW's second moment: a policy's `second_moment`, or its `moment`.
template <class P>
struct SecondMomentOf {
  using type = typename P::moment;
};
template <class P>
requires requires { typename P::second_moment; }
struct SecondMomentOf<P> {
  using type = typename P::second_moment;
};
template <class P>
using second_moment_t = typename SecondMomentOf<P>::type;

}  // namespace dsv3
