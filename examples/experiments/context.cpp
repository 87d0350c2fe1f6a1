// Does YaRN carry a model to longer contexts? DeepSeek-V3, section 4.3 and figure 8.
#include "experiment.hpp"
#include "long_context.hpp"

using namespace experiment;

namespace {

struct Way {  // of going on to rows of the longest length
  const char* name;
  bool yarn, trained;  // the two things that are changed
  std::vector<Long> results = {};
};

// Going on with rows of the longest length, at the rate that `before` decays to.
Recipe extended(const Recipe& before, bool yarn) {
  Recipe r = before;
  const Index factor = longest / before.length;
  r.length = longest;
  r.batch /= factor;
  r.pieces = 1;
  r.peak_lr /= 10;
  r.constant_lr = true;
  r.bias_gamma = 0;
  if (!yarn) return r;
  r.config.rope_scaling = dsv3::presets::deepseek_yarn;
  r.config.rope_scaling.factor = static_cast<double>(factor);
  r.config.rope_scaling.original_max_position_embeddings = before.length;
  return r;
}

// Mean over the seeds of what f(Long) gives.
double mean_of(const std::vector<Long>& all, auto&& f) {
  double sum = 0;
  for (const Long& l : all) sum += f(l) / static_cast<double>(all.size());
  return sum;
}

// Mean loss of bins [first, last), over the seeds.
Spread loss_of(const std::vector<Long>& all, Index first, Index last) {
  std::vector<double> means;
  for (const Long& l : all) {
    means.push_back(0);
    for (Index i = first; i < last; ++i)
      means.back() += l.loss[static_cast<std::size_t>(i)] / static_cast<double>(last - first);
  }
  return Spread::of(means);
}

void context(const Options& o, const std::vector<DomainText>& texts, Section& section) {
  const Domains rows(texts, longest, 1);
  const Recipe recipe{.pieces = longest / Recipe{}.length};  // both lengths hold out the same text
  const Index more_steps = o.steps(40);
  const std::string yarn = "rope_scaling null -> yarn, factor 4. ";
  const std::string more = std::to_string(more_steps) + " more steps, rows of 512";
  std::vector<Variant> variants = {{"trained on rows of 128", recipe}};
  std::vector<Way> ways = {{"as it is", false, false},
                           {"YaRN", true, false},
                           {"trained on", false, true},
                           {"YaRN, trained on", true, true}};
  train_all(variants, o, texts, o.steps(240), 2, [&](std::size_t, Trained& t) {
    const auto seed = static_cast<std::uint64_t>(ways[0].results.size() + 1);
    for (Way& way : ways) {
      const Recipe r = extended(recipe, way.yarn);
      const auto look = [&](Trained& u) { way.results.push_back(measure(u, r.config, rows)); };
      if (way.trained)
        train(
            r, texts, more_steps, 1, seed, static_cast<int>(o.threads), [](Index) {}, look, &t);
      else
        look(t);
    }
  });

  section.question("Does YaRN carry a model to longer contexts?",
                   "after two short trainings with YaRN, at 32 K and at 128 K tokens, V3 finds a "
                   "needle at every depth up to 128 K tokens (figure 8)");
  std::vector<example::Curve> curves;
  std::vector<std::vector<std::string>> table;
  for (const Way& way : ways) {
    example::Curve curve{way.name, static_cast<int>(curves.size()), {}, false, true};
    for (std::size_t i = 0; i < longest / bin; ++i)
      curve.points.push_back({(static_cast<double>(i) + 0.5) * bin,
                              mean_of(way.results, [&](const Long& l) { return l.loss[i]; })});
    curves.push_back(curve);
    table.push_back({way.name, (way.yarn ? yarn : "") + (way.trained ? more : ""),
                     loss_of(way.results, 0, recipe.length / bin).text(3),
                     loss_of(way.results, recipe.length / bin, longest / bin).text(3)});
  }
  section.table(
      {"model", "changed", "loss at positions below 128, nats (range)", "from 128 to 511 (range)"},
      table);
  section.plot("Held-out loss by position", "position in the row, tokens",
               "nats a token, mean over seeds", curves);
  for (const Way& way : ways) {
    std::vector<std::string> labels;
    std::vector<std::vector<double>> found(std::size(lengths), std::vector<double>(depths));
    for (std::size_t n = 0; n < std::size(lengths); ++n) {
      labels.push_back(std::to_string(lengths[n]) + " tokens");
      for (std::size_t d = 0; d < depths; ++d)
        found[n][d] = 2 * mean_of(way.results, [&](const Long& l) { return l.retrieved[n][d]; });
    }
    section.heat_map("Needle found again: " + std::string(way.name),
                     "Share of its letters. Depth in the text from its start (left) to its end.",
                     {"none", "half", "all"}, labels, found);
    for (const Long& l : way.results)
      section.json()[way.name].push_back({{"loss", l.loss}, {"found", l.retrieved}});
  }
  section.json()["variants"] = to_json(variants);
  std::string measured = "losses from position 128 on:";
  for (const Way& way : ways)
    measured += " " + loss_of(way.results, recipe.length / bin, longest / bin).text(3) + " " +
                way.name + (&way == &ways.back() ? "." : ";");
  section.findings(measured,
                   "bytes are predicted from few bytes before them, so a loss by position says "
                   "little of long reach, and a model this small hardly learns to copy a needle.");
}

}  // namespace

int main(int argc, char** argv) { return run_program(argc, argv, "context", context); }
