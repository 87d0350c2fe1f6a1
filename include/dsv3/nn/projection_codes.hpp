// Projection in an FP8 policy: what products read is quantised, and they multiply with the scales.
#pragma once

#include <dsv3/core/fused_rows.hpp>
#include <dsv3/nn/check_finite.hpp>
#include <dsv3/nn/emulated_product.hpp>
#include <dsv3/nn/projection_plain.hpp>
#include <dsv3/nn/quantize.hpp>

namespace dsv3 {

namespace detail {

// y = norm(x) rounded to Out, and its codes; y is written where it has rows.
template <class In, class Out, class W, class C>
struct RmsNormQuantizeRow {
  View<const In, 2> x;
  View<const W, 1> weight;
  View<Out, 2> y;
  Quantized<C> q;
  double eps;
  ScaleRule rule;

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<In>;
    const A r = reciprocal_rms(team, x, t, eps);
    const auto value = [&](Index j) { return Out(A(x(t, j)) * r * A(weight(j))); };
    if (y.extent(0)) {
      team.each(x.extent(1), [&](Index j) { y(t, j) = value(j); });
      team.sync();
      quantize_row(team, q, t, rule, RoundNearest{}, [&](Index j) { return A(y(t, j)); });
    } else {
      quantize_row(team, q, t, rule, RoundNearest{}, [&](Index j) { return A(value(j)); });
    }
  }
};

}  // namespace detail

/// The same on codes: quantises what products read, and multiplies with the scales.
template <QuantizedPolicy P>
struct Projection<P> {
  using T = typename P::activation;
  using R = typename P::residual;
  using V = typename P::weight;  // of vectors
  using Code = typename P::code;
  using GradientCode = typename P::gradient_code;
  using Input = Quantized<const Code>;
  /// An activation as it is kept until backward; empty where none follows.
  using Stored = Quantized<Code>;
  /// An Input that is being written.
  using Operand = Quantized<Code>;
  using Rounding = std::conditional_t<P::stochastic_rounding, RoundStochastic, RoundNearest>;

  static_assert(P::tile == 0 || P::tile == 32 || P::tile == 64 || P::tile == 128 || P::tile == 256,
                "tile of an FP8 policy must be 32, 64, 128 or 256, or 0 for one scale a tensor");
  static_assert(P::gradient_rows == 1 || (P::gradient_rows == 128 && P::tile > 0),
                "gradient_rows of an FP8 policy must be 1, or 128 beside a tile");
  static_assert(P::history == 0 || P::tile == 0,
                "history of an FP8 policy, delayed scaling, needs tile = 0: one scale a tensor");
  static_assert(std::is_same_v<Code, e4m3> || std::is_same_v<Code, e5m2> ||
                    std::is_same_v<Code, double>,
                "code of an FP8 policy must be e4m3 or e5m2 (or double: no quantising)");
  static_assert(std::is_same_v<GradientCode, e4m3> || std::is_same_v<GradientCode, e5m2> ||
                    std::is_same_v<GradientCode, double>,
                "gradient_code of an FP8 policy must be e4m3 or e5m2 (or double: no quantising)");
  static_assert(P::accumulation.interval >= 0 && P::accumulation.interval % 32 == 0,
                "accumulation.interval of an FP8 policy must be a multiple of 32, or 0 for none");
  static_assert(P::accumulation.bits == 0 ||
                    (P::accumulation.bits >= 8 && P::accumulation.bits <= 24),
                "accumulation.bits of an FP8 policy must be 8 ... 24, or 0 for float's own sums");

  static_assert(P::accumulation.bits > 0 || P::accumulation.interval == 128,
                "accumulation.interval of an FP8 policy means nothing without accumulation.bits");
  static_assert(
      (is_fp8<Code> && is_fp8<GradientCode>) ||
          (P::accumulation.bits == 0 && !P::stochastic_rounding),
      "codes of double in an FP8 policy are neither rounded stochastically nor added by an "
      "emulated accumulator");

  static constexpr ScaleRule rule(Route route) {
    return {P::amax_min, P::power_of_two || (route == Route::dispatch && P::power_of_two_dispatch)};
  }

