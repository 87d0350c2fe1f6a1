// What all runs of the study amount to: curves, gaps to BF16, and the file of numbers.
#pragma once

#include "../spread.hpp"
#include "variant.hpp"

namespace example {

/// A variant and its runs, one a seed.
struct Result {
  Variant variant;
  std::vector<Run> runs;
};

/// Exponential moving average as in the paper's figure 10: s = 0.9 s + 0.1 x, from the first x on.
inline std::vector<double> moving_average(const std::vector<double>& x) {
  std::vector<double> s;
  for (const double value : x) s.push_back(s.empty() ? value : 0.9 * s.back() + 0.1 * value);
  return s;
}

/// Results of a study; the first is what the others are compared with. A study that is under way
/// has fewer runs of some variants than of others.
struct Study {
  StudyOptions options;
  std::vector<Result> results;

  const Result& baseline() const { return results.front(); }

  /// Steps at the end over which a loss is averaged: the last third, at most 100.
  Index last_steps() const { return std::clamp<Index>(options.steps / 3, 1, 100); }

  double last_loss(const Run& run) const {
    double sum = 0;
    const Index n = last_steps();
    for (auto at = run.loss.end() - n; at != run.loss.end(); ++at) sum += *at;
    return sum / static_cast<double>(n);
  }

  /// The loss over the last steps.
  Spread loss(const Result& r) const {
    std::vector<double> values;
    for (const Run& run : r.runs) values.push_back(last_loss(run));
    return Spread::of(values);
  }

  /// The same relative to that of BF16 from the same seed, less 1.
  Spread gap(const Result& r) const {
    std::vector<double> values;
    for (std::size_t s = 0; s < r.runs.size(); ++s)
      values.push_back(last_loss(r.runs[s]) / last_loss(baseline().runs[s]) - 1);
    return Spread::of(values);
  }

  /// Mean over the seeds of f(run of r, run of BF16) at each step.
  std::vector<double> curve(const Result& r, auto&& f) const {
    std::vector<double> mean(static_cast<std::size_t>(options.steps));
    for (std::size_t s = 0; s < r.runs.size(); ++s) {
      const std::vector<double> values = f(r.runs[s], baseline().runs[s]);
      for (std::size_t i = 0; i < mean.size(); ++i)
        mean[i] += values[i] / static_cast<double>(r.runs.size());
    }
    return mean;
  }
  std::vector<double> losses(const Result& r) const {
    return curve(r, [](const Run& run, const Run&) { return run.loss; });
  }
  std::vector<double> smoothed_losses(const Result& r) const {
    return curve(r, [](const Run& run, const Run&) { return moving_average(run.loss); });
  }
  /// Of the smoothed losses, at each step.
  std::vector<double> gaps(const Result& r) const {
    return curve(r, [](const Run& run, const Run& base) {
      auto gap = moving_average(run.loss);
      const auto other = moving_average(base.loss);
      for (std::size_t i = 0; i < gap.size(); ++i) gap[i] = gap[i] / other[i] - 1;
      return gap;
    });
  }
};

/// All numbers of a study but times, which differ from run to run.
inline nlohmann::ordered_json to_json(const Study& study) {
  const auto spread = [](const Spread& s) {
    return nlohmann::ordered_json{{"mean", s.mean}, {"least", s.least}, {"most", s.most}};
  };
  nlohmann::ordered_json variants = nlohmann::json::array();
  for (const Result& r : study.results) {
    if (r.runs.empty()) continue;
    nlohmann::ordered_json runs = nlohmann::json::array(), looks = nlohmann::json::array();
    for (std::size_t s = 0; s < r.runs.size(); ++s)
      runs.push_back({{"seed", study.options.seed + static_cast<Index>(s)},
                      {"skipped", r.runs[s].skipped},
                      {"loss", r.runs[s].loss}});
    for (const Measurements& m : r.runs.front().measurements) looks.push_back(to_json(m));
    variants.push_back({{"name", r.variant.name},
                        {"what", r.variant.what},
                        {"loss", spread(study.loss(r))},
                        {"gap", spread(study.gap(r))},
                        {"runs", runs},
                        {"measurements", looks}});
  }
  return {{"options", to_json(study.options)},
          {"last_steps", study.last_steps()},
          {"variants", variants}};
}

}  // namespace example
