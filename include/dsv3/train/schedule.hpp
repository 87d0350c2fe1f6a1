// Schedules: learning rate, batch size, MTP weight and bias-update speed as functions of the step
// and of the tokens consumed.
#pragma once

#include <cmath>
#include <dsv3/core/check.hpp>
#include <dsv3/core/math.hpp>

namespace dsv3 {

/// What DeepSeek-V3's pre-training varied, with V3's numbers as defaults. Everything depends on
/// consumed tokens, those of all steps before this one, except the warm-up, which counts steps.
/// `scaled` keeps the proportions in a shorter run.
///
///     step < warmup_steps       peak_lr * step / warmup_steps       (steps count from 1)
///     tokens < constant_until   peak_lr
///     tokens < cosine_until     low_lr + (peak_lr - low_lr) / 2 * (1 + cos(pi * progress))
///     tokens < low_until        low_lr
///     after                     last_lr
///
/// The state is two counters, so a resumed run is where the uninterrupted one would be; the
/// bias-update speed is exactly 0 from bias_until on.
///
/// Units    tokens are tokens of all ranks and micro-batches; rates are per step.
/// Source   DeepSeek-V3 technical report, arXiv:2412.19437, section 4.2; spec 8. The shape of the
///          batch ramp is not published: linear in consumed tokens here.
struct Schedule {
  double peak_lr = 2.2e-4, low_lr = 2.2e-5, last_lr = 7.3e-6;
  Index warmup_steps = 2000;
  Index constant_until = 10'000'000'000'000;
  Index cosine_until = 14'300'000'000'000;
  Index low_until = 14'633'000'000'000;
  Index end = 14'800'000'000'000;  ///< tokens of the whole run

  double mtp_lambda_first = 0.3, mtp_lambda_last = 0.1;
  Index mtp_lambda_until = 10'000'000'000'000;  ///< the first weight holds below this

  double bias_gamma_first = 1e-3;
  Index bias_until = 14'300'000'000'000;  ///< the gate bias is frozen from here on

  Index batch_first = 3072, batch_last = 15360;  ///< sequences a step
  Index batch_until = 469'000'000'000;

  /// The learning rate of step `step` (from 1) after `tokens` consumed tokens.
  /// Errors   std::invalid_argument where step < 1 or tokens < 0.
  double lr(Index step, Index tokens) const {
    check_at_most("Schedule::lr", "first step", 1, "step", step);
    check_at_most("Schedule::lr", "zero", 0, "tokens", tokens);
    if (step < warmup_steps)
      return peak_lr * static_cast<double>(step) / static_cast<double>(warmup_steps);
    if (tokens < constant_until) return peak_lr;
    if (tokens < cosine_until) {
      const double progress = static_cast<double>(tokens - constant_until) /
                              static_cast<double>(cosine_until - constant_until);
      return fma((peak_lr - low_lr) / 2, 1 + std::cos(3.14159265358979323846 * progress), low_lr);
    }
    return tokens < low_until ? low_lr : last_lr;
  }

  /// The weight of the MTP losses.
  constexpr double mtp_lambda(Index tokens) const {
    return tokens < mtp_lambda_until ? mtp_lambda_first : mtp_lambda_last;
  }

  /// The speed of the gate-bias update; 0 in the last phase.
  constexpr double bias_gamma(Index tokens) const {
    return tokens < bias_until ? bias_gamma_first : 0.0;
  }

  /// Sequences of the next step: rises linearly, rounded down to a multiple of `multiple` (ranks
  /// times micro-batch) and at least that.
  constexpr Index batch(Index tokens, Index multiple = 1) const {
    check_at_most("Schedule::batch", "one", 1, "multiple", multiple);
    check_at_most("Schedule::batch", "zero", 0, "tokens", tokens);
    Index sequences = batch_last;
    if (tokens < batch_until)
      // In double: the product of sequences and tokens may leave the integers.
      sequences = batch_first + static_cast<Index>(static_cast<double>(batch_last - batch_first) *
                                                   static_cast<double>(tokens) /
                                                   static_cast<double>(batch_until));
    return sequences < multiple ? multiple : sequences - sequences % multiple;
  }

