#include <dsv3/backend/cpu.hpp>
#include <stdexcept>

#include "model_fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

constexpr ModelConfig tiny = tiny_config(1);

template <class P>
using CpuModel = Model<P, Cpu>;

// Elements [first, first + count) of a flat list.
template <class T>
std::vector<T> part(const std::vector<T>& list, Index first, Index count) {
  return {list.begin() + first, list.begin() + first + count};
}

}  // namespace

TEST_CASE("A model whose matrices are 0 gives every token the same probability") {
  Cpu backend(1);
  CpuModel<Fp64> model(backend, tiny_config(2), {.init_std = 0});
  const Text text(2, 5, 23);
  const Losses losses = model.losses(text.batch());
  CHECK(losses.loss == doctest::Approx(std::log(23.0)).epsilon(1e-15));
  REQUIRE(losses.mtp_loss.size() == 2);  // 4 and 3 of 5 targets, divided by 5
  CHECK(losses.mtp_loss[0] == doctest::Approx(0.8 * std::log(23.0)).epsilon(1e-15));
  CHECK(losses.mtp_loss[1] == doctest::Approx(0.6 * std::log(23.0)).epsilon(1e-15));
  // All scores tie, so each layer's balance is 1 (the gates' top 2 times equal probabilities).
  CHECK(losses.balance == doctest::Approx(4.0).epsilon(1e-14));
}

TEST_CASE("log_probs, logits and losses say the same") {
  Cpu backend(2);
  CpuModel<Fp64> model(backend, tiny_config(1));
  randomize(model, 0.5);
  Text text(2, 6, 23);
  text.labels[4] = -100;
  const Index V = 23;
  const auto z = model.logits(text.batch()), z1 = model.mtp_logits(text.batch(), 1);
  const auto log_probs = model.log_probs(text.batch());
  REQUIRE(z.size() == 12 * 23);
  const auto log_softmax = [&](const std::vector<double>& logits, std::size_t t, Index label) {
    double sum = 0;
    for (Index v = 0; v < V; ++v) sum += std::exp(logits[t * 23 + static_cast<std::size_t>(v)]);
    return logits[t * 23 + static_cast<std::size_t>(label)] - std::log(sum);
  };
  double loss = 0, mtp_loss = 0;
  for (std::size_t t = 0; t < 12; ++t) {
    const double expected = t == 4 ? 0 : log_softmax(z, t, text.labels[t]);
    CHECK(log_probs[t] == doctest::Approx(expected).epsilon(1e-13));
    loss -= expected / 11;
    if (t % 6 == 5) {  // no token after the last: no prediction
      for (std::size_t v = 0; v < 23; ++v) CHECK(z1[t * 23 + v] == 0.0);
    } else if (text.labels[t + 1] >= 0) {
      mtp_loss -= log_softmax(z1, t, text.labels[t + 1]) / 11;
    }
  }
  const Losses losses = model.losses(text.batch());
  CHECK(losses.loss == doctest::Approx(loss).epsilon(1e-13));
  CHECK(losses.mtp_loss[0] == doctest::Approx(mtp_loss).epsilon(1e-13));
}

TEST_CASE_TEMPLATE("A row has the same bits alone and among any neighbours", P, Fp32, Bf16, Fp8) {
  Cpu backend(2);
  CpuModel<P> model(backend, wide_config(1));
  randomize(model, 0.2);
  const Index V = 131, T = 70;
  const Text text(4, T, V);
  const auto all = model.logits(text.batch()), all1 = model.mtp_logits(text.batch(), 1);
  const auto log_probs = model.log_probs(text.batch());
  for (const Index row : {Index{0}, Index{2}, Index{3}}) {
    CAPTURE(row);
    const Text alone = text.part(row, 1);
    CHECK(same_bits(model.logits(alone.batch()), part(all, row * T * V, T * V)));
    CHECK(same_bits(model.mtp_logits(alone.batch(), 1), part(all1, row * T * V, T * V)));
    CHECK(same_bits(model.log_probs(alone.batch()), part(log_probs, row * T, T)));
  }
  // A shorter row: no token sees what comes after it.
  const auto shorter = model.logits(text.slice(T, T + 33).batch());
  CHECK(same_bits(shorter, part(all, T * V, 33 * V)));
}

