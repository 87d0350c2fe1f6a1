// What does limiting a token to some of the nodes cost and save? DeepSeek-V3, section 3.2.2.
#include <dsv3/plan.hpp>

#include "experiment.hpp"

using namespace experiment;

namespace {

constexpr Recipe limited_to(Index nodes) {
  Recipe r;
  r.config.topk_group = nodes;  // the line that is changed
  return r;
}

// Mean number of nodes that a token's experts lie on.
double mean_nodes(const Run& run) {
  double sum = 0, all = 0;
  const std::vector<Index>& nodes = run.last().nodes;
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    sum += static_cast<double>(n) * static_cast<double>(nodes[n]);
    all += static_cast<double>(nodes[n]);
  }
  return sum / all;
}

// What a token of V3's width would move in one MoE layer, each way in FP8 and BF16, if its experts
// lay on so many nodes, of which its own is one by chance.
dsv3::plan::Transfer transfer_of(double nodes, Index experts, Index all_nodes) {
  const auto bytes = static_cast<double>(
      dsv3::plan::trip_bytes(dsv3::presets::deepseek_v3.hidden_size, dsv3::plan::Wire::fp8));
  return dsv3::plan::transfer(bytes, nodes * (1 - 1 / static_cast<double>(all_nodes)),
                              static_cast<double>(experts));
}

void node_limit(const Options& o, const std::vector<DomainText>& texts, Section& section) {
  constexpr Index G = base.n_group, K = base.num_experts_per_tok;
  std::vector<Variant> variants;
  for (Index m = G; m >= 1; --m)
    variants.push_back({m == G ? "unlimited" : "at most " + std::to_string(m), limited_to(m)});
  train_all(variants, o, texts, o.steps(120), 2);

  const dsv3::plan::Links links;
  section.question(
      "What does limiting a token to some of the nodes cost and save?",
      "a token goes to at most 4 of 8 nodes. 160 GB/s inside a node beside 50 GB/s between nodes "
      "let it reach 3.2 experts a node for the price of one (section 3.2.2)");
  std::vector<std::vector<std::string>> rows;
  std::vector<example::Curve> histogram;
  for (std::size_t i = 0; i < variants.size(); ++i) {
    const Variant& v = variants[i];
    const Spread nodes = v.over_seeds(mean_nodes);
    const auto t = transfer_of(nodes.mean, K, G);
    rows.push_back({v.name, differences(variants.front().recipe, v.recipe),
                    v.over_seeds([](const Run& r) { return r.last().loss; }).text(3), nodes.text(2),
                    example::decimal(dsv3::plan::expected_targets(v.recipe.config, G), 2),
                    example::decimal(static_cast<double>(K) / nodes.mean, 2),
                    example::decimal(t.between / 1024, 1), example::decimal(t.inside / 1024, 1),
                    example::decimal(1e6 * t.seconds(links), 2)});
    example::Curve curve{v.name, static_cast<int>(i), {}, false, true};
    const std::vector<Index>& counts = v.runs.front().last().nodes;
    double all = 0;
    for (const Index n : counts) all += static_cast<double>(n);
    for (std::size_t n = 1; n < counts.size(); ++n)
      curve.points.push_back({static_cast<double>(n), 100 * static_cast<double>(counts[n]) / all});
    histogram.push_back(curve);
  }
  section.table(
      {"limit", "changed", "held-out loss (range)", "nodes a token (range)", "nodes, even gate",
       "experts a node", "KiB between nodes", "KiB inside", "modelled us a token and layer"},
      rows);
  section.plot("Nodes of a token", "nodes that a token's experts lie on",
               "% of tokens and layers, first seed", histogram, {}, true);
  section.json()["variants"] = to_json(variants);
  const Spread free = variants.front().over_seeds(mean_nodes);
  const Spread two = variants[G - 2].over_seeds(mean_nodes);
  section.findings(
      "with a limit of 2 a token's experts lie on " + two.text(2) + " nodes instead of " +
          free.text(2) + ", which moves " + example::decimal(100 * (1 - two.mean / free.mean), 0) +
          " % fewer bytes between nodes. The losses are in the table, with their ranges.",
      "nodes are groups of experts here, on one machine: loss and routing are measured, bytes and "
      "times are the planner's for rows of V3's width, without latency and congestion.");
}

}  // namespace

int main(int argc, char** argv) { return run_program(argc, argv, "node_limit", node_limit); }
