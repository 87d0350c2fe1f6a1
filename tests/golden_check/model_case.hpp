// The kinds "model case", "checkpoint" and "trajectory": a whole model against a float64 reference.
#pragma once

#include <dsv3/io/checkpoint.hpp>
#include <dsv3/io/config_json.hpp>
#include <dsv3/model.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "judge.hpp"

namespace golden {

using dsv3::Index;
using dsv3::View;

/// The tolerances of one precision (golden data's README).
template <class P>
struct Tolerances {
  static constexpr bool bf16 = std::is_same_v<P, dsv3::Bf16>;
  static constexpr bool fp64 = std::is_same_v<P, dsv3::Fp64>;
  Rule logits = bf16 ? Rule{Rule::frobenius, 4e-2} : Rule{Rule::largest, fp64 ? 1e-11 : 2e-5};
  Rule loss = bf16 ? Rule{Rule::largest, 1e-3} : logits;
  Rule other = bf16 ? Rule{Rule::printed} : logits;  // taps, scores, balance
  Rule integer = bf16 ? Rule{Rule::printed} : Rule{Rule::equal};
  Rule trajectory = {Rule::largest, fp64 ? 1e-8 : 1e-4};

  Rule gradient(const std::string& name) const {
    if (!bf16) return {Rule::largest, fp64 ? 1e-9 : 2e-4};
    return {Rule::frobenius, name.ends_with("gate.weight") ? 0.4 : 0.2};
  }
};

/// A host copy of a view, widened.
template <class Backend, class T, int Rank>
Array widened(Backend& backend, const View<T, Rank>& view) {
  using Value = std::remove_const_t<T>;
  Array array;
  for (int d = 0; d < Rank; ++d) array.shape.push_back(view.extent(d));
  std::vector<Value> host(static_cast<std::size_t>(view.size()));
  const Index width = view.extent(Rank - 1), rows = width ? view.size() / width : 0;
  for (Index r = 0; r < rows; ++r) {  // rows may lie apart; only ranks 1 and 2 occur
    const Index from = Rank == 1 ? 0 : r * view.strides[0];
    copy_to_host(backend, host.data() + r * width, view.data + from,
                 width * static_cast<Index>(sizeof(Value)));
  }
  for (const Value& v : host) {
    if constexpr (std::is_integral_v<Value>)
      array.values.push_back(static_cast<double>(v));
    else
      array.values.push_back(static_cast<double>(dsv3::accum_t<Value>(v)));
  }
  return array;
}

/// Observer that keeps everything it sees under the names of the expected file.
template <class Backend>
struct Recorder {
  Backend& backend;
  Index batch;
  std::map<std::string, Array> arrays;

  void operator()(const std::string& what, Index layer, auto view) {
    const bool gate = what == "scores" || what == "topk_idx" || what == "topk_weight" ||
                      what == "load" || what == "balance";
    const std::string prefix = (gate ? "gate.layers." : "tap.layers.") + std::to_string(layer);
    Array array = widened(backend, view);
    if (what == "load") {  // segment offsets: their differences are the load
      for (std::size_t e = 0; e + 1 < array.values.size(); ++e)
        array.values[e] = array.values[e + 1] - array.values[e];
      array.values.pop_back();
      --array.shape[0];
    }
    if (!gate) array.shape = {batch, array.shape[0] / batch, array.shape[1]};
    arrays[prefix + "." + what] = std::move(array);
  }
};

/// An integer array of an expected file. Errors: std::invalid_argument where its rank is another.
inline std::vector<std::int32_t> read_integers(const dsv3::SafetensorsFile& file,
                                               const std::string& name, std::size_t rank) {
  const dsv3::SafetensorsTensor& tensor = file.at(name);
  dsv3::check_equal(file.path().c_str(), ("rank of " + name).c_str(),
                    static_cast<Index>(tensor.shape.size()), "rank needed",
                    static_cast<Index>(rank));
  return tensor.values<std::int32_t>();
}

/// The tokens [B, T + 1] of an expected file, or [steps, B, T + 1].
struct Tokens {
  std::vector<std::int32_t> values;
  Index steps = 1, rows, columns;

  Tokens(const dsv3::SafetensorsFile& file, std::size_t rank)
      : values(read_integers(file, "tokens", rank)) {
    const auto& shape = file.at("tokens").shape;
    if (rank == 3) steps = shape[0];
    rows = shape[rank - 2];
    columns = shape[rank - 1];
  }
  View<const std::int32_t, 2> step(Index index) const {
    return {values.data() + index * rows * columns, {rows, columns}};
  }
};

/// The logits of a pass over all tokens as an array [B, T - depth, vocab_size].
template <class Values>
Array logits_array(const Values& values, const Tokens& tokens, Index vocab_size, Index depth) {
  const Index length = tokens.columns - 1, positions = length - depth;
  Array array{{}, {tokens.rows, positions, vocab_size}};
  for (Index b = 0; b < tokens.rows; ++b)
    for (Index i = 0; i < positions * vocab_size; ++i)
      array.values.push_back(
          static_cast<double>(values[static_cast<std::size_t>(b * length * vocab_size + i)]));
  return array;
}

/// The expert choices of an expected file, in the backend's memory: for Model::force_experts.
template <class Backend>
struct ExpertsOfFile {
  dsv3::Buffer<Backend> memory;
  std::vector<View<const std::int32_t, 2>> choices;

