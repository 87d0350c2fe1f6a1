// AdamW and the global gradient norm, as row kernels over chunks of each tensor.
#pragma once

#include <dsv3/core/math.hpp>
#include <dsv3/core/scalar.hpp>
#include <dsv3/core/view.hpp>
#include <dsv3/nn/chunks.hpp>
#include <dsv3/nn/quantize.hpp>

namespace dsv3 {

/// What AdamW does to one tensor in one step.
///
/// Source   Loshchilov and Hutter 2019, arXiv:1711.05101; DeepSeek-V3 section 4.2; spec 8.
struct AdamW {
  double lr = 2.2e-4, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double correction1 = 1, correction2 = 1;  ///< 1 - beta1^t and 1 - beta2^t at step t
};

namespace detail {

// partial[chunk] = sum of squares of one chunk, in double.
template <class G>
struct SquaredNormRow {
  View<const G, 1> gradient;
  View<double, 1> partial;

  DSV3_HD void operator()(auto team, Index chunk) const {
    const Index first = chunk * optimizer_chunk;
    const auto value = [&](Index i) { return double(gradient(first + i)); };
    const double sum = team.dot(chunk_size(gradient.extent(0), chunk), value, value);
    team.once([&] { partial(chunk) = sum; });
  }
};

// norm[0] = sqrt(sum of partials), norm[1] = min(1, clip / (norm + 1e-6)), or 0 where the norm is
// not finite: the step is then skipped.
struct ClipRow {
  View<const double, 1> partial;
  double clip;
  View<double, 1> norm;

  DSV3_HD void operator()(auto team, Index) const {
    const double squares = team.sum(partial.extent(0), [&](Index i) { return partial(i); });
    team.once([&] {
      const double total = sqrt(squares), factor = clip / (total + 1e-6);
      const bool finite = total - total == 0;
      norm(0) = total;
      norm(1) = finite ? (factor < 1 ? factor : 1.0) : 0.0;
    });
  }
};

//   g = factor * gradient            m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
//   w = w - lr ((m / c1) / (sqrt(v / c2) + eps) + decay w)
template <class M>
struct AdamWElement {
  M factor, b1, b2, r1, r2, c1, c2, eps, lr, keep;

  DSV3_HD AdamWElement(const AdamW& rule, double clip)
      : factor(M(clip)),
        b1(M(rule.beta1)),
        b2(M(rule.beta2)),
        r1(M(1 - rule.beta1)),
        r2(M(1 - rule.beta2)),
        c1(M(1 / rule.correction1)),
        c2(M(1 / rule.correction2)),
        eps(M(rule.eps)),
        lr(M(rule.lr)),
        keep(M(fma(-rule.lr, rule.weight_decay, 1.0))) {}

  template <class Moment>
  DSV3_HD void step(M gradient, M& weight, Moment& m, Moment& v) const {
    const M g = factor * gradient;
    const M next_m = fma(b1, M(m), r1 * g), next_v = fma(b2, M(v), r2 * (g * g));
    m = Moment(next_m);
    v = Moment(next_v);
    const M update = (next_m * c1) / (sqrt(next_v * c2) + eps);
    weight = fma(weight, keep, -(lr * update));
  }
};

// One chunk of a tensor; the operand is the weight rounded to its type. Nothing changes where the
// factor, norm[1], is 0.
template <class M, class Moment, class W>
struct AdamWRow {
  AdamW rule;
  View<const double, 1> norm;
  View<M, 1> weight;
  View<const M, 1> gradient;
  View<Moment, 1> m, v;
  View<W, 1> operand;  // or empty: the product reads weight itself

  DSV3_HD void operator()(auto team, Index chunk) const {
    const Index first = chunk * optimizer_chunk, n = chunk_size(weight.extent(0), chunk);
    if (norm(1) == 0) return;
    const AdamWElement<M> element(rule, norm(1));
    team.each(n, [&](Index j) {
      const Index i = first + j;
      element.step(gradient(i), weight(i), m(i), v(i));
      if (operand.data) operand(i) = W(weight(i));
    });
  }
};

// One block of a matrix whose operand is codes: the update, and the block's new codes and scale
// while the weights are in the cache.
template <class M, class Moment, class C>
struct AdamWBlock {
  AdamW rule;
  View<const double, 1> norm;
  View<M, 2> weight;
  View<const M, 2> gradient;
  View<Moment, 2> m, v;
  Quantized<C> operand;
  ScaleRule scale;

  DSV3_HD void operator()(auto team, Index block) const {
    if (norm(1) == 0) return;
    const AdamWElement<M> element(rule, norm(1));
    const Index blocks = groups_of(weight.extent(1), operand.group_columns);
    const Index down = block / blocks, across = block % blocks;
    const Index i0 = down * operand.group_rows, j0 = across * operand.group_columns;
    const Index i1 = i0 + operand.group_rows, j1 = j0 + operand.group_columns;
    const Index rows = i1 < weight.extent(0) ? i1 : weight.extent(0);
    const Index columns = (j1 < weight.extent(1) ? j1 : weight.extent(1)) - j0;
    for (Index i = i0; i < rows; ++i)
      team.each(columns, [&](Index c) {
        const Index j = j0 + c;
        element.step(gradient(i, j), weight(i, j), m(i, j), v(i, j));
      });
    team.sync();
    quantize_block(team, View<const M, 2>(weight), operand, down, across, scale);
  }
};

}  // namespace detail
}  // namespace dsv3
