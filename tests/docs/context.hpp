// What statements in the documentation may use without saying where it comes from.
#pragma once

#include <Eigen/Dense>
#include <cstdio>
#include <dsv3/model.hpp>
#include <string>
#include <vector>

inline constexpr dsv3::ModelConfig tiny = [] {
  auto c = dsv3::presets::deepseek_v3;
  c.vocab_size = 256;
  c.hidden_size = 128;
  c.num_hidden_layers = 3;
  c.n_routed_experts = 16;
  return c;
}();

struct Context {
  dsv3::Cpu backend;
  dsv3::Model<dsv3::Fp32, dsv3::Cpu, tiny> model{backend, {.seed = 1}};
  dsv3::Trainer<decltype(model)> trainer{model, {}};
  dsv3::View<const std::int32_t, 2> tokens;  // [B, T + 1]
  dsv3::Batch batch;
};