  /// This schedule with every token count shrunk (or stretched) so that the run ends at `total`
  /// tokens, every rate multiplied so that its peak is `peak`, and a warm-up of `warmup` steps.
  constexpr Schedule scaled(Index total, double peak, Index warmup) const {
    check_at_most("Schedule::scaled", "one", 1, "total tokens", total);
    check_at_most("Schedule::scaled", "zero", 0, "warm-up steps", warmup);
    Schedule s = *this;
    const double by = static_cast<double>(total) / static_cast<double>(end);
    using Tokens = Index Schedule::*;
    for (Tokens at : {&Schedule::constant_until, &Schedule::cosine_until, &Schedule::low_until,
                      &Schedule::mtp_lambda_until, &Schedule::bias_until, &Schedule::batch_until})
      s.*at = static_cast<Index>(static_cast<double>(s.*at) * by + 0.5);
    s.end = total;
    s.low_lr *= peak / peak_lr;
    s.last_lr *= peak / peak_lr;
    s.peak_lr = peak;
    s.warmup_steps = warmup;
    return s;
  }

  /// One learning rate from the first step to the last, as in V3's context extension (7.3e-6).
  /// The other schedules stay.
  constexpr Schedule constant_lr(double rate) const {
    Schedule s = *this;
    s.peak_lr = s.low_lr = s.last_lr = rate;
    s.warmup_steps = 0;
    return s;
  }

  constexpr bool operator==(const Schedule&) const = default;
};

namespace detail {

constexpr void require_rate(const char* name, double value) {
  if (value >= 0 && value < 1e9) return;  // false for NaN
  throw std::invalid_argument(std::string("Schedule: ") + name + " (" + std::to_string(value) +
                              ") must be at least 0 and finite");
}

}  // namespace detail

/// Throws unless the phases follow one another and every rate is finite and not negative.
/// Errors   std::invalid_argument naming the first broken rule and the values.
constexpr void validate(const Schedule& s) {
  detail::require_rate("peak_lr", s.peak_lr);
  detail::require_rate("low_lr", s.low_lr);
  detail::require_rate("last_lr", s.last_lr);
  detail::require_rate("mtp_lambda_first", s.mtp_lambda_first);
  detail::require_rate("mtp_lambda_last", s.mtp_lambda_last);
  detail::require_rate("bias_gamma_first", s.bias_gamma_first);
  check_at_most("Schedule", "zero", 0, "warmup_steps", s.warmup_steps);
  check_at_most("Schedule", "zero", 0, "constant_until", s.constant_until);
  check_at_most("Schedule", "constant_until", s.constant_until, "cosine_until", s.cosine_until);
  check_at_most("Schedule", "cosine_until", s.cosine_until, "low_until", s.low_until);
  check_at_most("Schedule", "low_until", s.low_until, "end", s.end);
  check_at_most("Schedule", "one", 1, "batch_first", s.batch_first);
  check_at_most("Schedule", "batch_first", s.batch_first, "batch_last", s.batch_last);
}

/// DeepSeek-V2's learning rate: warm-up, then multiplied by `factor` at two shares of the tokens.
///
/// Source   DeepSeek-V2, arXiv:2405.04434, section 3.1.2; V2-Lite: peak 4.2e-4, shares 0.8 and 0.9.
struct StepDecay {
  double peak_lr = 2.4e-4, factor = 0.316;
  Index warmup_steps = 2000;
  double first_share = 0.6, second_share = 0.9;
  Index end = 8'100'000'000'000;  ///< tokens of the whole run

  /// As Schedule::lr.
  constexpr double lr(Index step, Index tokens) const {
    check_at_most("StepDecay::lr", "first step", 1, "step", step);
    check_at_most("StepDecay::lr", "zero", 0, "tokens", tokens);
    if (step < warmup_steps)
      return peak_lr * static_cast<double>(step) / static_cast<double>(warmup_steps);
    const double share = static_cast<double>(tokens) / static_cast<double>(end);
    if (share < first_share) return peak_lr;
    return share < second_share ? peak_lr * factor : peak_lr * factor * factor;
  }
};

}  // namespace dsv3
