// What does it cost to train? DeepSeek-V3, table 1: 2.788 M H800 hours, $5.576 M.
#include <dsv3/plan.hpp>

#include "experiment.hpp"

using namespace experiment;

namespace {

constexpr double tokens = 14.8e12, gpus = 2048;

struct Size {
  const char* name;
  dsv3::ModelConfig config;
};

// The planner's hours for so many tokens at the rate that V3's training sustained.
double hours(const dsv3::ModelConfig& c, double trained_tokens) {
  return dsv3::plan::gpu_hours(trained_tokens, dsv3::plan::training_flops_per_token(c, 4096),
                               dsv3::plan::h800_sustained_flops);
}

void cost(const Options&, const std::vector<DomainText>&, Section& section) {
  namespace plan = dsv3::plan;
  namespace presets = dsv3::presets;
  section.question("What does training cost?",
                   "2.664 M H800 hours for 14.8 trillion tokens, 2.788 M and $5.576 M in all at $2 "
                   "an hour; 180 K hours, or 3.7 days on 2048 GPUs, a trillion tokens (table 1)");
  const Size sizes[] = {{"DeepSeek-V3", presets::deepseek_v3},
                        {"DeepSeek-V2", presets::deepseek_v2},
                        {"Kimi-K2", presets::kimi_k2},
                        {"Moonlight", presets::moonlight},
                        {"DeepSeek-V2-Lite", presets::deepseek_v2_lite}};
  std::vector<std::vector<std::string>> rows;
  nlohmann::ordered_json numbers = nlohmann::ordered_json::array();
  for (const Size& s : sizes) {
    const double flops = plan::training_flops_per_token(s.config, 4096);
    const double trillion = hours(s.config, 1e12), all = hours(s.config, tokens);
    rows.push_back(
        {s.name,
         example::decimal(static_cast<double>(plan::activated_parameters(s.config)) * 1e-9, 1),
         example::decimal(flops * 1e-9, 1), example::decimal(trillion / 1e3, 1),
         example::decimal(plan::days(trillion, gpus), 2), example::decimal(all / 1e6, 3),
         example::decimal(all * plan::dollars_per_hour / 1e6, 2)});
    numbers.push_back({{"model", s.name},
                       {"flops_per_token", flops},
                       {"hours_per_trillion", trillion},
                       {"hours", all}});
  }
  section.table({"model", "activated, 10^9", "GFLOP a token", "K hours a trillion tokens",
                 "days a trillion tokens, 2048 GPUs", "M hours for 14.8 trillion",
                 "M dollars for 14.8 trillion"},
                rows);
  std::vector<example::Curve> curves;
  for (int utilisation = 20; utilisation <= 60; utilisation += 5) {
    if (curves.empty()) curves.push_back({"DeepSeek-V3", 0, {}, false, true});
    curves.front().points.push_back(
        {static_cast<double>(utilisation),
         1e-6 * plan::gpu_hours(tokens, plan::training_flops_per_token(presets::deepseek_v3, 4096),
                                plan::h800_peak_flops * utilisation / 100)});
  }
  section.plot("Hours against utilisation", "% of the H800's 989 TFLOPS",
               "M H800 hours for 14.8 trillion tokens", curves,
               {{"paper: 2.664", plan::deepseek_v3_hours.pre_training * 1e-6}}, true);
  section.json()["models"] = numbers;
  const double ours = hours(presets::deepseek_v3, tokens), theirs = plan::deepseek_v3_hours.total();
  const double all =
      ours + plan::deepseek_v3_hours.context_extension + plan::deepseek_v3_hours.post_training;
  section.findings(
      "the planner's FLOPs at 385 TFLOPS a GPU give " + example::decimal(ours / 1e6, 3) +
          " M hours of pre-training; with the published hours of context extension and "
          "post-training " +
          example::decimal(all / 1e6, 3) + " M, " + example::decimal(100 * (all / theirs - 1), 1) +
          " % from the paper's, or $" + example::decimal(all * plan::dollars_per_hour / 1e6, 2) +
          " M.",
      "the rate is the one that DeepSeek measured later on its own training: hours follow from "
      "FLOPs and that rate, so the agreement tests the count of FLOPs, and says nothing of "
      "research, failed runs and data.");
}

}  // namespace

int main(int argc, char** argv) { return run_program(argc, argv, "cost", cost); }
