// What does predicting more than the next token bring? DeepSeek-V3, table 4 and section 5.4.3.
#include <dsv3/infer/inference_model.hpp>

#include "../sample.hpp"
#include "agreement.hpp"
#include "experiment.hpp"
#include "trained.hpp"

using namespace experiment;

namespace {

constexpr Recipe predicting(Index depth) {
  Recipe r;
  r.config.num_nextn_predict_layers = depth;  // the line that is changed
  return r;
}

// What generating with a model showed, seed by seed.
struct Generated {
  std::vector<std::vector<double>> stood;  // [domains][seeds] share of first drafts that stood
  std::vector<double> plain, drafted;      // tokens a second, mean over domains
  std::vector<double> agreed, right;       // shares of held-out text, see agreement()
};

void look(Trained& t, Generated& g) {
  const Agreement found = agreement(t);
  g.agreed.push_back(found.with_main);
  g.right.push_back(found.with_text);
}

void generate(Trained& t, Generated& g) {
  const Index depth = t.model.config().num_nextn_predict_layers, count = 96;
  dsv3::InferenceModel<dsv3::Bf16, dsv3::Cpu> model(t.model.backend(), t.model.config());
  model.take_operands(t.model);
  g.stood.resize(static_cast<std::size_t>(t.domains.size()));
  double plain = 0, drafted = 0;
  for (Index d = 0; d < t.domains.size(); ++d) {
    const auto prompt = t.prompt(d, 64);
    const example::Sample one = example::sample(model, prompt, count, 0);
    const example::Sample more = example::sample(model, prompt, count, depth);
    if (one.tokens != more.tokens)
      throw std::runtime_error("speculation changed the text: please report this");
    plain += one.tokens_per_second() / static_cast<double>(t.domains.size());
    drafted += more.tokens_per_second() / static_cast<double>(t.domains.size());
    if (depth > 0) g.stood[static_cast<std::size_t>(d)].push_back(more.stood.front());
  }
  g.plain.push_back(plain);
  g.drafted.push_back(drafted);
  if (depth == 1) look(t, g);
}

void mtp(const Options& o, const std::vector<DomainText>& texts, Section& section) {
  std::vector<Variant> variants = {{"the next token", predicting(0)},
                                   {"two tokens", predicting(1)},
                                   {"three tokens", predicting(2)}};
  std::vector<Generated> generated(variants.size());
  train_all(variants, o, texts, o.steps(160), 4,
            [&](std::size_t i, Trained& trained) { generate(trained, generated[i]); });

  std::vector<std::vector<std::string>> growth;
  for (const Index part : {16, 4, 1}) {
    Generated short_run = part == 1 ? generated[1] : Generated{};
    const Index steps = std::max<Index>(1, o.steps(160) / part);
    std::vector<Variant> shorter = {variants[1]};
    if (part > 1)
      train_all(shorter, o, texts, steps, 1, [&](std::size_t, Trained& t) { look(t, short_run); });
    growth.push_back({std::to_string(steps), Spread::of(short_run.right).text(2),
                      Spread::of(short_run.agreed).text(2)});
    section.json()["right"].push_back(short_run.right);
    section.json()["agreed"].push_back(short_run.agreed);
  }

  section.question("What does predicting two tokens bring?",
                   "better scores on most benchmarks at equal data (table 4); 85 to 90 % of second "
                   "tokens stand, for 1.8 times the speed of decoding (section 5.4.3)");
  std::vector<std::vector<std::string>> rows, acceptance;
  std::vector<example::Curve> curves;
  for (std::size_t i = 0; i < variants.size(); ++i) {
    const Variant& v = variants[i];
    const Spread plain = Spread::of(generated[i].plain), with = Spread::of(generated[i].drafted);
    rows.push_back({v.name, differences(variants.front().recipe, v.recipe),
                    v.over_seeds([](const Run& r) { return r.last().loss; }).text(3), plain.text(0),
                    i ? with.text(0) : "-", i ? example::decimal(with.mean / plain.mean, 2) : "-"});
    curves.push_back(curve_of(v, static_cast<int>(i), [](const Evaluation& e) { return e.loss; }));
    for (std::size_t d = 0; i && d < texts.size(); ++d)
      acceptance.push_back({v.name, texts[d].name, Spread::of(generated[i].stood[d]).text(2)});
  }
  section.table({"predicts", "changed", "main head's held-out loss, nats (range)",
                 "tokens/s, one a pass (range)", "tokens/s with drafts (range)", "times"},
                rows);
  section.table({"predicts", "domain", "share of first drafts that stood (range)"}, acceptance);
  section.table(
      {"steps of training", "held-out text: share of drafts that the main head then says"}, growth);
  section.plot("Held-out loss of the main head", "step", "nats a token, mean over seeds", curves);
  section.json()["variants"] = to_json(variants);
  for (std::size_t i = 1; i < variants.size(); ++i)
    section.json()["stood"].push_back(generated[i].stood);
  const Spread none = variants[0].over_seeds([](const Run& r) { return r.last().loss; });
  const Spread two = variants[1].over_seeds([](const Run& r) { return r.last().loss; });
  const bool apart = none.least > two.most || two.least > none.most;
  section.findings(
      "the main head ends at " + none.text(3) + " without MTP and at " + two.text(3) +
          " with it: " +
          (apart ? (two.mean < none.mean ? "better with it." : "worse with it.")
                 : "the ranges over seeds overlap.") +
          " Drafts are what held-out text says in " + growth.front()[1] + " of places after " +
          growth.front()[0] + " steps and in " + growth.back()[1] + " after " + growth.back()[0] +
          "; a model that has learnt little says the same everywhere, and so do its drafts. Every "
          "text is the same with and without drafts.",
      "with four small layers a module of MTP is a fifth of the model, where V3's is a sixtieth: "
      "the share of drafts that stand carries over, the speed does not. Text that a small model "
      "repeats is easy to draft.");
}

}  // namespace

int main(int argc, char** argv) { return run_program(argc, argv, "mtp", mtp); }