  /// Codes in groups of 1 x tile along the columns.
  static constexpr Quantized<Code> take_rows(Arena& arena, Index rows, Index columns) {
    return take_quantized<Code>(arena, rows, columns, P::tile ? 1 : 0, P::tile);
  }

  static constexpr Stored take_stored(Arena& arena, Index rows, Index columns,
                                      bool backward_follows = true) {
    return backward_follows ? take_rows(arena, rows, columns) : Stored();
  }
  static constexpr Operand take_operand(Arena& arena, Index rows, Index columns) {
    return take_rows(arena, rows, columns);
  }

  /// x as the input of projections.
  template <class Backend>
  Input input(Backend& backend, const Site& site, View<const T, 2> x, Route route,
              Arena& scratch) const {
    return rows<Code>(backend, site, x, route, RoundNearest{}, 1, scratch);
  }

  /// Writes the codes of norm(x) to y, in one pass over x; to plain, where it has rows, the values
  /// that they are the codes of.
  template <class Backend, class In>
  void normalize(Backend& backend, const Site& site, const RmsNorm<In, T, V>& norm,
                 View<const V, 1> weight, View<const In, 2> x, Operand y, View<T, 2> plain,
                 Route route, Arena& scratch) const {
    const Index tokens = x.extent(0), features = x.extent(1);
    if constexpr (P::checked) detail::check_finite(backend, site.what, x, scratch);
    if constexpr (P::tile == 0) {
      const ArenaScope scope(scratch);
      const auto n = plain.extent(0) ? plain : scratch.take<T>({tokens, features});
      norm.forward(backend, {weight}, x, n);
      whole<Code>(backend, site, as_const(n), y, rule(route), RoundNearest{}, scratch);
    } else {
      check_shape("Projection::normalize", "weight", weight, features, "columns of x");
      const ScaleRule scale_rule = rule(route);
      if constexpr (requires {
                      quantize_norm_rows(backend, x, weight, norm.eps, plain, y, scale_rule);
                    })
        quantize_norm_rows(backend, x, weight, norm.eps, plain, y, scale_rule);
      else
        for_each_row(
            backend, tokens,
            detail::RmsNormQuantizeRow<In, T, V, Code>{x, weight, plain, y, norm.eps, scale_rule});
    }
  }

  /// h = silu(a) * b as the input of a projection, and a and b as they are kept, in one pass;
  /// saved_a and saved_b may be empty.
  template <class Backend>
  void swiglu(Backend& backend, const Site& site, View<const T, 2> a, View<const T, 2> b,
              Stored saved_a, Stored saved_b, Quantized<Code> h, Arena& scratch) const {
    if constexpr (P::checked) {
      detail::check_finite(backend, "output of gate_proj", a, scratch);
      detail::check_finite(backend, "output of up_proj", b, scratch);
    }
    const ScaleRule scale_rule = rule(Route::dense);
    if constexpr (P::tile == 0) {
      const ArenaScope scope(scratch);
      const auto plain = scratch.take<T>({a.extent(0), a.extent(1)});
      for_each_row(backend, a.extent(0), detail::SwigluForwardRow<T>{a, b, plain});
      if (saved_a.extent(0))
        whole<Code>(backend, {}, a, saved_a, scale_rule, RoundNearest{}, scratch);
      if (saved_b.extent(0))
        whole<Code>(backend, {}, b, saved_b, scale_rule, RoundNearest{}, scratch);
      whole<Code>(backend, site, as_const(plain), h, scale_rule, RoundNearest{}, scratch);
    } else if constexpr (requires {
                           quantize_swiglu_rows(backend, a, b, saved_a, saved_b, h, scale_rule);
                         }) {
      quantize_swiglu_rows(backend, a, b, saved_a, saved_b, h, scale_rule);
    } else {
      for_each_row(backend, a.extent(0),
                   detail::SwigluQuantizeRow<T, Code>{a, b, saved_a, saved_b, h, scale_rule});
    }
  }

