#include <algorithm>
#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/gate.hpp>
#include <dsv3/train/gate_bias.hpp>
#include <limits>
#include <numeric>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

// Spec appendix A: eight experts in four groups, two groups and three experts chosen.
ModelConfig appendix() {
  ModelConfig c;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 3;
  c.n_group = 4;
  c.topk_group = 2;
  return c;
}

const std::vector<double> appendix_logits = {2.0, -1.0, 0.5, 0.4, 1.5, 1.4, -2.0, 0.0};
const std::vector<std::int32_t> first_three = {0, 1, 2};
constexpr double no_number = std::numeric_limits<double>::quiet_NaN();

struct Chosen {
  std::vector<std::int32_t> experts, counted;  // the choice; what the balance loss counts
  std::vector<double> weights, scores;
};

// The gate of one token.
template <class A = double, class Backend = EigenCpu>
Chosen gate(const ModelConfig& config, const std::vector<double>& logits,
            const std::vector<double>& bias = {}) {
  Backend backend;
  const Index E = config.n_routed_experts, K = config.num_experts_per_tok;
  std::vector<A> scores(logits.begin(), logits.end()), b(bias.begin(), bias.end());
  std::vector<A> weights(static_cast<std::size_t>(K)),
      work(static_cast<std::size_t>(E + config.groups()));
  Chosen chosen{std::vector<std::int32_t>(static_cast<std::size_t>(K), -1),
                std::vector<std::int32_t>(static_cast<std::size_t>(K), -1),
                {},
                {}};
  for_each_row(backend, 1,
               detail::GateForwardRow<A>{
                   GateRule(config),
                   {bias.empty() ? nullptr : b.data(), {static_cast<Index>(bias.size())}},
                   {},
                   {scores.data(), {1, E}},
                   {work.data(), {1, E + config.groups()}},
                   {chosen.experts.data(), {1, K}},
                   {chosen.counted.data(), {1, K}},
                   {weights.data(), {1, K}}});
  chosen.weights.assign(weights.begin(), weights.end());
  chosen.scores.assign(scores.begin(), scores.end());
  return chosen;
}

// Twelve printed digits.
void check_close(const std::vector<double>& actual, const std::vector<double>& expected) {
  REQUIRE(actual.size() == expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) CHECK(std::abs(actual[i] - expected[i]) < 6e-13);
}

using Experts = std::vector<std::int32_t>;

}  // namespace

TEST_CASE("The gate has the published vectors: sigmoid, bias, groups") {
  const Chosen c = gate(appendix(), appendix_logits, {0, 0, 0, 0, -0.3, 0, 0, 0});
  check_close(c.scores, {0.880797077978, 0.268941421370, 0.622459331202, 0.598687660112,
                         0.817574476194, 0.802183888559, 0.119202922022, 0.5});
  CHECK(c.experts == Experts{2, 3, 5});  // not expert 0, whose score is the best
  check_close(c.weights, {0.769102247924, 0.739730295806, 0.991167456270});
  CHECK(std::accumulate(c.weights.begin(), c.weights.end(), 0.0) ==
        doctest::Approx(2.5).epsilon(1e-15));
  CHECK(c.counted == Experts{0, 4, 5});  // unbiased and without groups, on purpose
}

TEST_CASE("Negative biases choose no expert of a dropped group") {
  const Chosen c = gate(appendix(), appendix_logits, std::vector<double>(8, -1.2));
  CHECK(c.experts == Experts{2, 4, 5});  // masking with 0 would choose from {0, 1, 6, 7}
  for (const double shift : {-1e3, -1e6, 0.0, 1e3}) {
    CAPTURE(shift);  // one constant for all changes nothing
    CHECK(gate(appendix(), appendix_logits, std::vector<double>(8, shift)).experts ==
          Experts{2, 4, 5});
  }
}

TEST_CASE("The gate has the published vectors: softmax, best of a group, not normalised") {
  ModelConfig config = appendix();
  config.scoring_func = ScoringFunc::softmax;
  config.topk_method = TopkMethod::group_limited_greedy;
  config.norm_topk_prob = false;
  config.routed_scaling_factor = 16;
  const Chosen c = gate(config, appendix_logits);
  CHECK(c.experts == Experts{0, 4, 5});
  check_close(c.weights, {5.747524955705, 3.486050103098, 3.154308574431});
  CHECK(c.counted == c.experts);  // softmax gates count what was chosen
}

