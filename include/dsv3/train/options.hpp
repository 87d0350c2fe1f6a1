// What a training step is told, and what it reports.
#pragma once

#include <dsv3/nn/model.hpp>
#include <dsv3/train/schedule.hpp>
#include <optional>
#include <string>
#include <vector>

namespace dsv3 {

/// Exceptions from the rule for all tensors. The first group whose pattern occurs in a tensor's
/// checkpoint name applies.
struct ParameterGroup {
  std::string pattern;   ///< part of a checkpoint name, as "layernorm" or "layers.3."
  bool frozen = false;   ///< neither updated nor part of the gradient norm
  double lr_factor = 1;  ///< multiplies the learning rate
  std::optional<double> weight_decay = {};  ///< instead of the trainer's
};

/// What a step does beside the model's own arithmetic. Defaults are DeepSeek-V3's (spec 8).
struct TrainOptions {
  double peak_lr = 2.2e-4;                ///< the learning rate, unless a schedule is given
  std::optional<Schedule> schedule = {};  ///< learning rate, lambda and gamma over steps and tokens
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip_norm = 1;             ///< of the global gradient
  double mtp_lambda = 0.3;          ///< weight of the MTP losses, unless a schedule is given
  double balance_alpha = 1e-4;      ///< weight of the balance loss, which seq_aux defines
  double bias_gamma = 1e-3;         ///< speed of the gate's bias, unless a schedule is given
  bool center_bias_update = false;  ///< subtract the mean of the signs: stops the bias drifting
  double ema_decay = 0;             ///< of an average of the weights beside them; 0: none
  bool recompute = false;           ///< keep only each block's input until backward
  std::vector<ParameterGroup> groups = {};
};

/// Throws std::invalid_argument naming the option, its value and its bound. M is the masters' type.
template <class M>
void validate(const TrainOptions& o) {
  const auto require = [](const char* name, double value, bool holds, const char* must) {
    if (!holds)
      throw std::invalid_argument(std::string("TrainOptions: ") + name + " (" +
                                  std::to_string(value) + ") must be " + must);
  };
  const auto rate = [&](const char* name, double value) {
    require(name, value, value >= 0 && value < 1e9, "at least 0 and finite");
  };
  rate("peak_lr", o.peak_lr);
  rate("weight_decay", o.weight_decay);
  rate("mtp_lambda", o.mtp_lambda);
  rate("balance_alpha", o.balance_alpha);
  rate("bias_gamma", o.bias_gamma);
  require("beta1", o.beta1, o.beta1 >= 0 && o.beta1 < 1, "in [0, 1)");
  require("beta2", o.beta2, o.beta2 >= 0 && o.beta2 < 1, "in [0, 1)");
  require("eps", o.eps, static_cast<M>(o.eps) > 0 && o.eps < 1e9,
          "positive in P::master and finite");
  require("ema_decay", o.ema_decay, o.ema_decay >= 0 && o.ema_decay < 1, "in [0, 1)");
  require("clip_norm", o.clip_norm, o.clip_norm > 0, "positive");
  for (const ParameterGroup& group : o.groups) {
    rate("lr_factor", group.lr_factor);
    if (group.weight_decay) rate("weight_decay of a group", *group.weight_decay);
  }
  if (o.schedule) validate(*o.schedule);
}

/// Counters of a run: all that a schedule depends on.
struct Progress {
  Index step = 0;     ///< steps taken, skipped ones too
  Index updates = 0;  ///< steps that changed weights: AdamW's t
  Index tokens = 0;   ///< labels consumed
  Index skipped = 0;  ///< steps whose gradient norm was not finite

  bool operator==(const Progress&) const = default;
};

/// What a step reports.
struct StepReport : Losses {
  Index step = 0;
  double lr = 0;
  double grad_norm = 0;      ///< before clipping
  double max_violation = 0;  ///< MaxVio, mean over MoE layers
  bool skipped = false;      ///< the gradient norm was not finite: nothing was changed
  Index tokens = 0;          ///< labels of this step
  double seconds = 0, tokens_per_second = 0;
  std::vector<Index> load;  ///< [MoE layers * E] tokens of each expert
};

/// What an evaluation reports.
struct EvaluationReport : Losses {
  double max_violation = 0;  ///< MaxVio over the whole set, mean over MoE layers
  Index tokens = 0;          ///< labels
  std::vector<Index> load;   ///< [MoE layers * E] tokens of each expert
};

}  // namespace dsv3
