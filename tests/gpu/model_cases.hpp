// Whole models on a GPU beside the same on Cpu, for one file per precision.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "program.hpp"
#include "where.hpp"

namespace gpu {

/// Figures of small::train agree relative to their size; gradient norms, every fourth of the first
/// twelve, have a tolerance of their own.
inline void check_close(const std::string& what, const std::vector<double>& a,
                        const std::vector<double>& b, double tolerance, double of_norms) {
  REQUIRE(a.size() == b.size());
  double worst[2] = {};
  for (std::size_t i = 0; i < a.size(); ++i) {
    const bool norm = i % 4 == 3 && i < 12;
    const double error = std::fabs(a[i] - b[i]) / std::fabs(b[i]);
    INFO("figure ", i, ": ", a[i], " beside ", b[i]);
    CHECK(error <= (norm ? of_norms : tolerance));
    worst[norm] = std::max(worst[norm], error);
  }
  std::printf("%s: largest relative difference of losses %.3g of %.3g, of norms %.3g of %.3g\n",
              what.c_str(), worst[0], tolerance, worst[1], of_norms);
}

/// Three steps and an evaluation of small::train on both, and again: the same bits.
template <class P>
void check_training(double tolerance, double of_norms) {
  if (!available()) return;
  dsv3::Cpu cpu(1);
  dsv3::Cuda cuda, again, own({.vendor_products = false, .hopper_kernels = false});
  const auto reference = small::train<P>(cpu), first = small::train<P>(cuda);
  check_close(P::name, first.figures, reference.figures, tolerance, of_norms);
  CHECK(small::train<P>(again).hash == first.hash);
  if (on_fibers) return;  // which have portable kernels alone
  const auto portable = small::train<P>(own);
  check_close(std::string(P::name) + ", portable kernels", portable.figures, reference.figures,
              tolerance, of_norms);
}

/// The losses of `steps` steps over changing tokens, rows of 2 x 129.
template <class P, class Backend>
std::vector<double> losses(Backend& backend, int steps) {
  dsv3::Model<P, Backend> model(backend, small::wide_config(), {.seed = 5, .init_std = 0.02});
  dsv3::TrainOptions options;
  options.schedule = dsv3::Schedule{}.scaled(steps * 256, 1e-3, steps / 10);
  dsv3::Trainer trainer(model, options);
  std::vector<double> result;
  for (int step = 0; step < steps; ++step) {
    std::vector<std::int32_t> tokens(2 * 129);
    // Runs of a number that grows by a step of its own: something to learn.
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] =
          static_cast<std::int32_t>((i * (1 + i / 129 + static_cast<std::size_t>(step) % 5)) % 320);
    result.push_back(trainer.step(View<const std::int32_t, 2>(tokens.data(), {2, 129})).loss);
  }
  return result;
}

/// Fifty steps on both: the means of all losses agree, and both have learned. Rounding that goes
/// the other way takes a run apart, so that single late losses say little: on Cpu, in bf16, noise
/// of 1e-7 on each product moves the mean of all by up to 0.3 % and that of the last ten by up to 4
/// %.
template <class P>
void check_parity(double tolerance) {
  if (!available() || on_fibers) return;  // minutes
  dsv3::Cpu cpu;
  dsv3::Cuda cuda;
  const auto ours = losses<P>(cuda, 50), theirs = losses<P>(cpu, 50);
  const auto mean = [](const std::vector<double>& x, std::size_t first) {
    double sum = 0;
    for (std::size_t i = first; i < x.size(); ++i) sum += x[i];
    return sum / static_cast<double>(x.size() - first);
  };
  const double a = mean(ours, 0), b = mean(theirs, 0);
  std::printf(
      "%s: mean loss of 50 steps %.4f on the GPU, %.4f on Cpu; first %.4f, %.4f; last ten %.4f, "
      "%.4f\n",
      P::name, a, b, ours[0], theirs[0], mean(ours, 40), mean(theirs, 40));
  CHECK(std::fabs(ours[0] - theirs[0]) <= tolerance * theirs[0]);
  CHECK(std::fabs(a - b) <= tolerance * b);
  CHECK(mean(ours, 40) < 0.3 * ours[0]);
  CHECK(mean(theirs, 40) < 0.3 * theirs[0]);
}

}  // namespace gpu
