// Plan: what a token's way to its experts and back moves between and inside nodes.
#pragma once

#include <dsv3/plan/layout.hpp>

namespace dsv3::plan {

/// How a token's row travels.
enum class Wire {
  bf16,
  fp8,        ///< codes with a float scale for each 128
  fp8_ue8m0,  ///< codes with a scale of one byte, a power of two
};

/// Bytes of one row of `hidden` values.
/// Source   spec 10.2.
constexpr Index row_bytes(Index hidden, Wire wire) {
  const Index scales = (hidden + 127) / 128;
  switch (wire) {
    case Wire::bf16:
      return 2 * hidden;
    case Wire::fp8:
      return hidden + 4 * scales;
    case Wire::fp8_ue8m0:
      break;
  }
  return hidden + scales;
}

/// Bytes that a token and MoE layer moves for each target: forward and backward, there and back.
/// Outputs come back, and gradients in the inputs, in BF16.
constexpr Index trip_bytes(Index hidden, Wire dispatch) {
  return 2 * (row_bytes(hidden, dispatch) + row_bytes(hidden, Wire::bf16));
}

namespace detail {

// The chance that `chosen` of `all` experts, each subset alike, leave out `some` given ones.
constexpr double chance_of_none(Index all, Index some, Index chosen) {
  double p = 1;
  for (Index i = 0; i < chosen; ++i)
    p *=
        static_cast<double>(all - some - i > 0 ? all - some - i : 0) / static_cast<double>(all - i);
  return p;
}

// The chance that so many of `drawn` of `all` groups are among `marked` given ones.
constexpr double chance_of_hits(Index all, Index marked, Index drawn, Index hits) {
  const auto choose = [](Index n, Index k) {
    if (k < 0 || k > n) return 0.0;
    double ways = 1;
    for (Index i = 0; i < k; ++i) ways *= static_cast<double>(n - i) / static_cast<double>(i + 1);
    return ways;
  };
  return choose(marked, hits) * choose(all - marked, drawn - hits) / choose(all, drawn);
}

}  // namespace detail

/// Of `parts` equal parts of the experts (nodes, or GPUs), how many a token's experts lie on, on
/// average over a gate that favours none: topk_group groups first, then num_experts_per_tok of
/// their experts. Groups, like experts, lie on the parts in order.
///
/// Errors   std::invalid_argument where parts do not divide n_routed_experts, or neither divides
///          groups nor is divided by them.
/// Source   spec 10.2: 3.63 nodes of 8 for DeepSeek-V3, 5.29 without its limit.
constexpr double expected_targets(const ModelConfig& c, Index parts) {
  using detail::require;
  const Index E = c.n_routed_experts, K = c.num_experts_per_tok, G = c.groups();
  const Index kept = c.topk_method == TopkMethod::greedy ? 1 : c.topk_group;
  require(parts >= 1 && E % parts == 0, "parts", parts, "must divide n_routed_experts", E);
  require(parts % G == 0 || G % parts == 0, "parts", parts,
          "must divide, or be divided by, n_group", G);
  const Index candidates = kept * (E / G);
  double missed = 0;  // chance that one given part is no target
  if (parts >= G) {   // a part lies in one group, which may not be kept
    const double is_kept = static_cast<double>(kept) / static_cast<double>(G);
    missed = 1 - is_kept + is_kept * detail::chance_of_none(candidates, E / parts, K);
  } else {  // several groups to a part, any number of which may be kept
    for (Index hits = 0; hits <= G / parts; ++hits)
      missed += detail::chance_of_hits(G, G / parts, kept, hits) *
                detail::chance_of_none(candidates, hits * (E / G), K);
  }
  return static_cast<double>(parts) * (1 - missed);
}

/// Of `nodes`, on how many a token's experts can lie at most.
constexpr Index most_target_nodes(const ModelConfig& c, Index nodes) {
  const Index of_group = nodes > c.groups() ? nodes / c.groups() : 1;
  Index most = c.topk_method == TopkMethod::greedy ? nodes : c.topk_group * of_group;
  if (most > nodes) most = nodes;
  return most < c.num_experts_per_tok ? most : c.num_experts_per_tok;
}

/// Bandwidth of one GPU, bytes a second. Between nodes InfiniBand, inside NVLink.
/// Source   DeepSeek-V3, section 3.2.2.
struct Links {
  double between = 50e9, inside = 160e9;

  /// Experts of one node that a token reaches inside while its one copy comes from outside: so many
  /// cost no more than one.
  constexpr double free_experts_per_node() const { return inside / between; }
};

/// Bytes that one token moves in one MoE layer.
struct Transfer {
  double between = 0;  ///< nodes: one copy for each, to the GPU of the same index
  double inside = 0;   ///< from there to the GPUs of its experts

  /// Both kinds at once: the slower is what it takes.
  constexpr double seconds(const Links& links = {}) const {
    const double outer = between / links.between, inner = inside / links.inside;
    return outer > inner ? outer : inner;
  }
};

/// With copies of `bytes` to so many remote nodes, and to so many experts, each on a GPU of its
/// own. Two experts on one GPU cost one copy.
constexpr Transfer transfer(double bytes, double remote_nodes, double experts) {
  return {remote_nodes * bytes, experts * bytes};
}

/// On average, with this layout and a gate that favours none, forward and backward. Of a token's
/// target nodes its own is one by chance, and so is the GPU at which a copy arrives.
constexpr Transfer expected_transfer(const ModelConfig& c, const Layout& o, Wire dispatch) {
  if (!c.has_moe() || o.ep == 1) return {};
  const auto remote = [](double targets, Index of) { return targets * (1 - 1.0 / double(of)); };
  const Index in_node = o.ep < o.gpus_per_node ? o.ep : o.gpus_per_node;
  return transfer(static_cast<double>(trip_bytes(c.hidden_size, dispatch)),
                  remote(expected_targets(c, o.expert_nodes()), o.expert_nodes()),
                  remote(expected_targets(c, o.ep), in_node));
}

/// Seconds that a GPU with one expert needs in one layer to receive `tokens` tokens by `targets`
/// experts and to send them on: codes of one byte in, two bytes out.
/// Source   arXiv:2505.09343, section 2.3.2.
constexpr double decode_exchange_seconds(double tokens, double targets, double hidden,
                                         double bandwidth) {
  return (1 + 2) * tokens * targets * hidden / bandwidth;
}

/// Seconds between two tokens of a sequence where these exchanges are all that takes time: two
/// micro-batches take turns.
constexpr double decode_seconds(double exchange_seconds, Index layers) {
  return 2 * exchange_seconds * static_cast<double>(layers);
}

}  // namespace dsv3::plan
