// Many small experts, and some that every token uses: DeepSeekMoE.
#include <dsv3/plan.hpp>

#include "experiment.hpp"

using namespace experiment;

namespace {

// `chosen` of `routed` experts and `shared` ones, all of width `width`.
constexpr Recipe with(Index chosen, Index routed, Index shared, Index width) {
  Recipe r;
  r.config.num_experts_per_tok = chosen;  // the line that is changed
  r.config.n_routed_experts = routed;
  r.config.n_shared_experts = shared;
  r.config.moe_intermediate_size = width;
  r.config.n_group = r.config.topk_group = 1;
  return r;
}

void experts(const Options& o, const std::vector<DomainText>& texts, Section& section) {
  // A token uses experts of 256 features in all, wherever they come from.
  std::vector<Variant> variants = {{"8 of 16", with(8, 16, 0, 32)},
                                   {"4 of 8", with(4, 8, 0, 64)},
                                   {"16 of 32", with(16, 32, 0, 16)},
                                   {"7 of 15, 1 shared", with(7, 15, 1, 32)},
                                   {"6 of 14, 2 shared", with(6, 14, 2, 32)}};
  train_all(variants, o, texts, o.steps(120), 4);

  section.question("Are many small experts, and shared ones, better at equal cost?",
                   "finer experts and isolated shared ones lower the loss at equal activated "
                   "parameters (DeepSeekMoE, section 4.3)");
  const auto loss = [](const Run& r) { return r.last().loss; };
  std::vector<std::vector<std::string>> rows;
  std::vector<example::Curve> curves;
  for (std::size_t i = 0; i < variants.size(); ++i) {
    const Variant& v = variants[i];
    const dsv3::ModelConfig& c = v.recipe.config;
    rows.push_back({v.name, std::to_string(c.moe_intermediate_size),
                    example::grouped(dsv3::plan::activated_parameters(c)),
                    example::grouped(dsv3::plan::main_parameters(c)), v.over_seeds(loss).text(3),
                    v.over_seeds([](const Run& r) { return r.last().max_violation; }).text(2)});
    curves.push_back(curve_of(v, static_cast<int>(i), [](const Evaluation& e) { return e.loss; }));
  }
  section.table({"experts", "width of each", "activated parameters", "parameters",
                 "held-out loss, nats (range)", "MaxVio (range)"},
                rows);
  section.plot("Held-out loss", "step", "nats a token, mean over seeds", curves);
  section.json()["variants"] = to_json(variants);
  const Spread few = variants[1].over_seeds(loss), many = variants[2].over_seeds(loss);
  const bool apart = few.least > many.most || many.least > few.most;
  section.findings(
      "4 of 8 experts end at " + few.text(3) + ", 16 of 32 at " + many.text(3) + ": " +
          (apart ? (many.mean < few.mean ? "finer is better here too."
                                         : "finer is worse here, against the paper.")
                 : "the ranges over seeds overlap."),
      "experts this narrow have little to divide, and a short run rewards what is learnt quickly "
      "rather than what is learnt in the end.");
}

}  // namespace

int main(int argc, char** argv) { return run_program(argc, argv, "experts", experts); }
