// What does limiting a token to some of the nodes cost and save? DeepSeek-V3, section 3.2.2.
#include <dsv3/plan.hpp>

#include "experiment.hpp"

using namespace experiment;

namespace {

// Bytes of a copy if tokens were as wide as V3's: forward and backward, there in FP8, back in BF16.
constexpr auto trip = static_cast<double>(
    dsv3::plan::trip_bytes(dsv3::presets::deepseek_v3.hidden_size, dsv3::plan::Wire::fp8));

constexpr Recipe limited_to(Index nodes) {
  Recipe r;
  r.config.topk_group = nodes;  // the line that is changed
  return r;
}

// Mean number of nodes that a token's experts lie on.
double mean_nodes(const Run& run) {
  double sum = 0, all = 0;
  const std::vector<Index>& nodes = run.last().copies.nodes;
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    sum += static_cast<double>(n) * static_cast<double>(nodes[n]);
    all += static_cast<double>(nodes[n]);
  }
  return sum / all;
}

// Of counted copies, those of a token in one MoE layer: as many as all nodes got, or, where the
// busiest of them had what every node has.
double copies(const Run& run, const std::vector<Index>& to_node, bool busiest = false) {
  double layers_and_tokens = 0, all = 0, most = 0;
  for (const Index n : run.last().copies.nodes) layers_and_tokens += static_cast<double>(n);
  for (const Index n : to_node) {
    all += static_cast<double>(n);
    most = std::max(most, static_cast<double>(n));
  }
  return (busiest ? most * static_cast<double>(to_node.size()) : all) / layers_and_tokens;
}
double between(const Run& run) { return copies(run, run.last().copies.between); }
double inside(const Run& run) { return copies(run, run.last().copies.inside); }

// Microseconds of a token and layer, by the links of the busiest node.
double microseconds(const Run& run) {
  const dsv3::plan::Transfer t = {trip * copies(run, run.last().copies.between, true),
                                  trip * copies(run, run.last().copies.inside, true)};
  return 1e6 * t.seconds();
}

// The same of a gate that favours no expert, by the planner.
dsv3::plan::Transfer expected(dsv3::ModelConfig c) {
  c.hidden_size = dsv3::presets::deepseek_v3.hidden_size;
  dsv3::plan::Layout layout;
  layout.ep = c.n_routed_experts;
  layout.gpus_per_node = c.n_routed_experts / c.n_group;
  return dsv3::plan::expected_transfer(c, layout, dsv3::plan::Wire::fp8);
}

void node_limit(const Options& o, const std::vector<DomainText>& texts, Section& section) {
  constexpr Index G = base.n_group, K = base.num_experts_per_tok;
  std::vector<Variant> variants;
  for (Index m = G; m >= 1; --m)
    variants.push_back({m == G ? "unlimited" : "at most " + std::to_string(m), limited_to(m)});
  train_all(variants, o, texts, o.steps(120), 2);

  section.question(
      "What does limiting a token to some of the nodes cost and save?",
      "a token goes to at most 4 of 8 nodes. 160 GB/s inside a node beside 50 GB/s between nodes "
      "let it reach 3.2 experts a node for the price of one (section 3.2.2)");
  std::vector<std::vector<std::string>> rows;
  std::vector<example::Curve> histogram;
  for (std::size_t i = 0; i < variants.size(); ++i) {
    const Variant& v = variants[i];
    const Spread nodes = v.over_seeds(mean_nodes);
    const double out = v.over_seeds(between).mean, in = v.over_seeds(inside).mean;
    const auto even = expected(v.recipe.config);
    const auto kib = [](double bytes) { return example::decimal(bytes / 1024, 1); };
    rows.push_back({v.name, differences(variants.front().recipe, v.recipe),
                    v.over_seeds([](const Run& r) { return r.last().loss; }).text(3), nodes.text(2),
                    example::decimal(static_cast<double>(K) / nodes.mean, 2), kib(trip * out),
                    kib(trip * in), kib(even.between), kib(even.inside),
                    example::decimal(v.over_seeds(microseconds).mean, 2)});
    example::Curve curve{v.name, static_cast<int>(i), {}, false, true};
    const std::vector<Index>& counts = v.runs.front().last().copies.nodes;
    double all = 0;
    for (const Index n : counts) all += static_cast<double>(n);
    for (std::size_t n = 1; n < counts.size(); ++n)
      curve.points.push_back({static_cast<double>(n), 100 * static_cast<double>(counts[n]) / all});
    histogram.push_back(curve);
  }
  section.table(
      {"limit", "changed", "held-out loss, nats (range)", "nodes a token (range)", "experts a node",
       "KiB between nodes", "KiB inside nodes", "KiB between, even gate", "KiB inside, even gate",
       "modelled microseconds a token and layer"},
      rows);
  section.plot("Nodes of a token", "nodes that a token's experts lie on",
               "% of tokens and layers, first seed", histogram, {}, true);
  section.json()["variants"] = to_json(variants);
  const Variant &free = variants.front(), &two = variants[G - 2];
  const Spread all = free.over_seeds(between), some = two.over_seeds(between);
  section.findings(
      "with a limit of 2 a token's experts lie on " + two.over_seeds(mean_nodes).text(2) +
          " nodes instead of " + free.over_seeds(mean_nodes).text(2) + "; " + some.text(2) +
          " copies of it cross between nodes instead of " + all.text(2) + ": " +
          example::decimal(100 * (1 - some.mean / all.mean), 0) +
          " % fewer bytes. The losses are in the table, with their ranges.",
      "nodes are groups of four experts on one machine, each expert as if on a GPU of its own. "
      "Every copy of the held-out text is counted from the experts that its tokens chose; the "
      "bytes of a copy are those of V3's width. Times follow from the bytes at the busiest node "
      "and the published bandwidths, without latency and congestion.");
}

}  // namespace

int main(int argc, char** argv) { return run_program(argc, argv, "node_limit", node_limit); }
