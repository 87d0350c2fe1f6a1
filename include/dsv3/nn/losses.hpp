// Losses: what a pass leaves of a batch.
#pragma once

#include <dsv3/core/math.hpp>
#include <dsv3/core/view.hpp>
#include <vector>

namespace dsv3 {

/// The losses of a batch, in nats.
struct Losses {
  double loss = 0;               ///< mean of -log probability over the labels
  std::vector<double> mtp_loss;  ///< of each depth, divided by the main model's label count
  double balance = 0;            ///< sum over MoE layers with alpha = 1

  /// Adds the weighted losses of another part of the same whole.
  void add(const Losses& part, double token_weight, double sequence_weight) {
    mtp_loss.resize(part.mtp_loss.size());
    loss = fma(token_weight, part.loss, loss);
    balance = fma(sequence_weight, part.balance, balance);
    for (std::size_t k = 0; k < mtp_loss.size(); ++k)
      mtp_loss[k] = fma(token_weight, part.mtp_loss[k], mtp_loss[k]);
  }
};

namespace detail {
// report += the losses of a pass: main, balance, then each MTP depth.
template <class A>
struct AddLossesRow {
  View<const A, 1> loss, balance;
  View<double, 1> report;

  DSV3_HD void operator()(auto team, Index) const {
    team.once([&] {
      double sum = 0;
      for (Index l = 0; l < balance.extent(0); ++l) sum += static_cast<double>(balance(l));
      report(0) += static_cast<double>(loss(0));
      report(1) += sum;
      for (Index k = 1; k < loss.extent(0); ++k) report(1 + k) += static_cast<double>(loss(k));
    });
  }
};

}  // namespace detail
}  // namespace dsv3
