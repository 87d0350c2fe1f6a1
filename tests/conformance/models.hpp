// Conformance of a whole model in a policy, which has every block: what each layer gives, the
// losses and every gradient.
#pragma once

#include <dsv3/model.hpp>
#include <map>

#include "desk.hpp"
#include "small_model.hpp"

namespace conformance {

/// What a pass of a model shows, tensor by tensor.
template <class P, class Backend>
struct Pass {
  using Model = dsv3::Model<P, Backend>;
  using M = typename P::master;

  Backend& backend;
  Desk<Backend> desk;
  Model model;
  Results results;
  std::vector<std::vector<std::int32_t>> chosen;  // by each MoE layer

  Pass(Backend& b, const dsv3::ModelConfig& config)
      : backend(b), desk(b), model(b, config, {.seed = 3, .init_std = 0.1}) {}

  /// Two rows of 17 tokens. experts, where given, are forced.
  void run(const std::vector<std::vector<std::int32_t>>& experts) {
    const dsv3::ModelConfig& config = model.config();
    std::vector<View<const std::int32_t, 2>> forced;
    const Index k = config.num_experts_per_tok;
    for (const auto& list : experts)
      forced.push_back(desk.put(list, {static_cast<Index>(list.size()) / k, k}));
    model.force_experts(forced);
    std::vector<std::int32_t> tokens(2 * 18);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<std::int32_t>(i * i % 53);
    dsv3::Buffer<Backend> memory(backend, Model::template tensor_bytes<M>(config));
    fill_zero(backend, memory.data(), memory.bytes());
    dsv3::Arena arena(memory.data(), memory.bytes());
    const auto grads = dsv3::ModelTensors<P, M>::make(config, arena);
    const auto see = [&](const char* what, Index layer, auto view) {
      Values values = desk.read(std::to_string(layer) + "." + what, view);
      if (std::string(what) == "topk_idx") {
        chosen.emplace_back();
        for (const double e : values.of) chosen.back().push_back(static_cast<std::int32_t>(e));
      }
      results.push_back(std::move(values));
    };
    const dsv3::Losses losses = model.losses_and_gradients(
        dsv3::next_token_batch(View<const std::int32_t, 2>(tokens.data(), {2, 18})),
        {1.0 / 34, 0.5, 0.3, 0.01}, grads, {}, false, see);
    results.push_back({"losses", {losses.loss, losses.mtp_loss[0], losses.balance}});
    dsv3::for_each_tensor<P>(
        [&](const std::string& name, const auto& view) {
          results.push_back(desk.read("gradient of " + name, view));
        },
        grads);
  }
};

/// Whole tensors within the tolerances.
template <class Subjects, class P>
void model_agrees(double of_values, double of_gradients, const dsv3::ModelConfig& config) {
  dsv3::EigenCpu eigen;
  Pass<P, dsv3::EigenCpu> theirs(eigen, config);
  theirs.run({});
  Subjects::each([&]<class Backend>(const char* name, Backend& backend, const Limits& limits) {
    INFO("on ", name);
    Pass<P, Backend> ours(backend, config);
    // Where rounding could turn a choice, experts are those of the reference.
    constexpr bool own_choice = std::is_same_v<P, dsv3::Fp64> || std::is_same_v<P, dsv3::Fp32>;
    ours.run(own_choice ? std::vector<std::vector<std::int32_t>>{} : theirs.chosen);
    REQUIRE(ours.results.size() == theirs.results.size());
    double worst[2] = {}, allowed[2] = {of_values, of_gradients};
    if constexpr (dsv3::QuantizedPolicy<P>) {
      allowed[0] = std::max(of_values, limits.fp8_values);
      allowed[1] = std::max(of_gradients, limits.fp8_gradients);
    }
    for (std::size_t i = 0; i < ours.results.size(); ++i) {
      const Values &a = ours.results[i], &b = theirs.results[i];
      const bool gradient = a.name.starts_with("gradient");
      CHECK(a.name == b.name);
      check_distance(a, b, allowed[gradient]);
      worst[gradient] = std::max(worst[gradient], distance(a, b));
    }
    MESSAGE(std::string(name) << ", " << std::string(P::name) << ": largest distance of values "
                              << worst[0] << " of " << allowed[0] << ", of gradients " << worst[1]
                              << " of " << allowed[1]);
  });
}

/// The same of a model of odd sizes, and of one whose sizes fast kernels take.
template <class Subjects, class P>
void models_agree(double of_values, double of_gradients) {
  model_agrees<Subjects, P>(of_values, of_gradients, small::config());
  model_agrees<Subjects, P>(of_values, of_gradients, small::wide_config());
}

}  // namespace conformance