  /// The rows of a gradient as the left operand of dX = dY W.
  template <class Backend>
  Quantized<const GradientCode> gradient(Backend& backend, const Site& site, View<const T, 2> dy,
                                         Route route, Arena& scratch) const {
    return rows<GradientCode>(backend, site, dy, route, Rounding{}, P::gradient_rows, scratch);
  }

  /// A gradient in groups along the tokens, the left operand of dW = dY^T X.
  template <class Backend>
  Quantized<const GradientCode> gradient_columns(Backend& backend, const Site& site,
                                                 View<const T, 2> dy, Route route,
                                                 Arena& scratch) const {
    return columns<GradientCode>(backend, site, dy, {}, route, scratch);
  }

  /// Anything with pieces of rows as an operand of dW = dY^T X: groups of tile x 1, which begin
  /// anew at each segment of offsets [E + 1]; empty offsets: one segment.
  template <class C, class Backend, class Source>
  Quantized<const C> columns(Backend& backend, const Site& site, const Source& x,
                             View<const Index, 1> offsets, Route route, Arena& scratch) const {
    constexpr bool is_gradient = std::is_same_v<Source, View<const T, 2>>;
    using Round = std::conditional_t<is_gradient, Rounding, RoundNearest>;
    const Index rows = x.extent(0), n = x.extent(1);
    const Index segments = offsets.extent(0) ? offsets.extent(0) - 1 : 1;
    if constexpr (P::tile == 0) {
      if constexpr (std::is_same_v<Source, Quantized<const C>>) {
        return x;  // one scale serves in every direction
      } else {
        const auto q = take_segments<C>(scratch, rows, n, segments, 0);
        whole<C>(backend, site, x, q, rule(route), Round{}, scratch);
        return q;
      }
    } else {
      const auto q = take_segments<C>(scratch, rows, n, segments, P::tile);
      using Block = detail::QuantizeColumnsBlock<Source, C, Round>;
      for_each_row_fused(backend, q.scales.extents[0] * groups_of(n, Block::strip),
                         Block{x, {offsets, rows, P::tile}, q, rule(route), Round{}});
      return q;
    }
  }

  /// y = x weight^T.
  template <class Backend, class Y>
  void forward(Backend& backend, Quantized<const Code> weight, Input x, View<Y, 2> y,
               Arena& scratch) const {
    product(backend, nt, x, weight, y, Output::overwrite, scratch);
  }

  template <class Backend, class Y>
  void forward(Backend& backend, const Arranged<QuantizedWeight<const Code>>& weight, Input x,
               View<Y, 2> y, Arena&) const {
    gemm(backend, nt, x, weight, y, Output::overwrite);
  }

  /// Overwrites dx = dy weight or adds to it.
  template <class Backend, class DX>
  void backward_input(Backend& backend, Quantized<const Code> weight,
                      Quantized<const GradientCode> dy, View<DX, 2> dx, Output output,
                      Arena& scratch) const {
    product(backend, nn, dy, weight, dx, output, scratch);
  }

  /// Adds dy^T x to dweight; both in groups along the tokens.
  template <class Backend, class G>
  void backward_weight(Backend& backend, Quantized<const GradientCode> dy, Input x,
                       View<G, 2> dweight, Arena& scratch) const {
    product(backend, tn, dy, x, dweight, Output::add, scratch);
  }

  /// The input of forward, in groups along the tokens.
  template <class Backend, class Source>
  Input input_columns(Backend& backend, const Site& site, const Source& x, Route route,
                      Arena& scratch) const {
    return columns<Code>(backend, site, x, {}, route, scratch);
  }

  /// The whole backward of one layer from a plain dy: overwrites dx or adds to it, adds to dweight.
  /// x_columns is what input_columns() made of the input.
  template <class Backend, class DX, class G>
  void backward(Backend& backend, const char* what, const QuantizedWeight<const Code>& weight,
                Input x_columns, View<const T, 2> dy, Route route, View<DX, 2> dx, Output output,
                View<G, 2> dweight, Arena& scratch) const {
    const Site site = gradient_site(what, weight);
    {
      const ArenaScope scope(scratch);
      const auto rows = gradient(backend, site, dy, route, scratch);
      backward_input(backend, weight, rows, dx, output, scratch);
    }
    const ArenaScope scope(scratch);
    backward_weight(backend, gradient_columns(backend, site, dy, route, scratch), x_columns,
                    dweight, scratch);
  }

