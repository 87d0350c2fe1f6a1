#include <dsv3/plan/transfer.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <initializer_list>

using namespace dsv3;
using plan::Wire;

namespace {

constexpr ModelConfig v3 = presets::deepseek_v3;
constexpr Index hidden = v3.hidden_size;

// Spec 10.2.
static_assert(plan::row_bytes(hidden, Wire::fp8) == 7'392);
static_assert(plan::row_bytes(hidden, Wire::fp8_ue8m0) == 7'224);
static_assert(plan::row_bytes(hidden, Wire::bf16) == 14'336);
static_assert(plan::row_bytes(129, Wire::fp8) == 129 + 2 * 4);  // a scale for the rest
static_assert(plan::trip_bytes(hidden, Wire::fp8) == 2 * 7'392 + 2 * 14'336);
static_assert(plan::Links{}.free_experts_per_node() == 3.2);

constexpr ModelConfig without_limit() {
  ModelConfig c = v3;
  c.topk_group = c.n_group;
  return c;
}
static_assert(plan::most_target_nodes(v3, 8) == 4);
static_assert(plan::most_target_nodes(without_limit(), 8) == 8);
static_assert(plan::most_target_nodes(v3, 2) == 2);
static_assert(plan::most_target_nodes(v3, 16) == 8);  // four groups of two nodes each
static_assert(plan::most_target_nodes(presets::deepseek_v2_lite, 8) == 6);

// The mean over every choice of `kept` groups and `chosen` of their experts, counted one by one.
double counted_targets(const ModelConfig& c, Index parts) {
  const Index E = c.n_routed_experts, G = c.n_group;
  double targets = 0, ways = 0;
  for (Index groups = 0; groups < Index{1} << G; ++groups) {
    if (__builtin_popcountll(static_cast<unsigned long long>(groups)) != c.topk_group) continue;
    for (Index experts = 0; experts < Index{1} << E; ++experts) {
      if (__builtin_popcountll(static_cast<unsigned long long>(experts)) != c.num_experts_per_tok)
        continue;
      bool allowed = true;
      Index hit = 0;
      for (Index e = 0; e < E; ++e) {
        if (!(experts >> e & 1)) continue;
        allowed = allowed && (groups >> (e / (E / G)) & 1);
        hit |= Index{1} << (e / (E / parts));
      }
      if (!allowed) continue;
      targets += __builtin_popcountll(static_cast<unsigned long long>(hit));
      ++ways;
    }
  }
  return targets / ways;
}

}  // namespace

TEST_CASE("a token of DeepSeek-V3 goes to 3.63 nodes, without its limit to 5.29") {
  // Spec 10.2 prints two decimals.
  CHECK(std::abs(plan::expected_targets(v3, 8) - 3.63) < 0.005);
  CHECK(std::abs(plan::expected_targets(without_limit(), 8) - 5.29) < 0.005);
}

TEST_CASE("expected targets are the mean over all choices of groups and experts") {
  ModelConfig c = v3;
  c.n_routed_experts = 12, c.n_group = 6, c.topk_group = 3, c.num_experts_per_tok = 4;
  c.group_score_top = 1;
  // At most 20 * 15 equal terms each: sums of small integers, so only the quotients round.
  for (const Index parts : {1, 2, 3, 6, 12}) {
    CAPTURE(parts);
    CHECK(plan::expected_targets(c, parts) ==
          doctest::Approx(counted_targets(c, parts)).epsilon(1e-13));
  }
  // Experts that must all be chosen miss no part.
  c.n_group = c.topk_group = 1, c.num_experts_per_tok = 12;
  CHECK(plan::expected_targets(c, 12) == 12);
  CHECK_THROWS_WITH_AS(plan::expected_targets(c, 5),
                       "Layout: parts (5) must divide n_routed_experts (12)",
                       std::invalid_argument);
}

TEST_CASE("experts ride free inside a node until NVLink is the slower") {
  const double bytes = 14'336;
  const plan::Transfer limited = plan::transfer(bytes, 4, 8);
  CHECK(limited.between == 4 * bytes);
  CHECK(limited.inside == 8 * bytes);
  CHECK(limited.seconds() == 4 * bytes / 50e9);
  // 3.2 experts a node, 12.8 on four nodes, which the report rounds to 13.
  CHECK(plan::transfer(bytes, 4, 12.8).seconds() ==
        doctest::Approx(limited.seconds()).epsilon(1e-15));
  CHECK(plan::transfer(bytes, 4, 13).seconds() > limited.seconds());
  CHECK(plan::transfer(bytes, 8, 8).seconds() == 2 * limited.seconds());
}

TEST_CASE("a layout's transfers count what is remote") {
  const plan::Layout own;
  const plan::Transfer t = plan::expected_transfer(v3, own, Wire::fp8);
  const double trip = 43'456;
  CHECK(t.between == plan::expected_targets(v3, 8) * (1 - 1.0 / 8) * trip);
  CHECK(t.inside == plan::expected_targets(v3, 64) * (1 - 1.0 / 8) * trip);
  plan::Layout inside = own;
  inside.ep = 4;
  CHECK(plan::expected_transfer(v3, inside, Wire::fp8).between == 0);
  CHECK(plan::expected_transfer(v3, inside, Wire::fp8).inside ==
        plan::expected_targets(v3, 4) * 0.75 * trip);
  inside.ep = 1;
  CHECK(plan::expected_transfer(v3, inside, Wire::fp8).inside == 0);
}

TEST_CASE("decoding with one expert a GPU is bound as published") {
  // arXiv:2505.09343, section 2.3.2, where a row is 7000 values and 9 experts take each token.
  const double infiniband = plan::decode_exchange_seconds(32, 9, 7000, 50e9);
  const double nvlink = plan::decode_exchange_seconds(32, 9, 7000, 900e9);
  CHECK(std::abs(infiniband * 1e6 - 120.96) < 0.005);
  CHECK(std::abs(plan::decode_seconds(infiniband, 61) * 1e3 - 14.76) < 0.005);
  CHECK(std::floor(1 / plan::decode_seconds(infiniband, 61)) == 67);  // cut off, not rounded
  CHECK(std::abs(nvlink * 1e6 - 6.72) < 0.005);
  CHECK(std::abs(plan::decode_seconds(nvlink, 61) * 1e3 - 0.82) < 0.005);
}
