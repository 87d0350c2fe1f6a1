// Speculative sampling: whether a drafted token stands, and what replaces it.
#pragma once

#include <dsv3/infer/sampling.hpp>

namespace dsv3 {

/// How often drafts stood.
struct AcceptanceStatistics {
  std::vector<Index> drafted, accepted;  ///< of each depth
  Index passes = 0;                      ///< of the main model that verified drafts or decoded
  Index tokens = 0;                      ///< that came of them

  /// The share of drafts at a depth that stood, among those whose predecessors stood.
  double rate(std::size_t depth) const {
    return depth < drafted.size() && drafted[depth]
               ? static_cast<double>(accepted[depth]) / static_cast<double>(drafted[depth])
               : 0;
  }
  double tokens_per_pass() const {
    return passes ? static_cast<double>(tokens) / static_cast<double>(passes) : 0;
  }
};

/// The rule that leaves the main model's distribution p as it is, whatever the draft's q: a draft
/// stands with probability min(1, p/q); else the token is drawn from max(p - q, 0), normalised.
///
/// Shapes   p and q [vocab_size], both after the same options; q is where the draft came from.
/// Source   Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318; spec 6.6.
struct SpeculationRule {
  struct Verdict {
    bool accepted;
    std::int32_t token;  // the draft, or what replaces it
  };

  /// u_accept and u_residual: two independent numbers in [0, 1).
  Verdict operator()(const std::vector<double>& p, const std::vector<double>& q, std::int32_t draft,
                     double u_accept, double u_residual) const {
    const auto d = static_cast<std::size_t>(draft);
    if (u_accept * q[d] < p[d]) return {true, draft};
    std::vector<double> rest(p.size());
    double total = 0;
    for (std::size_t i = 0; i < p.size(); ++i) total += rest[i] = std::max(p[i] - q[i], 0.0);
    // Where rounding leaves nothing, p equals q and p itself is the answer.
    return {false, Sampler::draw(total > 0 ? rest : p, u_residual)};
  }
};

}  // namespace dsv3
