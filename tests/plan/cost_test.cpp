#include <dsv3/plan/cost.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <dsv3/plan/flops.hpp>

using namespace dsv3;

// Each tolerance is half of the last digit that is printed where the figure is from.

TEST_CASE("hours follow from tokens, FLOPs and the rate") {
  const double flops = plan::training_flops_per_token(presets::deepseek_v3, 4096);
  const double hours = plan::gpu_hours(14.8e12, flops, plan::h800_sustained_flops);
  CHECK(std::abs(hours * 1e-6 - 2.674) < 0.0005);  // spec 10.4
  // By the rate the published 2.664 M hours lie within 1 %: FLOPs are counted, not measured.
  CHECK(std::abs(hours / plan::deepseek_v3_hours.pre_training - 1) < 0.01);
}

TEST_CASE("the measured step of DeepSeek-V3 gives the published hours and days") {
  const plan::MeasuredStep step = plan::deepseek_v3_step;
  CHECK(step.tokens == 62'914'560);
  CHECK(std::abs(step.tokens_per_day() * 1e-9 - 272.80) < 0.005);  // arXiv:2505.09343, table 4
  CHECK(std::abs(step.hours(1e12) * 1e-3 - 180.2) < 0.05);         // spec 10.4
  CHECK(std::abs(plan::days(step.hours(1e12), step.gpus) - 3.7) < 0.05);
  // The report rounds to 180 K hours for 1 T tokens, and from there on: 14.8 T, 3.7 days.
  CHECK(std::abs(14.8 * 180'000 - plan::deepseek_v3_hours.pre_training) < 500);
  CHECK(std::abs(plan::days(180'000, 2048) - 3.7) < 0.05);
}

TEST_CASE("all of DeepSeek-V3's training took 2.788 M hours, 5.576 M dollars") {
  const auto dollars = [](double hours) { return hours * plan::dollars_per_hour; };
  const plan::TrainingHours hours = plan::deepseek_v3_hours;
  CHECK(hours.total() == 2'788'000);
  CHECK(dollars(hours.total()) == 5'576'000);
  CHECK(dollars(hours.pre_training) == 5'328'000);
  CHECK(dollars(hours.context_extension) == 238'000);
  CHECK(dollars(hours.post_training) == 10'000);
}

TEST_CASE("utilisation is the published one where the gates' products are left out") {
  // arXiv:2505.09343, table 4: 385 TFLOPS and 38.94 % causal, 432 and 43.73 % not. The formula of
  // spec 10.4 gives 386 and 433; without the gates' 0.64 GFLOP a token all four figures come out.
  const auto rate = [](bool causal) {
    const double flops = plan::training_flops_per_token(presets::deepseek_v3, 4096, causal);
    const double gates = 3 * plan::forward_flops(presets::deepseek_v3, 1).gates;
    return plan::deepseek_v3_step.sustained_flops(flops - gates);
  };
  CHECK(std::abs(rate(true) * 1e-12 - 385) < 0.5);
  CHECK(std::abs(rate(false) * 1e-12 - 432) < 0.5);
  CHECK(std::abs(rate(true) / plan::h800_peak_flops * 100 - 38.94) < 0.005);
  CHECK(std::abs(rate(false) / plan::h800_peak_flops * 100 - 43.73) < 0.005);
}
