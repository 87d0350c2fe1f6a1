// ModelWeights: the tensors of a model, owned, as the optimizer sees them and as products do.
#pragma once

#include <dsv3/core/buffer.hpp>
#include <dsv3/nn/chunks.hpp>
#include <dsv3/nn/initialize.hpp>
#include <dsv3/nn/transformer.hpp>
#include <set>
#include <string_view>

namespace dsv3 {

/// How a new model is filled.
struct ModelOptions {
  std::uint64_t seed = 0;
  double init_std = 0.006;  ///< of every matrix; norms start at 1, the gate's bias at 0 (spec 8)
};

/// Masters, the operands that products read, and the gates' biases, in the backend's memory.
///
/// Types    masters in P::master; where P::weight differs, operands are a rounded copy, in an FP8
///          policy codes for the projections.
/// Errors   std::bad_alloc.
template <class P, class Backend>
class ModelWeights {
 public:
  using A = typename P::accumulator;
  using M = typename P::master;
  using W = operand_t<P>;

  /// New weights of a valid config.
  ModelWeights(Backend& backend, const ModelConfig& config, const ModelOptions& options)
      : backend_(&backend),
        config_(config),
        master_memory_(backend, tensor_bytes<M>(config)),
        bias_memory_(backend, Arena::bytes<A>(config.moe_layers() * config.n_routed_experts)) {
    Arena masters(master_memory_.data(), master_memory_.bytes());
    masters_ = ModelTensors<P, M>::make(config, masters);
    if constexpr (std::is_same_v<M, W>) {
      Arena again(master_memory_.data(), master_memory_.bytes());
      operands_ = ModelTensors<P, const W>::make(config, again);
      Arena none;
      writable_operands_ = ModelTensors<P, W>::make(config, none);
    } else {
      operand_memory_ = Buffer<Backend>(backend, tensor_bytes<W>(config));
      fill_zero(backend, operand_memory_.data(), operand_memory_.bytes());  // histories start empty
      Arena first(operand_memory_.data(), operand_memory_.bytes());
      Arena again(operand_memory_.data(), operand_memory_.bytes());
      writable_operands_ = ModelTensors<P, W>::make(config, first);
      operands_ = ModelTensors<P, const W>::make(config, again);
    }
    bias_ = View<A, 2>(static_cast<A*>(bias_memory_.data()),
                       {config.has_bias() ? config.moe_layers() : 0, config.n_routed_experts});
    fill_zero(backend, bias_memory_.data(), bias_memory_.bytes());
    initialize(options);
    refresh_operands();
  }

  const ModelConfig& config() const { return config_; }
  Backend& backend() const { return *backend_; }

  /// The masters; the weights as operands of products; the gate's biases [MoE layers, E].
  const ModelTensors<P, M>& masters() const { return masters_; }
  const ModelTensors<P, const W>& operands() const { return operands_; }
  View<A, 2> bias() const { return bias_; }

  /// Calls f(checkpoint name, view) for every tensor of a checkpoint: masters in P::master with one
  /// or two dimensions, and each gate's bias in P::accumulator. After writing to them call
  /// refresh_operands().
  void for_each_tensor(auto&& f) const {
    dsv3::for_each_tensor<P>(f, masters_);
    for_each_bias(f);
  }

  /// Calls f(checkpoint name, view [E]) for every gate's bias.
  void for_each_bias(auto&& f) const { for_each_gate_bias(config(), bias_, f); }

  /// Bytes of one set of tensors of U, as the model lays them out.
  template <class U>
  static Index tensor_bytes(const ModelConfig& config) {
    Arena arena;
    ModelTensors<P, U>::make(config, arena);
    return arena.used();
  }

  /// Rounds the masters into the operands, where these are a copy.
  void refresh_operands() {
    if constexpr (!std::is_same_v<M, W>)
      dsv3::for_each_tensor<P>(
          [&](const std::string&, auto master, auto operand) { refresh_operand(master, operand); },
          masters_, writable_operands_);
  }

  /// Rounds one master into its operand, where this is a copy.
  template <int Rank>
  void refresh_operand(const View<M, Rank>& master, const View<typename P::weight, Rank>& operand) {
    for_each_row(
        *backend_, chunks(master.size()),
        detail::OperandRow<M, typename P::weight>{as_const(master.flat()), operand.flat()});
  }
  /// Quantises one master into its operand.
  template <class C>
  void refresh_operand(const View<M, 2>& master, const Quantized<C>& operand) {
    quantize_weights(*backend_, as_const(master), operand, Projection<P>::rule(Route::dense));
  }

  /// Calls f(name, view [2, 1 + history]) for each history of delayed scaling, named after the
  /// first weight that it belongs to; for none in other policies.
  void for_each_history(auto&& f) const {
    if constexpr (QuantizedPolicy<P>)
      if constexpr (P::history > 0) {
        std::set<const float*> seen;  // the experts of a layer share one
        dsv3::for_each_tensor<P>(
            [&](const std::string& name, auto operand) {
              if constexpr (requires { operand.history; }) {
                if (seen.insert(operand.history.data).second) f(name, operand.history);
              }
            },
            writable_operands_);
      }
  }

  /// Rows of kernels that walk a tensor chunk by chunk.
  static Index chunks(Index elements) {
    return (elements + detail::optimizer_chunk - 1) / detail::optimizer_chunk;
  }

  /// The operands as the optimizer writes them; empty views where masters serve.
  const ModelTensors<P, W>& writable_operands() const { return writable_operands_; }

 private:
  void initialize(const ModelOptions& options) {
    dsv3::for_each_tensor<P>(
        [&]<int Rank>(const std::string& name, View<M, Rank> weight) {
          if constexpr (Rank == 1)
            for_each_row(*backend_, 1, detail::ConstantRow<M>{M(1), weight});
          else
            for_each_row(*backend_, weight.extent(0),
                         detail::NormalRow<M>{Philox(options.seed, hash_name(name)),
                                              options.init_std, weight});
        },
        masters_);
  }

  Backend* backend_;
  ModelConfig config_;
  Buffer<Backend> master_memory_, operand_memory_, bias_memory_;
  ModelTensors<P, M> masters_;
  ModelTensors<P, W> writable_operands_;
  ModelTensors<P, const W> operands_;
  View<A, 2> bias_;
};

}  // namespace dsv3