TEST_CASE_TEMPLATE("Packed documents have the bits of the documents alone", P, Fp32, Bf16, Fp8) {
  Cpu backend(2);
  CpuModel<P> model(backend, wide_config(2));
  randomize(model, 0.2);
  const Index V = 131, T = 70;
  Text packed(2, T, V);
  packed.cu = {0, 1, 34, 36, 70, 140};
  const auto logits = model.logits(packed.batch()), mtp = model.mtp_logits(packed.batch(), 2);
  const Losses together = model.losses(packed.batch());
  double loss = 0, mtp_loss[2] = {}, balance = 0;
  for (std::size_t d = 0; d + 1 < packed.cu.size(); ++d) {
    CAPTURE(d);
    const Index from = packed.cu[d], count = packed.cu[d + 1] - from;
    const Text alone = packed.slice(from, from + count);
    CHECK(same_bits(model.logits(alone.batch()), part(logits, from * V, count * V)));
    CHECK(same_bits(model.mtp_logits(alone.batch(), 2), part(mtp, from * V, count * V)));
    const Losses one = model.losses(alone.batch());
    const double share = static_cast<double>(count) / 140;
    loss += one.loss * share;
    for (std::size_t k = 0; k < 2; ++k) mtp_loss[k] += one.mtp_loss[k] * share;
    balance += one.balance / 5;
  }
  // The same terms, added up in another order in float.
  CHECK(together.loss == doctest::Approx(loss).epsilon(1e-6));
  CHECK(together.mtp_loss[0] == doctest::Approx(mtp_loss[0]).epsilon(1e-6));
  CHECK(together.mtp_loss[1] == doctest::Approx(mtp_loss[1]).epsilon(1e-6));
  CHECK(together.balance == doctest::Approx(balance).epsilon(1e-6));
}

TEST_CASE("Packed documents have the gradients of the documents alone") {
  Cpu backend(2);
  CpuModel<Fp64> model(backend, tiny_config(1));
  randomize(model, 0.5);
  Text packed(2, 10, 23);
  packed.cu = {0, 3, 10, 20};
  Gradients<CpuModel<Fp64>> together(model), apart(model);
  const LossScale scale = scale_of(model, packed.batch(), 0.3, 0.1);
  model.losses_and_gradients(packed.batch(), scale, together.tensors);
  for (std::size_t d = 0; d + 1 < packed.cu.size(); ++d)
    model.losses_and_gradients(packed.slice(packed.cu[d], packed.cu[d + 1]).batch(), scale,
                               apart.tensors);
  for_each_tensor<Fp64>(
      [&](const std::string& name, auto a, auto b) {
        CAPTURE(name);
        double largest = 0, worst = 0;
        for (Index i = 0; i < a.size(); ++i) {
          keep_largest(largest, std::abs(a.data[i]));
          keep_largest(worst, std::abs(a.data[i] - b.data[i]));
        }
        CHECK(worst <= 1e-12 * largest);  // other orders of summation
      },
      together.tensors, apart.tensors);
}

TEST_CASE_TEMPLATE("A padded row has the bits of the row without padding", P, Fp32, Bf16, Fp8) {
  Cpu backend(2);
  CpuModel<P> model(backend, wide_config(1));
  randomize(model, 0.2);
  const Index V = 131;
  const Text full(2, 40, V);
  Text padded(2, 47, V, 6);  // other tokens in the padding
  padded.mask.assign(94, 0);
  for (std::size_t b = 0; b < 2; ++b)
    for (std::size_t t = 0; t < 40; ++t) {
      padded.tokens[b * 47 + t] = full.tokens[b * 40 + t];
      padded.labels[b * 47 + t] = full.labels[b * 40 + t];
      padded.mask[b * 47 + t] = 1;
    }
  const auto expected = model.logits(full.batch()), logits = model.logits(padded.batch());
  for (Index b = 0; b < 2; ++b) {
    CHECK(same_bits(part(logits, b * 47 * V, 40 * V), part(expected, b * 40 * V, 40 * V)));
    for (Index i = 40 * V; i < 47 * V; ++i)
      REQUIRE(logits[static_cast<std::size_t>(b * 47 * V + i)] == 0);
  }
  const Losses a = model.losses(full.batch()), b = model.losses(padded.batch());
  CHECK(a.loss == b.loss);
  CHECK(a.mtp_loss == b.mtp_loss);
  CHECK(a.balance == b.balance);
  Gradients<CpuModel<P>> ga(model), gb(model);
  std::vector<Index> la(18), lb(18);
  const LossScale scale = scale_of(model, full.batch(), 0.3, 0.01);
  CHECK(scale.per_token == scale_of(model, padded.batch(), 0.3, 0.01).per_token);
  model.losses_and_gradients(full.batch(), scale, ga.tensors, {la.data(), {3, 6}});
  model.losses_and_gradients(padded.batch(), scale, gb.tensors, {lb.data(), {3, 6}});
  CHECK(ga.bits() == gb.bits());
  CHECK(la == lb);  // padding counts in no load
}

