#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/train/trainer.hpp>

#include "fp8_variants.hpp"
#include "model_fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

// A model's losses and gradients with the experts that it chooses itself.
template <class P, class Backend>
struct Run {
  using M = Model<P, Backend>;
  Backend backend;
  M model;
  Gradients<M> grads;
  Losses losses;

  explicit Run(const ModelConfig& config) : model(backend, config), grads(model) {
    randomize(model, 0.2);
    const Text text(2, 70, config.vocab_size);
    losses = model.losses_and_gradients(text.batch(), scale_of(model, text.batch(), 0.3, 0.01),
                                        grads.tensors);
  }
};

// Half a dozen steps on one text.
template <class P>
std::vector<double> train() {
  Cpu backend(2);
  Model<P, Cpu> model(backend, wide_config(1), {.seed = 5, .init_std = 0.05});
  Trainer trainer(model, {.peak_lr = 1e-3});
  const Text text(2, 70, 131);
  std::vector<double> losses;
  for (int step = 0; step < 6; ++step) losses.push_back(trainer.step(text.batch()).loss);
  CHECK(trainer.progress().skipped == 0);
  return losses;
}

}  // namespace

TEST_CASE_TEMPLATE("Without quantisers the path of FP8 has the losses and gradients of double",
                   Backend, EigenCpu, Cpu) {
  Run<Identity, Backend> codes(wide_config(1));
  Run<Fp64, Backend> plain(wide_config(1));
  // Other orders of summation, 2^-53 each, of some hundred terms; 1e-6 is asked for.
  constexpr double tolerance = 1e-10;
  CHECK(std::abs(codes.losses.loss - plain.losses.loss) <= tolerance * plain.losses.loss);
  CHECK(std::abs(codes.losses.mtp_loss[0] - plain.losses.mtp_loss[0]) <= tolerance);
  CHECK(std::abs(codes.losses.balance - plain.losses.balance) <= tolerance);
  std::vector<View<double, 1>> expected;
  plain.grads.each([&](const std::string&, auto view) { expected.push_back(view.flat()); });
  std::size_t i = 0;
  codes.grads.each([&](const std::string& name, auto view) {
    CAPTURE(name);
    CHECK(distance(view.flat(), expected[i++]) <= tolerance);
  });
}

TEST_CASE("Gradients of FP8 are near those of double, experts held fixed") {
  Cpu backend(2);
  Model<Fp64, Cpu> plain(backend, wide_config(1));
  Model<Fp8, Cpu> model(backend, wide_config(1));
  randomize(plain, 0.2);
  randomize(model, 0.2);
  const Text text(2, 70, 131);
  Gradients<Model<Fp64, Cpu>> expected(plain);
  Gradients<Model<Fp8, Cpu>> grads(model);
  Choices choices{2, {}};
  const auto scale = scale_of(plain, text.batch(), 0.3, 0.01);
  const Losses exact = plain.losses_and_gradients(text.batch(), scale, expected.tensors, {}, false,
                                                  choices.observer());
  model.force_experts(choices.views());
  const Losses ours = model.losses_and_gradients(text.batch(), scale, grads.tensors);
  CHECK(std::abs(ours.loss - exact.loss) < 1e-2 * exact.loss);
  std::vector<View<double, 1>> all;
  expected.each([&](const std::string&, auto view) { all.push_back(view.flat()); });
  std::size_t i = 0;
  // A code is off by up to 2^-4 of itself, 3 % in the root mean square, and a small difference of
  // large terms by many times that. Half of the norm: the gradient still points the same way (the
  // cosine is above 0.86). What each formula owes to rounding alone is fp8_reference_test's matter.
  grads.each([&](const std::string& name, auto view) {
    CAPTURE(name);
    CHECK(distance(view.flat(), all[i++]) <= 0.5);
  });
}

TEST_CASE("Every study of the recipe is a policy of a line, trains, and is not the recipe") {
  const auto recipe = train<Fp8>();
  CHECK(recipe.back() < recipe.front());
  const auto differs = [&](const std::string& name, const std::vector<double>& losses) {
    CAPTURE(name);
    CHECK(losses.back() < losses.front());
    CHECK(losses != recipe);
    for (std::size_t i = 0; i < losses.size(); ++i)
      CHECK(std::abs(losses[i] - recipe[i]) < 0.05 * recipe[i]);
  };
  differs("e5m2 gradients", train<E5m2Gradients>());
  differs("1 x 32", train<Tile32>());
  differs("1 x 64", train<Tile64>());
  differs("1 x 256", train<Tile256>());
  differs("per tensor", train<PerTensor>());
  differs("ue8m0", train<Ue8m0>());
  differs("128 x 128 gradients", train<GradientBlocks>());
  differs("stochastic rounding", train<Stochastic>());
  differs("moments of codes", train<Fp8Moments>());
  differs("delayed scaling", train<Delayed>());
  differs("Hopper's sums, 64", train<Hopper>());
  differs("Hopper's sums, no promotion", train<HopperNone>());
  CHECK(train<Checked>() == recipe);  // it only looks
}

