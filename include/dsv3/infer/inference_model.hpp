// InferenceModel: the weights that inference reads, and nothing that training needs.
#pragma once

#include <dsv3/core/buffer.hpp>
#include <dsv3/nn/model.hpp>

namespace dsv3 {

/// A model's operands alone: no masters, no gradients can follow. In Bf16 it takes a third of
/// Model's memory for weights, in Fp8 a fifth. load_weights() fills it from a checkpoint; until
/// then every weight is zero. Decoder and Generator take it as they take Model.
///
/// Types    weights in P::weight; projections of an FP8 policy as codes and scales; the gates'
///          biases in P::accumulator.
/// Errors   std::invalid_argument naming the broken rule of the config; std::bad_alloc.
template <class P, class TheBackend, const ModelConfig& static_config = runtime_config>
class InferenceModel {
 public:
  using Precision = P;
  using A = typename P::accumulator;
  using T = typename P::activation;
  using W = operand_t<P>;

  static constexpr bool is_static = detail::is_static_config<static_config>;

  explicit InferenceModel(TheBackend& backend) requires is_static
      : InferenceModel(backend, static_config) {}

  /// With a constexpr config, `config` must equal it.
  InferenceModel(TheBackend& backend, const ModelConfig& config)
      : backend_(&backend), config_(checked(config)) {
    Arena counting;
    take(counting);
    memory_ = Buffer<TheBackend>(backend, counting.used());
    fill_zero(backend, memory_.data(), memory_.bytes());
    Arena arena(memory_.data(), memory_.bytes());
    writable_ = take(arena);
    Arena again(memory_.data(), memory_.bytes());
    operands_ = ModelTensors<P, const W>::make(config_, again);
  }

  const ModelConfig& config() const { return config_; }
  TheBackend& backend() const { return *backend_; }
  const ModelTensors<P, const W>& operands() const { return operands_; }
  const ModelTensors<P, W>& writable_operands() const { return writable_; }
  View<A, 2> bias() const { return bias_; }
  Index bytes() const { return memory_.bytes(); }

  /// Calls f(checkpoint name, view) for every tensor of a checkpoint; of projections in an FP8
  /// policy the view is that of the codes.
  void for_each_tensor(auto&& f) const {
    dsv3::for_each_tensor<P>(
        [&](const std::string& name, const auto& operand) {
          if constexpr (requires { operand.codes; })
            f(name, operand.codes);
          else
            f(name, operand);
        },
        writable_);
    for_each_bias(f);
  }

  /// Calls f(checkpoint name, view [E]) for every gate's bias.
  void for_each_bias(auto&& f) const { for_each_gate_bias(config_, bias_, f); }

 private:
  static const ModelConfig& checked(const ModelConfig& config) {
    validate(config);
    if constexpr (is_static)
      if (!(config == static_config))
        throw std::invalid_argument(
            "InferenceModel: the given ModelConfig must equal the constexpr one of its type");
    return config;
  }

  ModelTensors<P, W> take(Arena& arena) {
    auto tensors = ModelTensors<P, W>::make(config_, arena);
    bias_ =
        arena.take<A>({config_.has_bias() ? config_.moe_layers() : 0, config_.n_routed_experts});
    return tensors;
  }

  TheBackend* backend_;
  ModelConfig config_;
  Buffer<TheBackend> memory_;
  ModelTensors<P, W> writable_;
  ModelTensors<P, const W> operands_;
  View<A, 2> bias_;
};

}  // namespace dsv3