  /// The same for one matrix for each expert, over the rows of its segment.
  template <class Backend, class Y>
  void forward(Backend& backend, QuantizedStack<const Code> weight, Input x,
               View<const Index, 1> offsets, View<Y, 2> y, Arena& scratch) const {
    grouped(backend, nt, x, weight, y, offsets, Output::overwrite, scratch);
  }
  template <class Backend, class Y>
  void forward(Backend& backend, const Arranged<QuantizedWeightStack<const Code>>& weight, Input x,
               View<const Index, 1> offsets, View<Y, 2> y, Arena&) const {
    grouped_gemm(backend, nt, x, weight, y, offsets, Output::overwrite);
  }
  template <class Backend, class DX>
  void backward_input(Backend& backend, QuantizedStack<const Code> weight,
                      Quantized<const GradientCode> dy, View<const Index, 1> offsets,
                      View<DX, 2> dx, Output output, Arena& scratch) const {
    grouped(backend, nn, dy, weight, dx, offsets, output, scratch);
  }
  template <class Backend, class G>
  void backward_weight(Backend& backend, Quantized<const GradientCode> dy, Input x,
                       View<const Index, 1> offsets, View<G, 3> dweight, Arena& scratch) const {
    grouped(backend, tn, dy, x, dweight, offsets, Output::add, scratch);
  }

 private:
  template <class C, class Backend, class Round>
  Quantized<const C> rows(Backend& backend, const Site& site, View<const T, 2> x, Route route,
                          Round rounding, Index together, Arena& scratch) const {
    if constexpr (P::checked) detail::check_finite(backend, site.what, x, scratch);
    const Index tokens = x.extent(0);
    const auto q = take_quantized<C>(scratch, tokens, x.extent(1), P::tile ? 1 : 0, P::tile);
    if constexpr (P::tile == 0) {
      whole<C>(backend, site, x, q, rule(route), rounding, scratch);
    } else if (together > 1) {
      for_each_row(
          backend, groups_of(tokens, together),
          detail::QuantizeRowsTogether<T, C, Round>{x, together, q, rule(route), rounding});
    } else {
      detail::quantize_each_row(backend, x, q, rule(route), rounding);
    }
    return q;
  }

  // One scale for all of x.
  template <class C, class Backend, class Source, class Round>
  void whole(Backend& backend, const Site& site, const Source& x, const Quantized<C>& q,
             const ScaleRule& scale_rule, Round rounding, Arena& scratch) const {
    using A = accum_t<C>;
    if (x.extent(0) == 0) return;  // there is no group, and no room for a scale
    const ArenaScope scope(scratch);
    const auto partial = scratch.take<A>({x.extent(0)});
    for_each_row(backend, x.extent(0), detail::RowMagnitude<Source, A>{x, partial});
    for_each_row(backend, 1, detail::TensorScale<C>{partial, q, scale_rule, site.history});
    for_each_row(backend, x.extent(0), detail::EncodeRow<Source, C, Round>{x, q, rounding});
  }

  template <class Backend, Product p, class CA, class CB, class TC>
  void product(Backend& backend, ProductTag<p> tag, Quantized<CA> a, Quantized<CB> b, View<TC, 2> c,
               Output output, Arena& scratch) const {
    if constexpr (P::accumulation.bits > 0)
      emulated_gemm(backend, tag, a, b, c, output, P::accumulation, scratch);
    else
      gemm(backend, tag, a, b, c, output);
  }

  template <class Backend, Product p, class CA, class B, class C>
  void grouped(Backend& backend, ProductTag<p> tag, Quantized<CA> a, B b, C c,
               View<const Index, 1> offsets, Output output, Arena& scratch) const {
    if constexpr (P::accumulation.bits > 0)
      emulated_grouped_gemm(backend, tag, a, b, c, offsets, output, P::accumulation, scratch);
    else
      grouped_gemm(backend, tag, a, b, c, offsets, output);
  }
};

}  // namespace dsv3
