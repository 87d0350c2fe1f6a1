#include <dsv3/backend/cpu.hpp>
#include <dsv3/train/trainer.hpp>
#include <limits>
#include <map>
#include <stdexcept>

#include "../nn/model_fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

using M64 = Model<Fp64, Cpu>;

// Every number of a training state, by name.
std::map<std::string, std::vector<double>> state(const Trainer<M64>& trainer) {
  std::map<std::string, std::vector<double>> all;
  trainer.for_each_state_tensor([&](const std::string& name, auto view) {
    all[name] = {view.data, view.data + view.size()};
  });
  return all;
}

}  // namespace

TEST_CASE("Trainer::step clips, updates by groups and moves the gate's bias as written down") {
  Cpu backend(2);
  const ModelConfig config = tiny_config(1);
  M64 model(backend, config);
  randomize(model, 0.5);
  TrainOptions options{.peak_lr = 1e-2, .weight_decay = 0.1, .clip_norm = 0.7, .bias_gamma = 0.01};
  options.groups = {{.pattern = "embed_tokens", .frozen = true},
                    {.pattern = "layers.1.self_attn", .lr_factor = 0.25},
                    {.pattern = "norm", .lr_factor = 2, .weight_decay = 0.0},
                    {.pattern = "lm_head", .weight_decay = 0.5}};
  Trainer trainer(model, options);
  std::map<std::string, std::vector<double>> m, v;
  for (int step = 1; step <= 4; ++step) {
    CAPTURE(step);
    const Text text(2, 7, 23, static_cast<std::uint64_t>(step));
    // The gradients on their own, then the definition.
    Gradients<M64> grads(model);
    std::vector<Index> load(18);
    const Losses losses =
        model.losses_and_gradients(text.batch(), scale_of(model, text.batch(), 0.3, 1e-4),
                                   grads.tensors, {load.data(), {3, 6}});
    auto expected = state(trainer);
    double squares = 0;
    grads.each([&](const std::string& name, auto g) {
      for (Index i = 0; i < g.size() && name != "model.embed_tokens.weight"; ++i)
        squares += g.data[i] * g.data[i];
    });
    const double norm = std::sqrt(squares), factor = std::min(1.0, 0.7 / (norm + 1e-6));
    grads.each([&](const std::string& name, auto g) {
      if (name == "model.embed_tokens.weight") return;
      double lr = 1e-2, decay = 0.1;
      if (name.find("layers.1.self_attn") != std::string::npos)
        lr *= 0.25;  // its norms too: the first group that matches
      else if (name.find("norm") != std::string::npos)
        lr *= 2, decay = 0;
      else if (name.find("lm_head") != std::string::npos)
        decay = 0.5;
      auto &weights = expected[name], &first = m[name], &second = v[name];
      first.resize(weights.size());
      second.resize(weights.size());
      for (std::size_t i = 0; i < weights.size(); ++i) {
        const double gi = factor * g.data[i];
        first[i] = 0.9 * first[i] + 0.1 * gi;
        second[i] = 0.95 * second[i] + 0.05 * gi * gi;
        const double update = first[i] / (1 - std::pow(0.9, step)) /
                              (std::sqrt(second[i] / (1 - std::pow(0.95, step))) + 1e-8);
        weights[i] -= lr * (update + decay * weights[i]);
      }
    });
    double violation = 0;
    for (std::size_t layer = 0; layer < 3; ++layer) {
      auto& bias = expected["model.layers." + std::to_string(layer + 1) +
                            ".mlp.gate.e_score_correction_bias"];
      REQUIRE(bias.size() == 6);
      const Index tokens = layer < 2 ? 14 : 12;  // MTP has a position less in each row
      Index largest = 0;
      for (std::size_t e = 0; e < 6; ++e) {
        const Index excess = 6 * load[layer * 6 + e] - 2 * tokens;
        bias[e] -= 0.01 * static_cast<double>((excess > 0) - (excess < 0));
        largest = std::max(largest, load[layer * 6 + e]);
      }
      const double mean = static_cast<double>(tokens) / 3;
      violation += (static_cast<double>(largest) / mean - 1) / 3;
    }

    const StepReport report = trainer.step(text.batch());
    CHECK(report.step == step);
    CHECK(report.lr == 1e-2);
    CHECK(report.tokens == 14);
    CHECK(report.loss == losses.loss);
    CHECK(report.mtp_loss == losses.mtp_loss);
    CHECK(report.balance == losses.balance);
    CHECK(report.load == load);
    CHECK(report.grad_norm == doctest::Approx(norm).epsilon(1e-13));
    CHECK(report.max_violation == doctest::Approx(violation).epsilon(1e-13));
    CHECK(report.seconds > 0);
    CHECK(report.tokens_per_second == doctest::Approx(14 / report.seconds));
    CHECK_FALSE(report.skipped);
    auto actual = state(trainer);
    for (const auto& entry : expected) {  // clang 14 captures no structured bindings
      const auto& name = entry.first;
      const auto& values = entry.second;
      CAPTURE(name);
      if (name.starts_with("adamw")) continue;
      double worst = 0;
      for (std::size_t i = 0; i < values.size(); ++i)
        keep_largest(worst, std::abs(actual[name][i] - values[i]));
      CHECK(worst < 1e-13);  // weights below 2, in other orders of operations
    }
    // Decoupled from what is frozen: the embedding has its first bits, and no moments.
    for (const double x : actual["adamw.m.model.embed_tokens.weight"]) REQUIRE(x == 0);
  }
  CHECK(trainer.progress() == Progress{4, 4, 56, 0});
}

