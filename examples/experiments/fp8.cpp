// What does FP8 cost? DeepSeek-V3, appendix B: less than 0.25 % of BF16's loss.
#include <fstream>

#include "experiment.hpp"

using namespace experiment;

namespace {

// The numbers that the study program left for this run: examples/experiments/run calls it first.
nlohmann::ordered_json study_of(const Options& o) {
  const std::string path = o.out + "/fp8_study/fp8_study.json";
  std::ifstream file(path);
  if (!file)
    throw std::invalid_argument("cannot read '" + path +
                                "': examples/experiments/run fp8 trains what this program shows");
  return nlohmann::ordered_json::parse(file);
}

void fp8(const Options& o, const std::vector<DomainText>&, Section& section) {
  const auto study = study_of(o);
  section.question("What does FP8 cost?",
                   "the loss of FP8 training stays within 0.25 % of BF16's (appendix B.1); with "
                   "128 x 128 blocks of gradients a 16B model diverged (appendix B.2)");
  std::vector<std::vector<std::string>> rows;
  std::vector<example::Curve> curves;
  const auto percent = [](double x) { return example::decimal(100 * x, 3) + " %"; };
  for (const auto& variant : study["variants"]) {
    const auto &loss = variant["loss"], &gap = variant["gap"];
    rows.push_back({variant["name"], variant["what"], example::decimal(loss["mean"], 4),
                    percent(gap["mean"]), percent(gap["least"]) + " to " + percent(gap["most"])});
    example::Curve curve{variant["name"], static_cast<int>(curves.size() % 6), {}};
    const auto& runs = variant["runs"];
    for (std::size_t step = 0; step < runs[0]["loss"].size(); ++step) {
      double mean = 0;
      for (const auto& run : runs)
        mean += run["loss"][step].get<double>() / static_cast<double>(runs.size());
      curve.points.push_back({static_cast<double>(step + 1), mean});
    }
    curve.points = example::smoothed(curve.points, 10);
    curves.push_back(curve);
  }
  section.table(
      {"policy", "what it is", "loss of the last steps", "gap to BF16", "range over seeds"}, rows);
  section.plot("Training loss", "step", "nats a token, mean over seeds and 21 steps", curves);
  section.json()["study"] = study;
  std::string measured = "gaps to BF16, mean over seeds:";
  for (const auto& variant : study["variants"])
    if (variant["name"] != "bf16")
      measured += ' ' + variant["name"].get<std::string>() + ' ' + percent(variant["gap"]["mean"]);
  section.findings(measured + ".",
                   "FP32 differs from BF16 too, by rounding alone: gaps of that size say nothing. "
                   "Sums of a few hundred products and a short run show neither the outliers nor "
                   "the drift of a large model; the study's own page says more.");
}

}  // namespace

int main(int argc, char** argv) { return run_program(argc, argv, "fp8", fp8); }
