// Auxiliary-loss-free balancing: the update of the gate's bias, and how uneven the load is.
#pragma once

#include <dsv3/core/math.hpp>
#include <dsv3/core/scalar.hpp>
#include <dsv3/core/view.hpp>
#include <vector>

namespace dsv3 {
namespace detail {

// b_e += gamma sign(mean load - load_e), for one layer; centred: minus the mean of the signs.
// Nothing changes where the step is skipped (norm[1] is 0).   Spec 5.6.
template <class A>
struct GateBiasRow {
  View<const Index, 2> load;  // [layers, E] of the whole step
  View<const double, 1> norm;
  double gamma;
  bool centre;
  View<A, 2> bias;  // [layers, E]

  DSV3_HD void operator()(auto team, Index layer) const {
    if (norm(1) == 0) return;
    const Index experts = load.extent(1);
    const Index total = team.sum(experts, [&](Index e) { return load(layer, e); });
    // sign(mean - load_e) = sign(total - E load_e), in integers.
    const auto sign = [&](Index e) {
      const Index below = total - experts * load(layer, e);
      return static_cast<Index>(below > 0) - static_cast<Index>(below < 0);
    };
    const A mean = centre ? A(team.sum(experts, sign)) / A(experts) : A(0);
    team.each(experts,
              [&](Index e) { bias(layer, e) = fma(A(gamma), A(sign(e)) - mean, bias(layer, e)); });
  }
};

}  // namespace detail

/// MaxVio of one layer: (largest load - mean load) / mean load; 0 where nothing was counted.
/// Source   Wang et al. 2024, arXiv:2408.15664, eq. 4.
inline double max_violation(const Index* load, Index experts) {
  Index total = 0, largest = 0;
  for (Index e = 0; e < experts; ++e) {
    total += load[e];
    largest = load[e] > largest ? load[e] : largest;
  }
  if (total == 0) return 0;
  const double mean = static_cast<double>(total) / static_cast<double>(experts);
  return (static_cast<double>(largest) - mean) / mean;
}

}  // namespace dsv3