TEST_CASE("Centred bias updates keep the mean of the biases") {
  Cpu backend(1);
  M64 model(backend, tiny_config());
  Trainer trainer(model, {.bias_gamma = 0.5, .center_bias_update = true});
  trainer.step(Text(2, 7, 23).batch());
  for (Index layer = 0; layer < 2; ++layer) {
    double sum = 0, size = 0;
    for (Index e = 0; e < 6; ++e) {
      sum += model.bias()(layer, e);
      size += std::abs(model.bias()(layer, e));
    }
    CHECK(std::abs(sum) < 1e-15);
    CHECK(size > 0.5);
  }
}

TEST_CASE("A step whose gradient is not finite changes nothing, is counted and reported") {
  Cpu backend(2);
  const Text text(2, 7, 23);
  M64 model(backend, tiny_config(1)), other(backend, tiny_config(1));
  randomize(model, 0.5);
  randomize(other, 0.5);
  Trainer trainer(model), fresh(other);
  double& weight = model.masters().layers[1].self_attn.o_proj(2, 3);
  const double kept = weight;
  const auto before = state(trainer);
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    weight = bad;
    const StepReport report = trainer.step(text.batch());
    CHECK(report.skipped);
    CHECK_FALSE(std::isfinite(report.grad_norm));
    weight = kept;
    CHECK(state(trainer) == before);
  }
  CHECK(trainer.progress() == Progress{2, 0, 28, 2});
  // The next good step is AdamW's first: as if the bad ones had not been.
  const StepReport report = trainer.step(text.batch());
  CHECK(report.step == 3);
  CHECK_FALSE(report.skipped);
  fresh.step(text.batch());
  CHECK(state(trainer) == state(fresh));
}

TEST_CASE("A schedule decides learning rate, lambda and gamma") {
  Cpu backend(1);
  M64 model(backend, tiny_config(1));
  // 14 labels a step: the third step is past 28 tokens.
  Schedule schedule = Schedule{}.scaled(1000, 1e-2, 2);
  schedule.mtp_lambda_until = schedule.bias_until = 28;
  schedule.constant_until = 20;
  schedule.cosine_until = schedule.low_until = 28;
  Trainer trainer(model, {.peak_lr = 5, .schedule = schedule, .mtp_lambda = 7, .bias_gamma = 9});
  const Text text(2, 7, 23);
  CHECK(trainer.mtp_lambda() == 0.3);
  CHECK(trainer.bias_gamma() == 1e-3);
  CHECK(trainer.step(text.batch()).lr == 5e-3);  // warm-up
  CHECK(trainer.step(text.batch()).lr == 1e-2);
  CHECK(trainer.mtp_lambda() == 0.1);
  CHECK(trainer.bias_gamma() == 0.0);
  const std::vector<double> bias(model.bias().data, model.bias().data + model.bias().size());
  CHECK(std::abs(bias[0]) <= 2e-3);
  CHECK(trainer.step(text.batch()).lr == schedule.last_lr);
  CHECK(std::vector<double>(model.bias().data, model.bias().data + model.bias().size()) == bias);
  // A schedule's whole state is the counters.
  trainer.set_progress({});
  CHECK(trainer.bias_gamma() == 1e-3);
}