TEST_CASE("Padding in front only moves positions: the same up to rounding") {
  Cpu backend(2);
  CpuModel<Fp64> model(backend, tiny_config());
  randomize(model, 0.5);
  const Text full(1, 9, 23);
  Text padded(1, 13, 23);
  padded.mask.assign(13, 0);
  for (std::size_t t = 0; t < 9; ++t) {
    padded.tokens[t + 4] = full.tokens[t];
    padded.mask[t + 4] = 1;
  }
  const auto expected = model.logits(full.batch()), logits = model.logits(padded.batch());
  for (std::size_t i = 0; i < expected.size(); ++i)  // angles up to 13 are rounded to 1e-15
    CHECK(std::abs(logits[4 * 23 + i] - expected[i]) < 1e-12);
}

TEST_CASE_TEMPLATE("Recomputing activations changes no bit", P, Fp32, Bf16, Fp64, Fp8) {
  Cpu backend(2);
  for (const bool post_norm : {true, false}) {
    ModelConfig config = wide_config(2);
    config.mtp_hidden = post_norm ? MtpHidden::post_norm : MtpHidden::pre_norm;
    CpuModel<P> model(backend, config);
    randomize(model, 0.2);
    Text text(2, 40, 131);
    text.cu = {0, 15, 40, 80};
    Gradients<CpuModel<P>> kept(model), again(model);
    std::vector<Index> kept_load(24), again_load(24);
    const LossScale scale = scale_of(model, text.batch(), 0.3, 0.01);
    const Losses a = model.losses_and_gradients(text.batch(), scale, kept.tensors,
                                                {kept_load.data(), {4, 6}}, false);
    const Index bytes = model.measured_bytes();
    CHECK(model.counted_bytes() == bytes);
    const Losses b = model.losses_and_gradients(text.batch(), scale, again.tensors,
                                                {again_load.data(), {4, 6}}, true);
    CHECK(model.counted_bytes() == model.measured_bytes());
    CHECK(model.measured_bytes() < bytes);  // what it is for
    CHECK(a.loss == b.loss);
    CHECK(a.mtp_loss == b.mtp_loss);
    CHECK(a.balance == b.balance);
    CHECK(kept.bits() == again.bits());
    CHECK(kept_load == again_load);  // a pass counts its load once
    // Level k has T - k tokens of each of three sequences: 2 experts each, 2 + 1 + 1 layers.
    Index assignments = 0;
    for (const Index n : kept_load) assignments += n;
    CHECK(assignments == 2 * (2 * 80 + 77 + 74));
  }
}

TEST_CASE_TEMPLATE("Counted memory is measured memory, for every kind of pass and shape", P, Fp32,
                   Bf16, Fp8) {
  Cpu backend(2);
  CpuModel<P> model(backend, tiny_config(1));
  Gradients<CpuModel<P>> grads(model);
  Index largest = 0;
  for (const auto& [rows, length] : {std::pair<Index, Index>{1, 1}, {3, 2}, {2, 31}, {1, 4}}) {
    const Text text(rows, length, 23);
    const auto check = [&] {
      CHECK(model.counted_bytes() == model.measured_bytes());
      largest = std::max(largest, model.counted_bytes());
    };
    model.losses(text.batch());
    check();
    const Index without = model.counted_bytes();
    model.logits(text.batch());
    check();
    model.log_probs(text.batch());
    check();
    model.losses_and_gradients(text.batch(), scale_of(model, text.batch(), 0.3, 0), grads.tensors);
    check();
    CHECK(without < model.counted_bytes());
  }
  CHECK(largest > 0);
}

