#include <doctest/doctest.h>

#include <dsv3/io/training_state.hpp>

#include "../small_model.hpp"
#include "folder.hpp"

using namespace dsv3;

namespace {

// State of its own: histories of magnitudes, moments as codes.
struct Delayed : Fp8 {
  static constexpr const char* name = "delayed";
  static constexpr Index tile = 0, block = 0, history = 4;
};
struct Fp8Moments : Fp8 {
  static constexpr const char* name = "fp8 moments";
  using moment = QuantizedMoment<e4m3>;
  using second_moment = QuantizedMoment<e5m2>;
};

std::vector<std::int32_t> batch_of(Index step) {
  std::vector<std::int32_t> tokens(2 * 18);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>((i * i + 7 * static_cast<std::size_t>(step)) % 53);
  return tokens;
}

template <class P>
TrainOptions options() {
  TrainOptions o{.balance_alpha = 1e-3, .groups = {{.pattern = "norm", .weight_decay = 0.0}}};
  if constexpr (QuantizedPolicy<P>) o.ema_decay = 0.9;
  o.schedule = Schedule{}.scaled(20 * 2 * 17, 1e-2, 3);  // every phase within 20 steps
  return o;
}

// Steps until `last`, and what they report, bit for bit.
template <class Trainer>
std::vector<double> steps(Trainer& trainer, Index last) {
  std::vector<double> figures;
  while (trainer.progress().step < last) {
    const auto tokens = batch_of(trainer.progress().step);
    const StepReport r = trainer.step(View<const std::int32_t, 2>(tokens.data(), {2, 18}));
    figures.insert(figures.end(), {r.loss, r.mtp_loss[0], r.balance, r.grad_norm, r.lr});
  }
  return figures;
}

}  // namespace

TEST_CASE_TEMPLATE("20 steps straight equal 10, save, resume and 10 more, bit for bit", P, Fp32,
                   Bf16, Fp8, Delayed, Fp8Moments) {
  TestFolder folder;
  Cpu two(2), one(1), three(3);  // nor does the number of threads change a bit
  const auto make = [&](Cpu& backend, std::uint64_t seed) {
    return Model<P, Cpu>(backend, small::config(), {.seed = seed, .init_std = 0.1});
  };
  auto straight_model = make(two, 1), first_model = make(one, 1), second_model = make(three, 2);
  Trainer straight(straight_model, options<P>());
  steps(straight, 10);
  const auto expected = steps(straight, 20);
  save_training_state(straight, folder.path("straight"));

  Trainer first(first_model, options<P>());
  steps(first, 10);
  save_training_state(first, folder.path("half"));
  Trainer second(second_model, options<P>());  // other weights, which the state replaces
  load_training_state(second, folder.path("half"));
  CHECK(second.progress() == first.progress());
  CHECK(steps(second, 20) == expected);
  save_training_state(second, folder.path("resumed"));
  CHECK(TestFolder::read(folder.path("resumed")) == TestFolder::read(folder.path("straight")));
}