TEST_CASE("Micro-batches make one step of the whole batch") {
  Cpu backend(2);
  const Text text(3, 7, 23);
  M64 model(backend, tiny_config(1)), other(backend, tiny_config(1));
  randomize(model, 0.5);
  randomize(other, 0.5);
  Trainer whole(model), parts(other);
  const StepReport a = whole.step(text.batch());
  const Text first = text.part(0, 1), second = text.part(1, 2);
  const Batch batches[] = {first.batch(), second.batch()};
  const StepReport b = parts.step(batches);
  CHECK(a.loss == doctest::Approx(b.loss).epsilon(1e-14));
  CHECK(a.mtp_loss[0] == doctest::Approx(b.mtp_loss[0]).epsilon(1e-14));
  CHECK(a.balance == doctest::Approx(b.balance).epsilon(1e-14));
  CHECK(a.grad_norm == doctest::Approx(b.grad_norm).epsilon(1e-12));
  CHECK(a.load == b.load);
  CHECK(a.tokens == b.tokens);
  CHECK(whole.progress() == parts.progress());
  for_each_tensor<Fp64>(
      [&](const std::string& name, auto x, auto y) {
        CAPTURE(name);
        double largest = 0, worst = 0;
        for (Index i = 0; i < x.size(); ++i) {
          keep_largest(largest, std::abs(x.data[i]));
          keep_largest(worst, std::abs(x.data[i] - y.data[i]));
        }
        CHECK(worst <= 1e-12 * largest);  // other orders of summation
      },
      whole.gradients(), parts.gradients());
}

TEST_CASE("A balance loss over the batch takes it whole, and refuses its parts") {
  Cpu backend(2);
  const Text text(3, 7, 23);
  ModelConfig config = tiny_config(1);
  M64 by_sequence(backend, config);
  config.seq_aux = false;
  M64 model(backend, config);
  randomize(by_sequence, 0.5);
  randomize(model, 0.5);
  Trainer trainer(model);
  const auto before = state(trainer);
  const Text first = text.part(0, 1), second = text.part(1, 2);
  const Batch batches[] = {first.batch(), second.batch()};
  CHECK_THROWS_WITH_AS(trainer.step(batches),
                       "Trainer::step: micro-batches (2) must be at most batches that a balance "
                       "loss without seq_aux averages over (1)",
                       std::invalid_argument);
  CHECK(state(trainer) == before);
  // Evaluating them averages over the batches, one of which is a sequence.
  const double of_parts = trainer.evaluate(batches).balance;
  const double of_first = by_sequence.losses(first.batch()).balance;
  CHECK(
      of_parts ==
      doctest::Approx(of_first / 3 + model.losses(second.batch()).balance * 2 / 3).epsilon(1e-14));
  const double whole = model.losses(text.batch()).balance;
  CHECK(whole != by_sequence.losses(text.batch()).balance);
  CHECK(trainer.step(text.batch()).balance == whole);
}

TEST_CASE("Recomputing activations counts the load once and changes no bit of a step") {
  Cpu backend(2);
  const Text text(2, 7, 23);
  M64 model(backend, tiny_config(1)), other(backend, tiny_config(1));
  Trainer kept(model), again(other, {.recompute = true});
  for (int step = 0; step < 2; ++step) {
    const StepReport a = kept.step(text.batch()), b = again.step(text.batch());
    CHECK(a.load == b.load);
    Index assignments = 0;
    for (const Index n : b.load) assignments += n;
    CHECK(assignments == 2 * (14 + 14 + 12));
  }
  CHECK(state(kept) == state(again));
}

TEST_CASE("A state copied into another trainer goes on with the same bits") {
  Cpu backend(2);
  const Text text(2, 7, 23);
  M64 model(backend, tiny_config(1)), other(backend, tiny_config(1), {.seed = 9});
  randomize(model, 0.3);
  Trainer straight(model), resumed(other);
  for (int step = 0; step < 3; ++step) straight.step(text.batch());
  const auto kept = state(straight);
  CHECK(state(resumed) != kept);
  resumed.for_each_state_tensor([&](const std::string& name, auto view) {
    std::copy(kept.at(name).begin(), kept.at(name).end(), view.data);
  });
  resumed.model().refresh_operands();
  resumed.set_progress(straight.progress());
  for (int step = 0; step < 3; ++step) {
    straight.step(text.batch());
    resumed.step(text.batch());
  }
  CHECK(state(straight) == state(resumed));
  CHECK(straight.progress() == resumed.progress());
}

TEST_CASE("Trainer::evaluate changes nothing") {
  Cpu backend(1);
  M64 model(backend, tiny_config(1));
  Trainer trainer(model);
  const auto before = state(trainer);
  const std::int32_t rows[] = {1, 2, 3, 4, 5, 6, 7, 8};
  const Losses losses = trainer.evaluate({rows, {2, 4}});
  const Text text(2, 3, {1, 2, 3, 5, 6, 7}, {2, 3, 4, 6, 7, 8});
  CHECK(losses.loss == model.losses(text.batch()).loss);
  CHECK(state(trainer) == before);
  CHECK(trainer.progress() == Progress{});
}

