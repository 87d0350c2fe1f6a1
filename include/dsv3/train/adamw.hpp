// AdamW and the global gradient norm, as row kernels over chunks of each tensor.
#pragma once

#include <dsv3/core/math.hpp>
#include <dsv3/core/moment.hpp>
#include <dsv3/core/scalar.hpp>
#include <dsv3/core/view.hpp>
#include <dsv3/nn/chunks.hpp>
#include <dsv3/nn/quantize.hpp>

namespace dsv3 {

/// What AdamW does to the tensors of one group in one step. Kernels read it from the backend's
/// memory, so that recorded launches serve every step.
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
  View<const AdamW, 1> rule;  // [1]
  View<const double, 1> norm;
  View<M, 1> weight;
  View<const M, 1> gradient;
  View<Moment, 1> m, v;
  View<W, 1> operand;  // or empty: the product reads weight itself

  DSV3_HD void operator()(auto team, Index chunk) const {
    const Index first = chunk * optimizer_chunk, n = chunk_size(weight.extent(0), chunk);
    if (norm(1) == 0) return;
    const AdamWElement<M> element(rule(0), norm(1));
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
  View<const AdamW, 1> rule;  // [1]
  View<const double, 1> norm;
  View<M, 2> weight;
  View<const M, 2> gradient;
  View<Moment, 2> m, v;
  Quantized<C> operand;
  ScaleRule scale;

  DSV3_HD void operator()(auto team, Index block) const {
    if (norm(1) == 0) return;
    const AdamWElement<M> element(rule(0), norm(1));
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

// One row of a tensor whose moments are codes: m itself, and the square root of v, so that as many
// binades suffice for it as for a gradient. Each group gets the scale of its new values.
template <class M, class CM, class CV, class W>
struct AdamWQuantizedMomentsRow {
  View<const AdamW, 1> rule;  // [1]
  View<const double, 1> norm;
  View<M, 2> weight;
  View<const M, 2> gradient;
  MomentView<CM, 2> m;
  MomentView<CV, 2> v;
  View<W, 2> operand;  // or empty

  DSV3_HD void operator()(auto team, Index row) const {
    if (norm(1) == 0) return;
    const AdamWElement<M> element(rule(0), norm(1));
    const ScaleRule scale_rule;
    const Index n = weight.extent(1), width = MomentView<CM, 2>::group;
    for (Index g = 0; g * width < n; ++g) {
      const Index first = g * width, left = n - first, count = left < width ? left : width;
      const float m_scale = m.scales(row, g), v_scale = v.scales(row, g);
      const auto next_m = [&](Index j) {
        const float before = float(m.codes(row, j)) * m_scale;
        return fma(element.b1, before, element.r1 * (element.factor * gradient(row, j)));
      };
      const auto next_root = [&](Index j) {
        const float before = float(v.codes(row, j)) * v_scale;
        const float grad = element.factor * gradient(row, j);
        return sqrt(fma(element.b2, before * before, element.r2 * (grad * grad)));
      };
      const float new_m = scale_rule.scale<CM>(from_magnitude(
          team.max(count, [&](Index j) { return magnitude_bits(next_m(first + j)); })));
      const float new_v = scale_rule.scale<CV>(from_magnitude(
          team.max(count, [&](Index j) { return magnitude_bits(next_root(first + j)); })));
      team.sync();
      team.each(count, [&](Index c) {
        const Index j = first + c;
        const float moment = next_m(j), root = next_root(j);
        m.codes(row, j) = CM(moment / new_m);
        v.codes(row, j) = CV(root / new_v);
        const float update = (moment * element.c1) / fma(root, sqrt(element.c2), element.eps);
        weight(row, j) = fma(weight(row, j), element.keep, -(element.lr * update));
        if (operand.data) operand(row, j) = W(weight(row, j));
      });
      team.sync();
      team.once([&] {
        m.scales(row, g) = new_m;
        v.scales(row, g) = new_v;
      });
    }
  }
};

// average = decay average + (1 - decay) weight, for one chunk. Nothing changes in a skipped step.
template <class M>
struct AverageRow {
  double decay;
  View<const double, 1> norm;
  View<const M, 1> weight;
  View<M, 1> average;

  DSV3_HD void operator()(auto team, Index chunk) const {
    const Index first = chunk * optimizer_chunk;
    if (norm(1) == 0) return;
    const M keep = M(decay), rest = M(1 - decay);
    team.each(chunk_size(weight.extent(0), chunk), [&](Index j) {
      average(first + j) = fma(keep, average(first + j), rest * weight(first + j));
    });
  }
};

}  // namespace detail
}  // namespace dsv3