TEST_CASE("Ties go to the smaller group and the smaller expert") {
  const Chosen c = gate(appendix(), std::vector<double>(8, 0.7), std::vector<double>(8, 0));
  CHECK(c.experts == first_three);
  for (const double w : c.weights) CHECK(w == doctest::Approx(2.5 / 3).epsilon(1e-15));
  // Groups 1, 2 and 3 tie behind group 0: group 1 stays; its experts tie.
  CHECK(gate(appendix(), {1, 1, 0, 0, 0, 0, 0, 0}).experts == first_three);
  // Groups 2 and 3 tie for the best, and hold every choice.
  CHECK(gate(appendix(), {0, 0, 0, 0, 1, 1, 1, 1}).experts == Experts{4, 5, 6});
  // Without groups: the smallest of four equal experts.
  ModelConfig greedy = appendix();
  greedy.topk_method = TopkMethod::greedy;
  CHECK(gate(greedy, {0, 1, 0, 1, 0, 1, 0, 1}).experts == Experts{1, 3, 5});
}

TEST_CASE("A group is ranked by as many scores as the config says") {
  // Group 0 has the best expert, group 3 the best pair.
  const std::vector<double> logits = {3, -9, 0, 0, -1, -1, 2, 2};
  ModelConfig config = appendix();
  config.topk_group = 1;
  config.num_experts_per_tok = 2;
  CHECK(gate(config, logits).experts == Experts{6, 7});
  config.group_score_top = 1;
  CHECK(gate(config, logits).experts == Experts{0, 1});
  config.group_score_top = 0;
  config.topk_method = TopkMethod::group_limited_greedy;  // without a bias: the best one
  CHECK(gate(config, logits).experts == Experts{0, 1});
}

TEST_CASE("The gate at its limits") {
  ModelConfig config = appendix();
  SUBCASE("K = 1: the normalised weight is the factor") {
    config.num_experts_per_tok = 1;
    const Chosen c = gate(config, appendix_logits);
    CHECK(c.experts == Experts{4});  // groups 1 (1.22) and 2 (1.62) stay
    CHECK(c.weights[0] == 2.5);
  }
  SUBCASE("one group") {
    config.n_group = config.topk_group = 1;
    CHECK(gate(config, appendix_logits).experts == Experts{0, 4, 5});
  }
  SUBCASE("one expert") {
    config.n_routed_experts = config.num_experts_per_tok = config.n_group = config.topk_group = 1;
    CHECK(gate(config, {-3}).experts == Experts{0});
  }
  SUBCASE("every expert") {
    config.num_experts_per_tok = 8;
    config.topk_group = 4;
    CHECK(gate(config, appendix_logits).experts == Experts{0, 1, 2, 3, 4, 5, 6, 7});
  }
  SUBCASE("all scores 0: the weights are 0, not NaN") {
    const Chosen c = gate(config, std::vector<double>(8, -1e4));
    CHECK(c.experts == first_three);
    for (const double w : c.weights) CHECK(w == 0.0);
  }
  SUBCASE("all scores 1") {
    const Chosen c = gate(config, std::vector<double>(8, 1e4));
    CHECK(c.experts == first_three);
    for (const double w : c.weights) CHECK(w == doctest::Approx(2.5 / 3).epsilon(1e-15));
  }
  SUBCASE("softmax of large logits") {
    config.scoring_func = ScoringFunc::softmax;
    const Chosen c = gate(config, {1e4, 1e4, -1e4, 0, 0, 0, 0, 0});
    CHECK(c.scores[0] == 0.5);
    CHECK(c.scores[2] == 0.0);
  }
}

TEST_CASE_TEMPLATE("Logits that are not numbers give such weights, and distinct experts", A, float,
                   double) {
  ModelConfig config = appendix();
  SUBCASE("sigmoid") {}
  SUBCASE("softmax") { config.scoring_func = ScoringFunc::softmax; }
  SUBCASE("greedy") { config.topk_method = TopkMethod::greedy; }
  SUBCASE("every expert") {
    config.num_experts_per_tok = 8;
    config.topk_group = 4;
  }
  const Chosen c = gate<A>(config, std::vector<double>(8, no_number));
  for (std::size_t k = 0; k < c.experts.size(); ++k) {
    CHECK(c.experts[k] == static_cast<std::int32_t>(k));
    CHECK(c.counted[k] == static_cast<std::int32_t>(k));
    CHECK(std::isnan(c.weights[k]));
  }
}