TEST_CASE("Trainer names bad options before it changes anything") {
  Cpu backend(1);
  M64 model(backend, tiny_config());
  TrainOptions options;
  const char* message = nullptr;
  SUBCASE("peak_lr") {
    options.peak_lr = -1;
    message = "TrainOptions: peak_lr (-1.000000) must be at least 0 and finite";
  }
  SUBCASE("weight_decay") {
    options.weight_decay = std::numeric_limits<double>::infinity();
    message = "TrainOptions: weight_decay (inf) must be at least 0 and finite";
  }
  SUBCASE("mtp_lambda") {
    options.mtp_lambda = -0.5;
    message = "TrainOptions: mtp_lambda (-0.500000) must be at least 0 and finite";
  }
  SUBCASE("balance_alpha") {
    options.balance_alpha = -2;
    message = "TrainOptions: balance_alpha (-2.000000) must be at least 0 and finite";
  }
  SUBCASE("bias_gamma") {
    options.bias_gamma = -1e-3;
    message = "TrainOptions: bias_gamma (-0.001000) must be at least 0 and finite";
  }
  SUBCASE("beta1") {
    options.beta1 = 1;
    message = "TrainOptions: beta1 (1.000000) must be in [0, 1)";
  }
  SUBCASE("beta2") {
    options.beta2 = -0.1;
    message = "TrainOptions: beta2 (-0.100000) must be in [0, 1)";
  }
  SUBCASE("eps") {
    options.eps = 0;
    message = "TrainOptions: eps (0.000000) must be positive in P::master and finite";
  }
  SUBCASE("clip_norm") {
    options.clip_norm = 0;
    message = "TrainOptions: clip_norm (0.000000) must be positive";
  }
  SUBCASE("lr_factor") {
    options.groups = {{.pattern = "norm", .lr_factor = -3}};
    message = "TrainOptions: lr_factor (-3.000000) must be at least 0 and finite";
  }
  SUBCASE("a group's weight decay") {
    options.groups = {{.pattern = "norm", .weight_decay = -1.0}};
    message = "TrainOptions: weight_decay of a group (-1.000000) must be at least 0 and finite";
  }
  SUBCASE("a pattern without a tensor") {
    options.groups = {{.pattern = "norm"}, {.pattern = "layers.7."}};
    message =
        "TrainOptions: groups[1] (\"layers.7.\") must occur in the name of a tensor that no group "
        "before it claims";
  }
  SUBCASE("a pattern that another shadows") {
    options.groups = {{.pattern = "layers."}, {.pattern = "layers.1."}};
    message =
        "TrainOptions: groups[1] (\"layers.1.\") must occur in the name of a tensor that no group "
        "before it claims";
  }
  SUBCASE("a schedule") {
    options.schedule = Schedule{};
    options.schedule->low_lr = -1;
    message = "Schedule: low_lr (-1.000000) must be at least 0 and finite";
  }
  CHECK_THROWS_WITH_AS(Trainer(model, options), message, std::invalid_argument);
}

TEST_CASE("Trainer::step names a bad batch, and nothing has changed") {
  Cpu backend(1);
  M64 model(backend, tiny_config());
  Trainer trainer(model);
  const auto before = state(trainer);
  Text text(2, 3, 23);
  SUBCASE("no label counts") {
    text.labels.assign(6, -100);
    CHECK_THROWS_WITH_AS(trainer.step(text.batch()),
                         "Trainer::step: labels needed (1) must be at most labels (0)",
                         std::invalid_argument);
  }
  SUBCASE("no batch") {
    CHECK_THROWS_WITH_AS(trainer.step(std::span<const Batch>()),
                         "Trainer::step: batches needed (1) must be at most batches (0)",
                         std::invalid_argument);
  }
  SUBCASE("the second of two is bad") {
    Text bad = text;
    bad.tokens[1] = 23;
    const Batch batches[] = {text.batch(), bad.batch()};
    CHECK_THROWS_WITH_AS(trainer.step(batches),
                         "Batch: tokens[0, 1] (23) must be at least 0 and below vocab_size (23)",
                         std::invalid_argument);
  }
  SUBCASE("the second of two has no labels") {
    Batch batches[] = {text.batch(), text.batch()};
    batches[1].labels = {};
    CHECK_THROWS_AS(trainer.step(batches), std::invalid_argument);
  }
  CHECK(state(trainer) == before);
  CHECK(trainer.progress() == Progress{});
}