TEST_CASE("Gradients of micro-batches add up to those of the batch") {
  Cpu backend(2);
  CpuModel<Fp64> model(backend, tiny_config(1));
  randomize(model, 0.5);
  Text text(3, 8, 23);
  text.labels[3] = -100;
  const LossScale scale = scale_of(model, text.batch(), 0.3, 0.01);
  Gradients<CpuModel<Fp64>> whole(model), parts(model);
  std::vector<Index> whole_load(18), parts_load(18);
  const Losses losses =
      model.losses_and_gradients(text.batch(), scale, whole.tensors, {whole_load.data(), {3, 6}});
  double loss = 0, balance = 0;
  for (const auto& [first, count] : {std::pair<Index, Index>{0, 2}, {2, 1}}) {
    const Text some = text.part(first, count);
    const Losses l =
        model.losses_and_gradients(some.batch(), scale, parts.tensors, {parts_load.data(), {3, 6}});
    loss += l.loss;
    balance += l.balance;
  }
  CHECK(loss == doctest::Approx(losses.loss).epsilon(1e-14));
  CHECK(balance == doctest::Approx(losses.balance).epsilon(1e-14));
  CHECK(whole_load == parts_load);
  for_each_tensor<Fp64>(
      [&](const std::string& name, auto a, auto b) {
        CAPTURE(name);
        double largest = 0, worst = 0;
        for (Index i = 0; i < a.size(); ++i) {
          keep_largest(largest, std::abs(a.data[i]));
          keep_largest(worst, std::abs(a.data[i] - b.data[i]));
        }
        CHECK(worst <= 1e-12 * largest);  // other orders of summation
      },
      whole.tensors, parts.tensors);
}

TEST_CASE("Initial weights depend on seed and name only") {
  Cpu one(1), three(3);
  CpuModel<Fp32> a(one, wide_config(1), {.seed = 7}), b(three, wide_config(1), {.seed = 7});
  CpuModel<Fp32> c(one, wide_config(1), {.seed = 8});
  bool equal = true, differs = false;
  double sum = 0, squares = 0;
  Index count = 0;
  for_each_tensor<Fp32>(
      [&]<int Rank>(const std::string&, View<float, Rank> x, View<float, Rank> y,
                    View<float, Rank> z) {
        equal &= same_bits(x, y);
        differs |= !same_bits(x, z);
        for (Index i = 0; i < x.size(); ++i) {
          if constexpr (Rank == 1) {
            REQUIRE(x.data[i] == 1.0f);  // norms
          } else {
            sum += double(x.data[i]);
            squares += double(x.data[i]) * double(x.data[i]);
            ++count;
          }
        }
      },
      a.masters(), b.masters(), c.masters());
  CHECK(equal);
  CHECK(differs);
  const double n = static_cast<double>(count);  // about 200 000 numbers of deviation 0.006
  CHECK(std::abs(sum / n) < 4 * 0.006 / std::sqrt(n));
  CHECK(std::sqrt(squares / n) == doctest::Approx(0.006).epsilon(4 / std::sqrt(2 * n)));
  for (Index i = 0; i < a.bias().size(); ++i) CHECK(a.bias().data[i] == 0.0f);
  CHECK_FALSE(same_bits(a.masters().layers[0].mlp.gate_proj, a.masters().layers[0].mlp.up_proj));
}

TEST_CASE("bf16 operands are the rounded masters, and follow them when refreshed") {
  Cpu backend(1);
  CpuModel<Bf16> model(backend, tiny_config(1));
  const auto check = [&] {
    for_each_tensor<Bf16>(
        [&](const std::string&, auto master, auto operand) {
          for (Index i = 0; i < master.size(); ++i)
            REQUIRE(operand.data[i].bits == bf16(master.data[i]).bits);
        },
        model.masters(), model.operands());
  };
  check();
  randomize(model, 0.3);
  check();
}