TEST_CASE("Some logits that are not numbers: experts stay distinct, ascending and in range") {
  ModelConfig config = appendix();
  for (std::uint64_t trial = 0; trial < 256; ++trial) {
    std::vector<double> logits = appendix_logits;
    for (std::size_t e = 0; e < 8; ++e)  // every subset of the experts
      if (trial >> e & 1) logits[e] = no_number;
    for (const bool softmax : {false, true}) {
      config.scoring_func = softmax ? ScoringFunc::softmax : ScoringFunc::sigmoid;
      const Chosen c = gate(config, logits, std::vector<double>(8, -0.5));
      for (const Experts& list : {c.experts, c.counted}) {
        CHECK(list.front() >= 0);
        CHECK(list.back() < 8);
        CHECK(std::adjacent_find(list.begin(), list.end(), std::greater_equal<>()) == list.end());
      }
      if (trial == 255 || (softmax && trial > 0))
        CHECK(std::isnan(std::accumulate(c.weights.begin(), c.weights.end(), 0.0)));
    }
  }
}

TEST_CASE("The gate in float chooses as in double, on any backend") {
  const ModelConfig config = appendix();
  const std::vector<double> bias = {0, 0, 0, 0, -0.3, 0, 0, 0};
  const Chosen expected = gate(config, appendix_logits, bias);
  for (const Chosen& c : {gate<float, EigenCpu>(config, appendix_logits, bias),
                          gate<float, Cpu>(config, appendix_logits, bias)}) {
    CHECK(c.experts == expected.experts);
    for (std::size_t k = 0; k < 3; ++k)  // sigmoid, a sum and a division: a few 2^-24
      CHECK(c.weights[k] == doctest::Approx(expected.weights[k]).epsilon(5e-7));
  }
}

namespace {

std::vector<double> updated(const std::vector<Index>& load, bool centre, double applied = 1) {
  EigenCpu backend;
  std::vector<double> bias(load.size(), 0);
  const double norm[] = {3, applied};
  const auto experts = static_cast<Index>(load.size());
  for_each_row(
      backend, 1,
      detail::GateBiasRow<double>{
          {load.data(), {1, experts}}, {norm, {2}}, 1, centre, {bias.data(), {1, experts}}});
  return bias;
}

}  // namespace

TEST_CASE("The bias of overloaded experts goes down, of the others up") {
  const std::vector<Index> load = {10, 1, 1, 1, 1, 1, 1, 0};
  using List = std::vector<double>;
  CHECK(updated(load, false) == List{-1, 1, 1, 1, 1, 1, 1, 1});
  CHECK(updated(load, true) == List{-1.75, .25, .25, .25, .25, .25, .25, .25});
  CHECK(updated({2, 2, 2, 2}, false) == List{0, 0, 0, 0});  // balanced: sign(0) = 0
  CHECK(updated({2, 2, 3, 1}, false) == List{0, 0, -1, 1});
  CHECK(updated({0, 0, 0, 0}, false) == List{0, 0, 0, 0});
  CHECK(updated({1, 0, 0}, false) == List{-1, 1, 1});  // mean 1/3, in integers
  CHECK(updated(load, false, 0.0) == List(8, 0.0));    // a skipped step
  CHECK(updated(load, false, 0.01)[0] == -1);          // a clipped step updates in full
}

TEST_CASE("MaxVio is (largest - mean) / mean") {
  const Index load[] = {10, 1, 1, 1, 1, 1, 1, 0}, even[] = {3, 3, 3}, none[] = {0, 0};
  CHECK(max_violation(load, 8) == 4.0);
  CHECK(max_violation(even, 3) == 0.0);
  CHECK(max_violation(none, 2) == 0.0);
}

TEST_CASE("The bias update lowers MaxVio on a skewed stream") {
  // Logits with a constant preference for experts 0 and 4; the bias learns to undo it.
  EigenCpu backend;
  ModelConfig config = appendix();
  config.n_group = config.topk_group = 1;
  std::vector<double> bias(8, 0.0);
  double first = 0, last = 0;
  for (int step = 0; step < 300; ++step) {
    std::vector<Index> load(8, 0);
    const Philox philox(4, static_cast<std::uint64_t>(step));
    for (std::uint64_t t = 0; t < 64; ++t) {
      std::vector<double> logits(8);
      for (std::uint64_t e = 0; e < 8; ++e)
        logits[e] = double(normal(philox, t * 8 + e)) + (e % 4 == 0 ? 1.5 : 0.0);
      for (const std::int32_t e : gate(config, logits, bias).experts)
        ++load[static_cast<std::size_t>(e)];
    }
    last = max_violation(load.data(), 8);
    if (step == 0) first = last;
    const double norm[] = {1, 1};
    for_each_row(backend, 1,
                 detail::GateBiasRow<double>{
                     {load.data(), {1, 8}}, {norm, {2}}, 0.003, false, {bias.data(), {1, 8}}});
  }
  CHECK(first > 1.0);
  CHECK(last < 0.4);
}
