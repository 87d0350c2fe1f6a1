// Does YaRN carry a model to longer contexts? DeepSeek-V3, section 4.3 and figure 8.
#include "experiment.hpp"
#include "long_context.hpp"

using namespace experiment;

namespace {

// The trained model's config with YaRN for rows of the longest length.
dsv3::ModelConfig with_yarn(dsv3::ModelConfig c, Index trained_length) {
  c.rope_scaling = dsv3::presets::deepseek_yarn;  // the line that is changed
  c.rope_scaling.factor = static_cast<double>(longest) / static_cast<double>(trained_length);
  c.rope_scaling.original_max_position_embeddings = trained_length;
  return c;
}

// Mean over the seeds of what f(Long) gives at index i.
double mean_of(const std::vector<Long>& all, auto&& f) {
  double sum = 0;
  for (const Long& l : all) sum += f(l) / static_cast<double>(all.size());
  return sum;
}

void context(const Options& o, const std::vector<DomainText>& texts, Section& section) {
  const Domains rows(texts, longest, 1);
  std::vector<Variant> variants = {{"trained on rows of 128", Recipe{}}};
  const Index trained = variants[0].recipe.length;
  std::vector<Long> results[2];  // without and with YaRN
  train_all(variants, o, texts, o.steps(240), 2, [&](std::size_t, Trained& t) {
    results[0].push_back(measure(t, t.model.config(), rows));
    results[1].push_back(measure(t, with_yarn(t.model.config(), trained), rows));
  });

  section.question("Does YaRN carry a model to longer contexts?",
                   "after two short extensions with YaRN V3 finds a needle at every depth up to "
                   "128 K tokens (figure 8)");
  const char* names[] = {"without YaRN", "with YaRN"};
  std::vector<example::Curve> curves;
  std::vector<std::vector<std::string>> table;
  double beyond[2] = {}, within[2] = {};
  for (int y = 0; y < 2; ++y) {
    example::Curve curve{names[y], y, {}, false, true};
    std::vector<double> late, early;
    for (std::size_t i = 0; i < longest / bin; ++i)
      curve.points.push_back({(static_cast<double>(i) + 0.5) * bin,
                              mean_of(results[y], [&](const Long& l) { return l.loss[i]; })});
    for (const Long& l : results[y]) {
      double a = 0, b = 0;
      for (std::size_t i = 0; i < l.loss.size(); ++i)
        (static_cast<Index>(i) * bin < trained ? a : b) += l.loss[i];
      early.push_back(a / static_cast<double>(trained / bin));
      late.push_back(b / static_cast<double>((longest - trained) / bin));
    }
    within[y] = Spread::of(early).mean, beyond[y] = Spread::of(late).mean;
    table.push_back({names[y], y ? "rope_scaling null -> yarn, factor 4" : "the reference",
                     Spread::of(early).text(3), Spread::of(late).text(3)});
    curves.push_back(curve);
    std::vector<std::string> labels;
    std::vector<std::vector<double>> found;
    for (std::size_t n = 0; n < std::size(lengths); ++n) {
      labels.push_back(std::to_string(lengths[n]) + " tokens");
      found.emplace_back();
      for (std::size_t d = 0; d < depths; ++d)
        found.back().push_back(
            2 * mean_of(results[y], [&](const Long& l) { return l.retrieved[n][d]; }));
    }
    section.heat_map(std::string("Letters of a needle found again, ") + names[y],
                     "depth from the start (left) to the end; blue none, white half, orange all",
                     labels, found);
    nlohmann::ordered_json runs = nlohmann::ordered_json::array();
    for (const Long& l : results[y]) runs.push_back({{"loss", l.loss}, {"found", l.retrieved}});
    section.json()[names[y]] = runs;
  }
  section.table({"", "changed", "loss at positions below 128 (range)", "from 128 to 511 (range)"},
                table);
  section.plot("Held-out loss by position", "position", "nats a token, mean over seeds", curves);
  section.json()["variants"] = to_json(variants);
  section.findings(
      "from position 128 on the loss is " + example::decimal(beyond[0], 3) + " without and " +
          example::decimal(beyond[1], 3) + " with YaRN, before it " +
          example::decimal(within[0], 3) + " and " + example::decimal(within[1], 3) + ".",
      "nothing is trained after the change, where V3 trained 1000 steps at each length. Bytes are "
      "predicted from few bytes before them, so a loss by position says little of long reach, and "
      "a model this small hardly learns to copy a needle at any length.");
}

}  // namespace

int main(int argc, char** argv) { return run_program(argc, argv, "context", context); }
