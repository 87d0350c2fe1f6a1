// AdamW of one tensor and what follows from its new weights, by the kernel that its types ask for.
#pragma once

#include <dsv3/core/fused_rows.hpp>
#include <dsv3/core/moment.hpp>
#include <dsv3/nn/chunks.hpp>
#include <dsv3/nn/projection.hpp>
#include <dsv3/train/adamw.hpp>

namespace dsv3::detail {

// rule [1]; norm [2] as ClipRow leaves it. An operand is empty where the product reads the weight
// itself.
template <class P, class Backend, class M, class Moment, class SecondMoment, int Rank>
void adamw_tensor(Backend& backend, View<const AdamW, 1> rule, View<const double, 1> norm,
                  const View<M, Rank>& weight, const View<M, Rank>& gradient,
                  const View<Moment, Rank>& m, const View<SecondMoment, Rank>& v,
                  const View<typename P::weight, Rank>& operand) {
  for_each_row(
      backend, groups_of(weight.size(), optimizer_chunk),
      AdamWRow<M, Moment, typename P::weight>{rule, norm, weight.flat(), as_const(gradient.flat()),
                                              m.flat(), v.flat(), operand.flat()});
}

// The same where the operand is codes: they follow block by block.
template <class P, class Backend, class M, class Moment, class SecondMoment, class C>
void adamw_tensor(Backend& backend, View<const AdamW, 1> rule, View<const double, 1> norm,
                  const View<M, 2>& weight, const View<M, 2>& gradient, const View<Moment, 2>& m,
                  const View<SecondMoment, 2>& v, const Quantized<C>& operand) {
  const Index blocks = groups_of(operand.extent(0), operand.group_rows) *
                       groups_of(operand.extent(1), operand.group_columns);
  for_each_row_fused(backend, blocks,
                     AdamWBlock<M, Moment, C>{rule, norm, weight, as_const(gradient), m, v, operand,
                                              Projection<P>::rule(Route::dense)});
}

// Moments of codes: rows of matrices, a vector being one row; codes of weights follow.
template <class P, class Backend, class M, int Rank, class CM, class CV, class Operand>
void adamw_tensor(Backend& backend, View<const AdamW, 1> rule, View<const double, 1> norm,
                  const View<M, Rank>& weight, const View<M, Rank>& gradient,
                  const MomentView<CM, Rank>& m, const MomentView<CV, Rank>& v,
                  const Operand& operand) {
  const auto matrix = [](const auto& view) {
    using T = std::remove_pointer_t<decltype(view.data)>;
    if constexpr (Rank == 1)
      return View<T, 2>(view.data, {1, view.extent(0)});
    else
      return view;
  };
  View<typename P::weight, 2> plain;
  constexpr bool codes = requires { operand.scales; };
  if constexpr (!codes) plain = matrix(operand);
  for_each_row(backend, matrix(weight).extent(0),
               AdamWQuantizedMomentsRow<M, CM, CV, typename P::weight>{
                   rule, norm, matrix(weight), as_const(matrix(gradient)),
                   MomentView<CM, 2>{matrix(m.codes), matrix(m.scales)},
                   MomentView<CV, 2>{matrix(v.codes), matrix(v.scales)}, plain});
  if constexpr (codes)
    quantize_weights(backend, as_const(weight), operand, Projection<P>::rule(Route::dense));
}

}  // namespace dsv3::detail
