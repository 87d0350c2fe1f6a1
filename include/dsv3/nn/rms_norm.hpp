// RMSNorm, forward and backward.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/core/check.hpp>
#include <dsv3/core/math.hpp>
#include <dsv3/core/product.hpp>
#include <dsv3/core/scalar.hpp>

namespace dsv3 {
namespace detail {

// 1 / sqrt(mean_j x[t,j]^2 + eps) of one row.
template <class In>
DSV3_HD auto reciprocal_rms(auto team, const View<const In, 2>& x, Index t, double eps) {
  using A = accum_t<In>;
  const auto value = [&](Index j) { return A(x(t, j)); };
  const A mean_square = team.dot(x.extent(1), value, value) / A(x.extent(1));
  return A(1) / sqrt(mean_square + A(eps));
}

template <class In, class Out, class W>
struct RmsNormForwardRow {
  View<const In, 2> x;
  View<const W, 1> weight;
  View<Out, 2> y;
  double eps;

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<In>;
    const A r = reciprocal_rms(team, x, t, eps);
    team.each(x.extent(1), [&](Index j) { y(t, j) = Out(A(x(t, j)) * r * A(weight(j))); });
  }
};

// With u = dy * weight:  dx = rstd (u - x rstd^2 mean_j(u x)).   Spec 2.2.
template <class In, class Out, class W>
struct RmsNormBackwardRow {
  View<const In, 2> x;
  View<const Out, 2> dy;
  View<const W, 1> weight;
  View<accum_t<In>, 1> rstd;
  View<In, 2> dx;
  double eps;
  bool add;

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<In>;
    const Index n = x.extent(1);
    const A r = reciprocal_rms(team, x, t, eps);
    team.once([&] { rstd(t) = r; });
    const auto u = [&](Index j) { return A(dy(t, j)) * A(weight(j)); };
    const A mean = team.dot(n, u, [&](Index j) { return A(x(t, j)); }) / A(n);
    const A slope = -r * r * mean;
    team.each(n, [&](Index j) {
      const A before = add ? A(dx(t, j)) : A(0);
      dx(t, j) = In(fma(r, fma(A(x(t, j)), slope, u(j)), before));
    });
  }
};

// dweight[j] += sum_t dy[t,j] x[t,j] rstd[t], in two steps that read memory along its rows: one
// partial sum for every 64 tokens, then the partial sums in order.
template <class In, class Out>
struct RmsNormWeightPartial {
  static constexpr Index tokens = 64;
  View<const In, 2> x;
  View<const Out, 2> dy;
  View<const accum_t<In>, 1> rstd;
  View<accum_t<In>, 2> partial;  // [ceil(T / tokens), H]

  DSV3_HD void operator()(auto team, Index chunk) const {
    using A = accum_t<In>;
    const Index first = chunk * tokens, end = first + tokens;
    const Index last = end < x.extent(0) ? end : x.extent(0);
    team.each(x.extent(1), [&](Index j) { partial(chunk, j) = A(0); });
    for (Index t = first; t < last; ++t) {
      const A r = rstd(t);
      team.each(x.extent(1), [&](Index j) {
        partial(chunk, j) = fma(A(dy(t, j)), A(x(t, j)) * r, partial(chunk, j));
      });
    }
  }
};

// sum[j] += sum_c partial[c,j], c ascending, for one strip of columns.
template <class A, class G>
struct AddPartials {
  static constexpr Index columns = 256;
  View<const A, 2> partial;
  View<G, 1> sum;

  DSV3_HD void operator()(auto team, Index strip) const {
    const Index first = strip * columns, left = sum.extent(0) - first;
    const Index n = left < columns ? left : columns;
    for (Index c = 0; c < partial.extent(0); ++c)
      team.each(n, [&](Index j) { sum(first + j) += G(partial(c, first + j)); });
  }
};

}  // namespace detail

/// Root-mean-square normalisation of each token's feature vector.
///
///     rstd[t] = 1 / sqrt(mean_j x[t,j]^2 + eps)         y[t,j] = x[t,j] * rstd[t] * weight[j]
///
/// Shapes   T tokens; H features: hidden_size, q_lora_rank or kv_lora_rank.
/// Units    eps is in units of x^2.
/// Types    x in In, y in Out, weight in W; computed in accum_t<In> and rounded once.
/// Errors   std::invalid_argument when extents disagree, before anything is written.
/// Source   Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; one rounding as in DeepSeek-V3's
///          inference code (spec 2.2). Gradient above RmsNormBackwardRow.
template <class In, class Out = In, class W = Out>
struct RmsNorm {
  using A = accum_t<In>;
  double eps = 1e-6;  // rms_norm_eps

  template <class U>
  struct Tensors {
    View<U, 1> weight;  // [H]
  };

  /// Writes y [T, H].
  template <class Backend>
  void forward(Backend& backend, const Tensors<const W>& params, View<const In, 2> x,
               View<Out, 2> y) const {
    const char* caller = "RmsNorm::forward";
    check_shape(caller, "weight", params.weight, x.extent(1), "columns of x");
    check_shape(caller, "y", y, x.extent(0), "rows of x", x.extent(1), "columns of x");
    if constexpr (requires { rms_norm_rows(backend, x, params.weight, eps, y); })
      rms_norm_rows(backend, x, params.weight, eps, y);
    else
      for_each_row(backend, x.extent(0),
                   detail::RmsNormForwardRow<In, Out, W>{x, params.weight, y, eps});
  }

  /// Overwrites dx [T, H] or adds to it; adds to grads. dx and dy must not overlap.
  template <class Backend>
  void backward(Backend& backend, const Tensors<const W>& params, View<const In, 2> x,
                View<const Out, 2> dy, View<In, 2> dx, Output output,
                const Tensors<accum_t<W>>& grads, Arena& scratch) const {
    const char* caller = "RmsNorm::backward";
    const Index tokens = x.extent(0), features = x.extent(1);
    check_shape(caller, "weight", params.weight, features, "columns of x");
    check_shape(caller, "dy", dy, tokens, "rows of x", features, "columns of x");
    check_shape(caller, "dx", dx, tokens, "rows of x", features, "columns of x");
    check_shape(caller, "weight gradient", grads.weight, features, "columns of x");
    using Partial = detail::RmsNormWeightPartial<In, Out>;
    const ArenaScope scope(scratch);
    const auto rstd = scratch.take<A>({tokens});
    const Index chunks = (tokens + Partial::tokens - 1) / Partial::tokens;
    const auto partial = scratch.take<A>({chunks, features});
    if constexpr (requires {
                    rms_norm_backward_rows(backend, x, dy, params.weight, eps, dx, output, rstd,
                                           partial, Partial::tokens, grads.weight);
                  }) {
      rms_norm_backward_rows(backend, x, dy, params.weight, eps, dx, output, rstd, partial,
                             Partial::tokens, grads.weight);
    } else {
      for_each_row(backend, tokens,
                   detail::RmsNormBackwardRow<In, Out, W>{x, dy, params.weight, rstd, dx, eps,
                                                          output == Output::add});
      for_each_row(backend, chunks, Partial{x, dy, rstd, partial});
      using Add = detail::AddPartials<A, accum_t<W>>;
      for_each_row(backend, (features + Add::columns - 1) / Add::columns,
                   Add{partial, grads.weight});
    }
  }
};

}  // namespace dsv3
