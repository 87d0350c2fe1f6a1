// Do experts specialise by domain more freely without an auxiliary loss? DeepSeek-V3, figure 9.
#include "experiment.hpp"

using namespace experiment;

namespace {

constexpr Recipe with(double bias_gamma, double balance_alpha) {
  Recipe r;
  r.bias_gamma = bias_gamma;
  r.balance_alpha = balance_alpha;
  return r;
}

// Load of each expert of each MoE layer on one domain, relative to an even spread.
std::vector<double> relative_load(const Evaluation& e, std::size_t domain, Index experts) {
  std::vector<double> relative;
  const std::vector<Index>& load = e.load[domain];
  for (std::size_t first = 0; first < load.size(); first += static_cast<std::size_t>(experts)) {
    double all = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(experts); ++i)
      all += static_cast<double>(load[first + i]);
    for (std::size_t i = 0; i < static_cast<std::size_t>(experts); ++i)
      relative.push_back(static_cast<double>(load[first + i]) * static_cast<double>(experts) / all);
  }
  return relative;
}

// How far domains are from using experts alike: mean over experts and domains of |relative load -
// its mean over domains|. 0: all alike.
double spread_of(const Evaluation& e, Index experts) {
  std::vector<std::vector<double>> all;
  for (std::size_t d = 0; d < e.load.size(); ++d) all.push_back(relative_load(e, d, experts));
  double total = 0;
  for (std::size_t i = 0; i < all.front().size(); ++i) {
    double mean = 0;
    for (const auto& domain : all) mean += domain[i] / static_cast<double>(all.size());
    for (const auto& domain : all) total += std::abs(domain[i] - mean);
  }
  return total / static_cast<double>(all.size() * all.front().size());
}

void specialisation(const Options& o, const std::vector<DomainText>& texts, Section& section) {
  std::vector<Variant> variants = {{"bias update", with(1e-2, 1e-4)},
                                   {"sequence-wise loss 0.03", with(0, 3e-2)}};
  train_all(variants, o, texts, o.steps(160), 4);

  section.question("Do experts specialise by domain more freely without an auxiliary loss?",
                   "with the bias update loads differ more from domain to domain than with an "
                   "auxiliary loss (figure 9)");
  std::vector<std::vector<std::string>> rows;
  std::vector<Spread> spreads;
  for (const Variant& v : variants) {
    const Index experts = v.recipe.config.n_routed_experts;
    spreads.push_back(v.over_seeds([&](const Run& r) { return spread_of(r.last(), experts); }));
    rows.push_back({v.name, differences(variants.front().recipe, v.recipe), spreads.back().text(3),
                    v.over_seeds([](const Run& r) { return r.last().loss; }).text(3)});
    std::vector<std::string> names;
    std::vector<std::vector<double>> loads;
    for (std::size_t d = 0; d < texts.size(); ++d) {
      names.push_back(texts[d].name);
      loads.push_back(relative_load(v.runs.front().last(), d, experts));
    }
    section.heat_map("Relative load of experts, " + v.name,
                     "One cell an expert, layer after layer; the first seed.",
                     {"unused", "even share", "twice or more"}, names, loads);
  }
  section.table(
      {"variant", "changed", "spread over domains (range)", "held-out loss, nats (range)"}, rows);
  section.json()["variants"] = to_json(variants);
  section.json()["spread"] = {spreads[0].mean, spreads[1].mean};
  const bool apart = spreads[0].least > spreads[1].most || spreads[1].least > spreads[0].most;
  section.findings(
      "the spread of relative loads over domains is " + spreads[0].text(3) +
          " with the bias update and " + spreads[1].text(3) + " with the balance loss: " +
          (apart ? (spreads[0].mean > spreads[1].mean ? "experts specialise more without the loss."
                                                      : "the opposite of the paper's figure.")
                 : "the ranges over seeds overlap."),
      "four kinds of text that share an alphabet are fewer and nearer to each other than the "
      "domains of the Pile, and bytes leave less to specialise in than words.");
}

}  // namespace

int main(int argc, char** argv) {
  return run_program(argc, argv, "specialisation", specialisation);
}