TEST_CASE_TEMPLATE("One token trains, and leaves none to the prediction of the next but one", P,
                   Fp8, PerTensor, Delayed, Tile32, GradientBlocks, Hopper, Checked) {
  Cpu backend(2);
  Model<P, Cpu> model(backend, wide_config(1), {.seed = 5, .init_std = 0.05});
  Trainer trainer(model, {.peak_lr = 1e-3});
  const Text text(1, 1, 131);
  const double before = trainer.step(text.batch()).loss;
  CHECK(trainer.step(text.batch()).loss < before);
  CHECK(trainer.progress().skipped == 0);
}

TEST_CASE("The checked mode names layer, tensor and place of a number that is not finite") {
  Cpu backend(2);
  Model<Checked, Cpu> model(backend, wide_config(), {.seed = 1, .init_std = 0.1});
  const Text text(1, 5, 131);
  model.losses(text.batch());
  // One embedding is infinite: the residual stream of the tokens that read it is, too.
  const auto embedding = model.masters().embed_tokens;
  embedding(text.tokens[3], 4) = std::numeric_limits<float>::infinity();
  model.refresh_operands();
  CHECK_THROWS_WITH_AS(model.losses(text.batch()),
                       "model.layers.0: input of input_layernorm [3, 4] (inf) must be finite",
                       NonFinite);
}

TEST_CASE("Delayed scaling looks at the steps before; an evaluation changes nothing") {
  Cpu backend(2);
  using M = Model<Delayed, Cpu>;
  M model(backend, wide_config(), {.seed = 5, .init_std = 0.05});
  M other(backend, wide_config(), {.seed = 5, .init_std = 0.05});
  Trainer trainer(model, {.peak_lr = 1e-3}), quiet(other, {.peak_lr = 1e-3});
  const Text text(2, 40, 131), elsewhere(2, 40, 131, 9);
  Index histories = 0;
  const auto column = [&](const M& m, Index age) {
    std::vector<float> values;
    m.for_each_history([&](const std::string&, View<float, 2> history) {
      for (Index row = 0; row < 2; ++row) values.push_back(history(row, age));
    });
    return values;
  };
  model.for_each_history([&](const std::string&, View<float, 2>) { ++histories; });
  // 5 projections of attention in 3 layers; gate, up, down of one MLP, and of two times two in MoE.
  CHECK(histories == 5 * 3 + 3 + 2 * 6);
  trainer.step(text.batch());
  quiet.step(text.batch());
  const auto first = column(model, 1);
  trainer.evaluate(std::vector<Batch>{elsewhere.batch()});
  CHECK(trainer.step(text.batch()).loss == quiet.step(text.batch()).loss);
  CHECK(column(model, 2) == first);
  CHECK(column(model, 1) == column(other, 1));
  CHECK(column(model, 3) == std::vector<float>(first.size(), 0.0f));
}

TEST_CASE("The average of the weights follows them, and can change places with them") {
  Cpu backend(2);
  Model<Fp8, Cpu> model(backend, wide_config(), {.seed = 5, .init_std = 0.05});
  Trainer trainer(model, {.peak_lr = 1e-2, .ema_decay = 0.75});
  const Text text(2, 40, 131);
  const auto weight = [&] { return model.masters().lm_head(3, 4); };
  const auto average = [&] { return trainer.averages().lm_head(3, 4); };
  const float start = weight();
  CHECK(average() == start);
  trainer.step(text.batch());
  const float one = weight();
  CHECK(one != start);
  CHECK(average() == doctest::Approx(0.75 * start + 0.25 * one).epsilon(1e-6));
  const float kept = average();
  const double trained = model.losses(text.batch()).loss;
  trainer.swap_averages();
  CHECK(weight() == kept);
  CHECK(average() == one);
  CHECK(model.losses(text.batch()).loss != trained);  // the codes followed
  trainer.swap_averages();
  CHECK(model.losses(text.batch()).loss == trained);
  Trainer without(model);
  CHECK_THROWS_WITH_AS(without.swap_averages(),
                       "Trainer::swap_averages: ema_decay (0) must be positive", std::logic_error);
}
