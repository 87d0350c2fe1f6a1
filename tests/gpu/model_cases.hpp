// Whole models on a GPU beside the same on Cpu, for one file per precision.
#pragma once

#include <doctest/doctest.h>

#include <cmath>

#include "program.hpp"

namespace gpu {

/// Figures agree relative to their size.
inline void check_close(const char* what, const std::vector<double>& a,
                        const std::vector<double>& b, double tolerance) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double error = std::fabs(a[i] - b[i]) / std::fabs(b[i]);
    INFO("figure ", i, ": ", a[i], " beside ", b[i]);
    CHECK(error <= tolerance);
    worst = error > worst ? error : worst;
  }
  std::printf("%s: largest relative difference %.3g of %.3g\n", what, worst, tolerance);
}

/// Three steps and an evaluation of small::train on both, and again: the same bits.
template <class P>
void check_training(double tolerance) {
  if (!available()) return;
  dsv3::Cpu cpu(1);
  dsv3::Cuda cuda, again, own({.vendor_products = false, .hopper_kernels = false});
  const auto reference = small::train<P>(cpu), first = small::train<P>(cuda);
  check_close(P::name, first.figures, reference.figures, tolerance);
  CHECK(small::train<P>(again).hash == first.hash);
  const auto portable = small::train<P>(own);
  check_close((std::string(P::name) + ", portable kernels").c_str(), portable.figures,
              reference.figures, tolerance);
}

/// A model with sizes that the fast kernels take: heads of 128 + 64, widths in multiples of 128.
inline dsv3::ModelConfig wide_config() {
  dsv3::ModelConfig c = small::config();
  c.vocab_size = 320;
  c.hidden_size = 256;
  c.intermediate_size = 512;
  c.moe_intermediate_size = 128;
  c.num_attention_heads = c.num_key_value_heads = 2;
  c.q_lora_rank = 128;
  c.kv_lora_rank = 128;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  return c;
}

/// The losses of `steps` steps over changing tokens, rows of 2 x 129.
template <class P, class Backend>
std::vector<double> losses(Backend& backend, int steps) {
  dsv3::Model<P, Backend> model(backend, wide_config(), {.seed = 5, .init_std = 0.02});
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

/// Fifty steps on both; the mean of the last ten losses agrees, and both have learned.
template <class P>
void check_parity(double tolerance) {
  if (!available()) return;
  dsv3::Cpu cpu;
  dsv3::Cuda cuda;
  const auto ours = losses<P>(cuda, 50), theirs = losses<P>(cpu, 50);
  double a = 0, b = 0;
  for (std::size_t i = 40; i < 50; ++i) a += ours[i] / 10, b += theirs[i] / 10;
  std::printf("%s: loss %.4f -> %.4f on the GPU, %.4f -> %.4f on Cpu\n", P::name, ours[0], a,
              theirs[0], b);
  CHECK(std::fabs(ours[0] - theirs[0]) <= tolerance * theirs[0]);
  CHECK(std::fabs(a - b) <= tolerance * b);
  CHECK(a < 0.8 * ours[0]);
}

}  // namespace gpu
