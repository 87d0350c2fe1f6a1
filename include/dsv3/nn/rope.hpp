// Rotary position embedding, interleaved layout, with YaRN.
#pragma once

#include <cmath>
#include <dsv3/config.hpp>
#include <dsv3/core/math.hpp>
#include <dsv3/core/scalar.hpp>
#include <numbers>
#include <vector>

namespace dsv3 {

/// m(s, c) of spec 3.3: YaRN's attention temperature for a stretch s with coefficient c.
inline double yarn_mscale(double factor, double coefficient) {
  return factor <= 1 ? 1.0 : fma(0.1 * coefficient, std::log(factor), 1.0);
}

/// The angle by which one position turns each pair of features.
///
/// Shapes   returns [qk_rope_head_dim / 2].
/// Units    radians per token.
/// Source   Su et al. 2021, arXiv:2104.09864; YaRN: Peng et al. 2023, arXiv:2309.00071; spec 3.1
///          and 3.3.
inline std::vector<double> rope_frequencies(const ModelConfig& c) {
  const auto d = static_cast<double>(c.qk_rope_head_dim);
  std::vector<double> frequencies(static_cast<std::size_t>(c.qk_rope_head_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i)
    frequencies[i] = std::pow(c.rope_theta, -2.0 * static_cast<double>(i) / d);
  const RopeScaling& r = c.rope_scaling;
  if (!r.enabled) return frequencies;
  const auto length = static_cast<double>(r.original_max_position_embeddings);
  // The pair whose wave turns `turns` times within the original context.
  const auto pair = [&](double turns) {
    return d * std::log(length / (2 * std::numbers::pi * turns)) / (2 * std::log(c.rope_theta));
  };
  const double low = std::fmax(std::floor(pair(r.beta_fast)), 0.0);
  double high = std::fmin(std::ceil(pair(r.beta_slow)), d - 1);
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp =
        std::fmin(std::fmax((static_cast<double>(i) - low) / (high - low), 0.0), 1.0);
    frequencies[i] = fma(frequencies[i], 1 - ramp, frequencies[i] / r.factor * ramp);
  }
  return frequencies;
}

/// What multiplies cos and sin: 1 for every release.
inline double rope_multiplier(const ModelConfig& c) {
  const RopeScaling& r = c.rope_scaling;
  if (!r.enabled) return 1;
  if (!r.mscale_given) return yarn_mscale(r.factor, 1);
  return yarn_mscale(r.factor, r.mscale) / yarn_mscale(r.factor, r.mscale_all_dim);
}

/// What multiplies a query-key product: qk_head_dim^(-1/2), times YaRN's m^2.
inline double softmax_scale(const ModelConfig& c) {
  const double scale = 1 / std::sqrt(static_cast<double>(c.qk_head_dim()));
  const RopeScaling& r = c.rope_scaling;
  if (!r.enabled || !r.mscale_given || r.mscale_all_dim == 0) return scale;
  const double m = yarn_mscale(r.factor, r.mscale_all_dim);
  return scale * m * m;
}

/// cos (row 0) and sin (row 1) of every angle, computed in double and rounded once.
///
/// Shapes   returns [positions, 2, qk_rope_head_dim / 2], flat.
template <class A>
std::vector<A> rope_table(const ModelConfig& c, Index positions) {
  const auto frequencies = rope_frequencies(c);
  const double multiplier = rope_multiplier(c);
  const std::size_t half = frequencies.size();
  std::vector<A> table(static_cast<std::size_t>(positions) * 2 * half);
  for (std::size_t p = 0; p < static_cast<std::size_t>(positions); ++p)
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * frequencies[i];
      table[p * 2 * half + i] = static_cast<A>(std::cos(angle) * multiplier);
      table[p * 2 * half + half + i] = static_cast<A>(std::sin(angle) * multiplier);
    }
  return table;
}

namespace detail {

// Turns the last features of every head by the token's angles; `direction` -1 turns them back,
// which is also the gradient.
template <class T>
struct RopeRow {
  View<const T, 3> x;  // [T, heads, width], its last features are turned
  View<T, 3> y;        // [T, heads, width]; may be x
  View<const accum_t<T>, 3> table;
  View<const std::int32_t, 1> position;
  int direction;

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<T>;
    const Index half = table.extent(2), from = x.extent(2) - 2 * half, to = y.extent(2) - 2 * half;
    const Index p = position(t);
    for (Index head = 0; head < x.extent(1); ++head)
      team.each(half, [&](Index i) {
        const A c = table(p, 0, i), s = direction < 0 ? -table(p, 1, i) : table(p, 1, i);
        const A a = A(x(t, head, from + 2 * i)), b = A(x(t, head, from + 2 * i + 1));
        y(t, head, to + 2 * i) = T(fma(a, c, -(b * s)));
        y(t, head, to + 2 * i + 1) = T(fma(a, s, b * c));
      });
  }
};

}  // namespace detail

/// Rotates features 2i and 2i + 1 of each head by position * frequency i.
///
///     y[2i] = x[2i] cos - x[2i+1] sin          y[2i+1] = x[2i] sin + x[2i+1] cos
///
/// Shapes   x [T, heads, any >= d], y [T, heads, any >= d]: the last d = qk_rope_head_dim features
///          are turned, others are left alone; table [positions, 2, d / 2]; position [T].
/// Types    computed in accum_t<T>, rounded once. y may be x.
/// Source   DeepSeek-V3 inference code; spec 3.2.
template <class T>
struct Rope {
  /// Writes the turned features of y.
  template <class Backend>
  void forward(Backend& backend, View<const T, 3> x, View<const accum_t<T>, 3> table,
               View<const std::int32_t, 1> position, View<T, 3> y) const {
    for_each_row(backend, x.extent(0), detail::RopeRow<T>{x, y, table, position, 1});
  }

  /// dx from dy: the rotation by the opposite angle.
  template <class Backend>
  void backward(Backend& backend, View<const T, 3> dy, View<const accum_t<T>, 3> table,
                View<const std::int32_t, 1> position, View<T, 3> dx) const {
    for_each_row(backend, dy.extent(0), detail::RopeRow<T>{dy, dx, table, position, -1});
  }
};

}  // namespace dsv3