  ExpertsOfFile(Backend& backend, const dsv3::SafetensorsFile& file,
                const dsv3::ModelConfig& config) {
    std::vector<std::vector<std::int32_t>> read;
    Index bytes = 0;
    for (Index l = 0; l < config.num_hidden_layers + config.num_nextn_predict_layers; ++l)
      if (config.is_moe(l)) {
        read.push_back(read_integers(file, "gate.layers." + std::to_string(l) + ".topk_idx", 2));
        bytes += dsv3::Arena::bytes<std::int32_t>(static_cast<Index>(read.back().size()));
      }
    memory = dsv3::Buffer<Backend>(backend, bytes);
    dsv3::Arena arena(memory.data(), bytes);
    const Index k = config.num_experts_per_tok;
    for (const auto& host : read) {  // forward checks the rows, sort_by_expert each value
      const auto size = static_cast<Index>(host.size());
      const auto view = arena.take<std::int32_t>({size / k, k});
      dsv3::check_equal(file.path().c_str(), "size of topk_idx", size,
                        "a multiple of num_experts_per_tok", view.size());
      for (const std::int32_t expert : host)
        dsv3::check_at_most(file.path().c_str(), "topk_idx", expert, "last expert",
                            config.n_routed_experts - 1);
      copy_to_backend(backend, view.data, host.data(), size * Index{4});
      choices.push_back(view);
    }
  }
};

/// What the gate's bias would move by for gamma = 1.
template <class A, class Backend>
Array bias_step(Backend& backend, const Array& load, bool centre) {
  const auto experts = static_cast<Index>(load.values.size());
  dsv3::Arena counting;
  const auto take = [&](dsv3::Arena& arena) {
    return std::tuple(arena.take<Index>({1, experts}), arena.take<double>({2}),
                      arena.take<A>({1, experts}));
  };
  take(counting);
  dsv3::Buffer<Backend> memory(backend, counting.used());
  dsv3::Arena arena(memory.data(), memory.bytes());
  auto [counts, norm, bias] = take(arena);
  std::vector<Index> host(load.values.begin(), load.values.end());
  const double one[2] = {1, 1};
  fill_zero(backend, memory.data(), memory.bytes());
  copy_to_backend(backend, counts.data, host.data(), experts * Index{sizeof(Index)});
  copy_to_backend(backend, norm.data, one, sizeof one);
  for_each_row(backend, 1, dsv3::detail::GateBiasRow<A>{counts, norm, 1.0, centre, bias});
  Array result = widened(backend, bias);
  result.shape = {experts};
  return result;
}

template <class P, class Backend>
void check_model_case(const std::string& folder, Backend& backend, Counts& counts) {
  using Model = dsv3::Model<P, Backend>;
  using M = typename P::master;
  const Tolerances<P> tolerance;
  const dsv3::ModelConfig config = dsv3::load_config(folder + "/config.json");
  const dsv3::SafetensorsFile file(folder + "/expected.safetensors");
  Model model(backend, config);
  dsv3::load_weights(model, folder);
  Judge judge(folder, file, counts);
  judge.input("tokens");
  const Tokens tokens(file, 2);
  const dsv3::Batch batch = dsv3::next_token_batch(tokens.step(0));
  const Index rows = tokens.rows, length = tokens.columns - 1;

  // Where the file's choice of experts is forced, our own is looked at first, for the flips.
  std::map<std::string, Array> own_choice;
  std::optional<ExpertsOfFile<Backend>> experts;
  if (Tolerances<P>::bf16) {
    Recorder<Backend> recorder{backend, rows, {}};
    model.losses(batch, recorder);
    own_choice = std::move(recorder.arrays);
    experts.emplace(backend, file, config);
    model.force_experts(experts->choices);
  }

  // One gradient buffer, zeroed, and one pass for losses, taps, routing and gradients.
  dsv3::Buffer<Backend> memory(backend, Model::template tensor_bytes<M>(config));
  fill_zero(backend, memory.data(), memory.bytes());
  dsv3::Arena arena(memory.data(), memory.bytes());
  const auto grads = dsv3::ModelTensors<P, M>::make(config, arena);
  const double lambda = 0.3, alpha = 0.01;
  const double labels = static_cast<double>(rows * length);
  const dsv3::LossScale scale{1 / labels, 1 / static_cast<double>(rows), lambda, alpha};
  Recorder<Backend> recorder{backend, rows, {}};
  const dsv3::Losses losses = model.losses_and_gradients(batch, scale, grads, {}, false, recorder);

  const auto scalar = [](double v) { return Array{{v}, {1}}; };
  judge.compare("loss", scalar(losses.loss), tolerance.loss);
  judge.compare("balance", scalar(losses.balance), tolerance.other);
  double total = losses.loss + alpha * losses.balance;
  for (std::size_t k = 0; k < losses.mtp_loss.size(); ++k) {
    total += lambda / static_cast<double>(losses.mtp_loss.size()) * losses.mtp_loss[k];
    judge.compare("mtp_loss." + std::to_string(k + 1), scalar(losses.mtp_loss[k]), tolerance.loss);
  }
  judge.compare("total_loss", scalar(total), tolerance.loss);

  const auto compare_logits = [&](const std::string& name, const auto& values, Index depth) {
    judge.compare(name, logits_array(values, tokens, config.vocab_size, depth), tolerance.logits);
  };
  compare_logits("logits", model.logits(batch), 0);
  for (Index k = 1; k <= config.num_nextn_predict_layers; ++k)
    compare_logits("mtp_logits." + std::to_string(k), model.mtp_logits(batch, k), k);

  for (const auto& [name, array] : recorder.arrays) {
    const bool integers = name.ends_with("topk_idx") || name.ends_with("load");
    const auto own = own_choice.find(name);
    judge.compare(name, integers && own != own_choice.end() ? own->second : array,
                  integers ? tolerance.integer : tolerance.other);
    if (!name.ends_with(".load")) continue;
    const std::string layer = name.substr(0, name.size() - 4);
    judge.compare(layer + "bias_sign", bias_step<typename P::accumulator>(backend, array, false),
                  Tolerances<P>::bf16 ? tolerance.integer : Rule{Rule::equal});
    judge.compare(layer + "bias_sign_centred",
                  bias_step<typename P::accumulator>(backend, array, true), tolerance.other);
  }
  dsv3::for_each_tensor<P>(
      [&](const std::string& name, auto gradient) {
        judge.compare("grad." + name, widened(backend, gradient), tolerance.gradient(name));
      },
      grads);
}

/// Twelve (or any number of) whole steps with the options under "training" in config.json.
template <class P, class Backend>
void check_trajectory(const std::string& folder, Backend& backend, Counts& counts) {
  using Model = dsv3::Model<P, Backend>;
  const Tolerances<P> tolerance;
  const dsv3::ModelConfig config = dsv3::load_config(folder + "/config.json");
  const dsv3::MappedFile text(folder + "/config.json");
  const auto training = nlohmann::json::parse(text.data(), text.data() + text.size())["training"];
  const dsv3::SafetensorsFile file(folder + "/expected.safetensors");
  Model model(backend, config);
  dsv3::load_weights(model, folder);
  dsv3::TrainOptions options;
  options.peak_lr = training.at("lr");
  options.beta1 = training.at("betas").at(0);
  options.beta2 = training.at("betas").at(1);
  options.eps = training.at("eps");
  options.weight_decay = training.at("weight_decay");
  options.clip_norm = training.at("clip");
  options.mtp_lambda = training.at("mtp_lambda");
  options.balance_alpha = training.at("balance_alpha");
  options.bias_gamma = training.at("bias_gamma");
  dsv3::Trainer trainer(model, options);
  Judge judge(folder, file, counts);
  judge.input("tokens");
  const Tokens tokens(file, 3);
  const Index steps = training.at("steps");
  dsv3::check_at_most(folder.c_str(), "training.steps", steps, "steps of tokens", tokens.steps);
  std::map<std::string, Array> series;
  const auto record = [&](const char* name, double value) {
    series[name].values.push_back(value);
    series[name].shape = {static_cast<Index>(series[name].values.size())};
  };
  for (Index s = 0; s < steps; ++s) {
    const dsv3::StepReport report = trainer.step(tokens.step(s));
    double mtp = 0;
    for (const double loss : report.mtp_loss) mtp += loss;
    record("loss", report.loss);
    record("mtp_loss", mtp);
    record("balance", report.balance);
    record("grad_norm", report.grad_norm);
  }
  for (const auto& [name, array] : series) judge.compare(name, array, tolerance.trajectory);
  const dsv3::Batch first = dsv3::next_token_batch(tokens.step(0));
  const auto logits = model.logits(first);
  judge.compare(
      "final_logits",
      Array{{logits.begin(), logits.end()}, {tokens.rows, tokens.columns - 1, config.vocab_size}},
      tolerance.trajectory);
  model.for_each_tensor([&](const std::string& name, auto view) {
    double squares = 0;
    for (const double v : widened(backend, view).values) squares += v * v;
    judge.compare("final_norm." + name, Array{{std::sqrt(squares)}, {1}}, tolerance.trajectory);
  });
}

}  // namespace golden
