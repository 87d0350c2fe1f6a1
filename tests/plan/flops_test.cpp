#include <dsv3/plan/flops.hpp>

#include <doctest/doctest.h>

#include <cmath>

#include "tiny_configs.hpp"

using namespace dsv3;

namespace {

constexpr ModelConfig v3 = presets::deepseek_v3;

// Spec 4.4: of one query, key and head.
constexpr double per_head(plan::TokenFlops f, const ModelConfig& c) {
  return f.scores / static_cast<double>(c.num_hidden_layers * c.num_attention_heads);
}
static_assert(per_head(plan::forward_flops(v3, 1), v3) == 640);
static_assert(per_head(plan::decode_flops(v3, 1), v3) == 2176);

}  // namespace

TEST_CASE("a trained token costs what is published") {
  // Spec 10.4 gives two decimals, arXiv:2505.09343, table 2, none.
  CHECK(std::abs(plan::training_flops_per_token(v3, 4096) * 1e-9 - 250.46) < 0.005);
  CHECK(std::abs(plan::training_flops_per_token(presets::deepseek_v2, 4096) * 1e-9 - 155) < 0.5);
  const plan::TokenFlops f = plan::forward_flops(v3, plan::mean_keys(4096));
  CHECK(std::abs(3 * f.scores * 1e-9 - 30.70) < 0.005);
  CHECK(std::abs(3 * (f.total() - f.scores) * 1e-9 - 219.75) < 0.005);
}

TEST_CASE("the parts are two FLOPs for each parameter that a token uses, and the scores") {
  // By hand for tiny-moe, keys 10: 3 layers of 4 heads, 2 of them with 4 of 16 experts of width 32
  // and a shared one; 182,992 parameters (spec 1.3). Sums of small integers are exact in double.
  const plan::TokenFlops f = plan::forward_flops(tiny_moe, 10);
  CHECK(f.scores == 3 * 4 * 2 * (24 + 16) * 10);
  CHECK(f.projections == 2 * 3 * (64 * 48 + 48 * 4 * 24 + 64 * 40 + 32 * 4 * 32 + 4 * 16 * 64));
  CHECK(f.mlp == 2 * 3 * 64 * 160);
  CHECK(f.experts == 2 * 2 * (4 + 1) * 3 * 64 * 32);
  CHECK(f.gates == 2 * 2 * 16 * 64);
  CHECK(f.head == 2 * 512 * 64);
  CHECK(f.norms == 2 * (3 * (2 * 64 + 48 + 32) + 64 + 2 * 16));
  CHECK(f.total() == 2 * 182'992 + f.scores);
  CHECK(plan::training_flops_per_token(tiny_moe, 20) == 3 * f.total());
}

TEST_CASE("decoding differs from forward in the scores alone") {
  const plan::TokenFlops decode = plan::decode_flops(v3, 4096);
  plan::TokenFlops forward = plan::forward_flops(v3, 4096);
  CHECK(decode.scores == 61.0 * 128 * 2176 * 4096);
  forward.scores = decode.scores;
  CHECK(decode.total() == forward.total());
}

TEST_CASE("MTP's module costs its parameters, the head, and one layer's scores") {
  const double parameters = 6.0 * 132'512 - 6.0 * 12 * 3 * 64 * 32;  // spec 1.3; 4 of 16 experts
  const double scores = 3.0 * 4 * 2 * (24 + 16) * 8;                 // rows of 16: 8 keys
  CHECK(plan::mtp_training_flops_per_token(tiny_moe, 16) == parameters + 6.0 * 512 * 64 + scores);
}
