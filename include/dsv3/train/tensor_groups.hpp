// Which parameter group each tensor belongs to, and what AdamW does to each group in a step.
#pragma once

#include <cmath>
#include <dsv3/nn/chunks.hpp>
#include <dsv3/nn/transformer.hpp>
#include <dsv3/train/adamw.hpp>
#include <dsv3/train/options.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace dsv3::detail {

/// The groups of TrainOptions, and behind them one for what no pattern claims.
class TensorGroups {
 public:
  struct Tensor {
    Index group;
    bool frozen;
    Index first_partial;  // where its sums of squares begin: one for each chunk of what is trained
  };

  TensorGroups() = default;

  /// Errors   std::invalid_argument for a pattern that claims no tensor.
  template <class P, class M>
  TensorGroups(const TrainOptions& options, const ModelTensors<P, M>& tensors) {
    const auto& groups = options.groups;
    std::vector<bool> used(groups.size());
    dsv3::for_each_tensor<P>(
        [&](const std::string& name, const auto& view) {
          std::size_t g = 0;
          while (g < groups.size() && name.find(groups[g].pattern) == std::string::npos) ++g;
          if (g < groups.size()) used[g] = true;
          const bool frozen = g < groups.size() && groups[g].frozen;
          tensors_.push_back({static_cast<Index>(g), frozen, partials_});
          if (!frozen) partials_ += groups_of(view.size(), optimizer_chunk);
        },
        tensors);
    for (std::size_t g = 0; g < used.size(); ++g)
      if (!used[g])
        throw std::invalid_argument("TrainOptions: groups[" + std::to_string(g) + "] (\"" +
                                    groups[g].pattern +
                                    "\") must occur in the name of a tensor that no group before "
                                    "it claims");
  }

  /// By the order of for_each_tensor.
  const Tensor& operator[](std::size_t tensor) const { return tensors_[tensor]; }

  /// Sums of squares of all that is trained.
  Index partials() const { return partials_; }

  /// The rule of each group in AdamW's step t >= 1.
  static std::vector<AdamW> rules(const TrainOptions& options, double lr, Index t) {
    const auto step = static_cast<double>(t);
    AdamW rule{.lr = lr,
               .beta1 = options.beta1,
               .beta2 = options.beta2,
               .eps = options.eps,
               .weight_decay = options.weight_decay,
               .correction1 = 1 - std::pow(options.beta1, step),
               .correction2 = 1 - std::pow(options.beta2, step)};
    std::vector<AdamW> result(options.groups.size() + 1, rule);
    for (std::size_t g = 0; g < options.groups.size(); ++g) {
      result[g].lr = lr * options.groups[g].lr_factor;
      result[g].weight_decay = options.groups[g].weight_decay.value_or(options.weight_decay);
    }
    return result;
  }

 private:
  std::vector<Tensor> tensors_;
  Index partials_ = 0;
};

}  // namespace dsv3::detail