TEST_CASE("A model in float and in bf16 is near the one in double, experts held fixed") {
  Cpu backend(2);
  const ModelConfig config = wide_config(1);
  CpuModel<Fp64> exact(backend, config);
  randomize(exact, 0.1);
  const Text text(2, 40, 131);
  Choices choices{2, {}};
  const Losses expected = exact.losses(text.batch(), choices.observer());
  exact.force_experts(choices.views());
  Gradients<CpuModel<Fp64>> exact_grads(exact);
  const LossScale scale = scale_of(exact, text.batch(), 0.3, 0.01);
  exact.losses_and_gradients(text.batch(), scale, exact_grads.tensors);
  const auto logits = exact.logits(text.batch());
  const auto compare = [&]<class P>(P, double loss_tolerance, double tolerance, double gate) {
    CpuModel<P> model(backend, config);
    std::vector<View<double, 1>> from;
    exact.for_each_tensor([&](const std::string&, auto view) { from.push_back(view.flat()); });
    std::size_t at = 0;
    model.for_each_tensor([&](const std::string&, auto view) {
      for (Index i = 0; i < view.size(); ++i) view.data[i] = float(from[at](i));
      ++at;
    });
    model.refresh_operands();
    model.force_experts(choices.views());
    const auto z = model.logits(text.batch());
    const auto n = static_cast<Index>(z.size());
    CHECK(distance(View<const float, 1>(z.data(), {n}), View<const double, 1>(logits.data(), {n})) <
          tolerance);
    Gradients<CpuModel<P>> grads(model);
    const Losses losses = model.losses_and_gradients(text.batch(), scale, grads.tensors);
    CHECK(losses.loss == doctest::Approx(expected.loss).epsilon(loss_tolerance));
    CHECK(losses.mtp_loss[0] == doctest::Approx(expected.mtp_loss[0]).epsilon(loss_tolerance));
    CHECK(losses.balance == doctest::Approx(expected.balance).epsilon(loss_tolerance));
    dsv3::for_each_tensor<P>(
        [&](const std::string& name, auto narrow, auto wide) {
          CAPTURE(name);
          CHECK(distance(narrow.flat(), wide.flat()) <
                (name.ends_with("gate.weight") ? gate : tolerance));
        },
        grads.tensors, exact_grads.tensors);
  };
  // A path of some tens of operations, each rounded to 2^-24 or 2^-9; the gate's gradient is a
  // difference of numbers near one another.
  compare(Fp32{}, 1e-6, 1e-5, 1e-4);
  compare(Bf16{}, 2e-3, 0.1, 0.3);
}

TEST_CASE("A constexpr config makes the same model, and refuses another") {
  Cpu backend(1);
  Model<Fp32, Cpu, tiny> constant(backend, {.seed = 2});
  CpuModel<Fp32> runtime(backend, tiny, {.seed = 2});
  const Text text(1, 5, 23);
  CHECK(same_bits(constant.logits(text.batch()), runtime.logits(text.batch())));
  CHECK_THROWS_WITH_AS(
      (Model<Fp32, Cpu, tiny>(backend, tiny_config(2))),
      "Model: the given ModelConfig must equal the constexpr one of the model's type",
      std::invalid_argument);
  ModelConfig bad = tiny;
  bad.n_group = 4;
  CHECK_THROWS_WITH_AS(CpuModel<Fp32>(backend, bad),
                       "ModelConfig: n_group (4) must divide n_routed_experts (6)",
                       std::invalid_argument);
}

TEST_CASE("Model names what a pass lacks") {
  Cpu backend(1);
  CpuModel<Fp32> model(backend, tiny_config(1));
  const Text text(2, 3, 23);
  Batch batch = text.batch();
  batch.labels = {};
  CHECK(model.logits(batch).size() == 2 * 3 * 23);  // needs none
  CHECK_THROWS_WITH_AS(model.losses(batch),
                       "Model::losses: labels of the batch (0) must equal its tokens (6)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(model.log_probs(batch),
                       "Model::log_probs: labels of the batch (0) must equal its tokens (6)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(model.mtp_logits(batch, 0),
                       "Model::mtp_logits: least depth (1) must be at most depth (0)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(model.mtp_logits(batch, 2),
                       "Model::mtp_logits: depth (2) must be at most num_nextn_predict_layers (1)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(model.force_experts({{nullptr, {6, 2}}}),
                       "Model::force_experts: choices (1) must equal MoE layers (3)",
                       std::invalid_argument);
}

TEST_CASE("Forced experts are used, and released again") {
  Cpu backend(1);
  CpuModel<Fp32> model(backend, tiny_config());
  randomize(model, 0.5);
  const Text text(1, 4, 23);
  const auto free = model.logits(text.batch());
  Choices choices{2, {}};
  model.losses(text.batch(), choices.observer());
  model.force_experts(choices.views());
  CHECK(same_bits(model.logits(text.batch()), free));
  for (auto& list : choices.lists)
    for (std::size_t i = 0; i < list.size(); i += 2) {
      list[i] = 0;
      list[i + 1] = 5;
    }
  std::vector<Index> load(12);
  Gradients<CpuModel<Fp32>> grads(model);
  model.losses_and_gradients(text.batch(), {}, grads.tensors, {load.data(), {2, 6}});
  CHECK(load == std::vector<Index>{4, 0, 0, 0, 0, 4, 4, 0, 0, 0, 0, 4});
  model.force_experts({});
  CHECK(same_bits(model.logits(text.batch()), free));
}
