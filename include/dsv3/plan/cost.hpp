// Plan: hours, days and dollars of a training run.
#pragma once

#include <dsv3/core/view.hpp>

namespace dsv3::plan {

/// FLOP/s of one H800 in BF16, dense: its peak, and what DeepSeek-V3's training sustained.
/// Source   arXiv:2505.09343, table 4: 385 TFLOPS are 38.94 % of the peak, 432 are 43.73 %.
inline constexpr double h800_peak_flops = 989e12;
inline constexpr double h800_sustained_flops = 385e12;

/// GPU-hours for so many tokens, from the FLOPs of each and the FLOP/s that a GPU sustains: its
/// peak times the utilisation.
/// Source   spec 10.4.
constexpr double gpu_hours(double tokens, double flops_per_token, double sustained_flops) {
  return tokens * flops_per_token / sustained_flops / 3600;
}

/// A training step as measured.
struct MeasuredStep {
  double tokens, seconds, gpus;

  constexpr double tokens_per_day() const { return tokens / seconds * 86400; }
  /// GPU-hours for so many tokens.
  constexpr double hours(double of_tokens) const {
    return of_tokens / tokens * seconds * gpus / 3600;
  }
  /// FLOP/s of one GPU.
  constexpr double sustained_flops(double flops_per_token) const {
    return flops_per_token * tokens / seconds / gpus;
  }
};

/// Of DeepSeek-V3: 15360 rows of 4096 tokens.
/// Source   arXiv:2505.09343, table 4.
inline constexpr MeasuredStep deepseek_v3_step = {15360.0 * 4096, 19.926, 2048};

/// Days that so many GPU-hours last.
constexpr double days(double hours, double gpus) { return hours / gpus / 24; }

/// GPU-hours of the parts of a model's training.
struct TrainingHours {
  double pre_training, context_extension, post_training;

  constexpr double total() const { return pre_training + context_extension + post_training; }
};

/// Of DeepSeek-V3.
/// Source   its table 1, at 2 dollars for the hour of an H800.
inline constexpr TrainingHours deepseek_v3_hours = {2'664'000, 119'000, 5'000};
inline constexpr double dollars_per_hour = 2;

}  // namespace dsv3::plan
