// InferenceModel: the weights that inference reads, and nothing that training needs.
#pragma once

#include <dsv3/core/buffer.hpp>
#include <dsv3/nn/model.hpp>

namespace dsv3 {

namespace detail {

// Whether a backend arranges what the products of a policy read: weights whose type is that of the
// activations beside them, and codes that its own products add up.
template <class P, class Backend>
constexpr bool arranges_weights() {
  using W = typename P::weight;
  if constexpr (!requires(Backend & b, View<W, 2> rows) {
                  arrange(b, rows);
                  arranged_order(&b);
                })
    return false;
  else if constexpr (!std::is_same_v<W, typename P::activation>)
    return false;
  else if constexpr (QuantizedPolicy<P>)
    return is_fp8<typename P::code> && P::accumulation.bits == 0;
  else
    return true;
}

template <class P, class Backend>
struct ServingPolicy {
  using type = P;
};
template <class P, class Backend>
requires(arranges_weights<P, Backend>()) struct ServingPolicy<P, Backend> {
  using type = ArrangedPolicy<P, arranged_order(static_cast<const Backend*>(nullptr))>;
};

// The elements of an operand as a view, arranged or not.
template <class Operand>
auto elements_of(const Operand& operand) {
  if constexpr (requires { operand.matrix; })
    return elements_of(operand.matrix);
  else if constexpr (requires { operand.codes; })
    return operand.codes;
  else
    return operand;
}

// Copies an operand and arranges it where `to` is arranged.
template <class Backend, class From, class To>
void copy_operand(Backend& backend, const From& from, const To& to) {
  if constexpr (requires { to.matrix; }) {
    copy_operand(backend, from, to.matrix);
    arrange(backend, elements_of(to));
  } else if constexpr (requires { to.codes; }) {
    copy_operand(backend, from.codes, to.codes);
    const Index down = to.scales.extents[0], across = to.scales.extents[1];
    copy_operand(backend, View<const float, 2>(from.scales.data, {down, across}),
                 View<float, 2>(to.scales.data, {down, across}));
  } else {
    using T = std::remove_cvref_t<decltype(*to.data)>;
    const Index rows = from.extent(0), columns = rows ? from.size() / rows : 0;
    for_each_row(backend, rows,
                 CopyRow<T>{{from.data, {rows, columns}}, {to.data, {rows, columns}}});
  }
}

}  // namespace detail

/// A model's operands alone: no masters, no gradients can follow. In Bf16 it takes a third of
/// Model's memory for weights, in Fp8 a fifth. load_weights() fills it from a checkpoint; until
/// then every weight is zero. Decoder and Generator take it as they take Model.
///
/// On a backend that arranges weights (Cpu) the matrices that products read are Arranged: nothing
/// else may read them, and loading leaves them so.
///
/// Types    weights in P::weight; projections of an FP8 policy as codes and scales; the gates'
///          biases in P::accumulator.
/// Errors   std::invalid_argument naming the broken rule of the config; std::bad_alloc.
template <class P, class TheBackend, const ModelConfig& static_config = runtime_config>
class InferenceModel {
 public:
  /// P, or P with arranged weights.
  using Precision = typename detail::ServingPolicy<P, TheBackend>::type;
  using A = typename P::accumulator;
  using T = typename P::activation;
  using W = operand_t<Precision>;

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
    operands_ = ModelTensors<Precision, const W>::make(config_, again);
  }

  const ModelConfig& config() const { return config_; }
  TheBackend& backend() const { return *backend_; }
  const ModelTensors<Precision, const W>& operands() const { return operands_; }
  const ModelTensors<Precision, W>& writable_operands() const { return writable_; }
  View<A, 2> bias() const { return bias_; }
  Index bytes() const { return memory_.bytes(); }

  /// Takes the operands of a Model of the same config, so that every result has the bits of the
  /// model's own. Later changes of the model do not reach this one.
  /// Errors   std::invalid_argument where the configs differ; nothing is then taken.
  template <class Model>
  void take_operands(const Model& model) {
    if (!(model.config() == config_))
      throw std::invalid_argument(
          "InferenceModel::take_operands: the model's config must equal this one's");
    dsv3::for_each_tensor<Precision>(
        [&](const std::string&, const auto& from, const auto& to) {
          detail::copy_operand(*backend_, from, to);
        },
        model.operands(), writable_);
    detail::copy_operand(*backend_, as_const(model.bias()), bias_);
  }

  /// Calls f(checkpoint name, view) for every tensor of a checkpoint; of projections in an FP8
  /// policy the view is that of the codes, of arranged ones that of the rows they were.
  void for_each_tensor(auto&& f) const {
    dsv3::for_each_tensor<Precision>(
        [&](const std::string& name, const auto& operand) {
          f(name, detail::elements_of(operand));
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

  ModelTensors<Precision, W> take(Arena& arena) {
    auto tensors = ModelTensors<Precision, W>::make(config_, arena);
    bias_ =
        arena.take<A>({config_.has_bias() ? config_.moe_layers() : 0, config_.n_routed_experts});
    return tensors;
  }

  TheBackend* backend_;
  ModelConfig config_;
  Buffer<TheBackend> memory_;
  ModelTensors<Precision, W> writable_;
  ModelTensors<Precision, const W> operands_;
  View<A, 2> bias_;
};

}  // namespace dsv3
