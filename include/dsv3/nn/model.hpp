// Model: a network that owns its weights and its working memory.
#pragma once

#include <dsv3/core/dry_run.hpp>
#include <dsv3/core/recorded.hpp>
#include <dsv3/nn/losses.hpp>
#include <dsv3/nn/model_weights.hpp>

namespace dsv3 {

namespace detail {
// A policy that stops at the first value that is not finite copies to the host within a pass.
template <class P>
inline constexpr bool reads_back = [] {
  if constexpr (QuantizedPolicy<P>) return P::checked;
  return false;
}();

// Compares references as template arguments: comparing addresses is no constant expression under
// some sanitizers.
template <const ModelConfig& config>
inline constexpr bool is_static_config = true;
template <>
inline constexpr bool is_static_config<runtime_config> = false;

constexpr bool valid_config(const ModelConfig& c) {
  validate(c);
  return true;
}
}  // namespace detail

/// DeepSeek-V3 (or V2) of any size. With a constexpr config a broken rule does not compile; with
/// runtime_config the constructor takes the sizes and checks the same rules.
///
/// Types    masters and gradients in P::master; where P::weight differs, a rounded copy serves the
///          products and is renewed after every optimizer step. In an FP8 policy the copy holds
///          codes for the projections.
/// Errors   std::invalid_argument naming the broken rule; std::bad_alloc.
///
/// Not safe for use from several threads at once: it owns the memory that a pass works in.
/// Transformer, under it, is const and takes all memory as arguments.
template <class P, class Backend, const ModelConfig& static_config = runtime_config>
class Model : public ModelWeights<P, Backend> {
  using Weights = ModelWeights<P, Backend>;

 public:
  using Precision = P;
  using A = typename P::accumulator;
  using M = typename P::master;
  using W = operand_t<P>;
  using T = typename P::activation;

  static constexpr bool is_static = detail::is_static_config<static_config>;
  static_assert(!is_static || detail::valid_config(static_config),
                "the constexpr ModelConfig breaks a rule: the compiler names it beside this line");

  /// A new model of the sizes of static_config.
  explicit Model(Backend& backend, const ModelOptions& options = {}) requires is_static
      : Model(backend, static_config, options, nullptr) {}

  /// A new model. With a constexpr config, `config` must equal it.
  Model(Backend& backend, const ModelConfig& config, const ModelOptions& options = {})
      : Model(backend, checked(config), options, nullptr) {}

  const Transformer<P>& transformer() const { return transformer_; }

  /// Logits of every token, in nats, row by row: returns [B * T * vocab_size]; zeros at padding.
  std::vector<A> logits(const Batch& batch) { return logits(batch, 0); }

  /// Logits of MTP depth k >= 1: returns [B * T * vocab_size], where position t predicts token
  /// t + k + 1; zeros where there is no such token.
  std::vector<A> mtp_logits(const Batch& batch, Index depth) {
    check_at_most("Model::mtp_logits", "least depth", 1, "depth", depth);
    check_at_most("Model::mtp_logits", "depth", depth, "num_nextn_predict_layers",
                  this->config().num_nextn_predict_layers);
    return logits(batch, depth);
  }

  /// log p(label) of every token given those before it: returns [B * T], 0 where ignored.
  std::vector<A> log_probs(const Batch& batch) {
    require_labels("Model::log_probs", batch);
    std::vector<A> result(static_cast<std::size_t>(batch.tokens.size()));
    run(batch, [&](auto& backend, const auto& inputs, auto& pass, Arena& arena) {
      transformer_.forward(backend, this->operands(), inputs, LossScale{}, Keep::nothing, true,
                           nullptr, {}, pass, arena);
      if (arena.counting()) return;
      const auto& nll = pass.levels[0].nll;
      std::vector<A> flat(static_cast<std::size_t>(nll.extent(0)));
      copy_to_host(this->backend(), flat.data(), nll.data, bytes_of(nll));
      for (std::size_t i = 0; i < flat.size(); ++i)
        result[static_cast<std::size_t>(layout_.source[i])] = -flat[i];
    });
    return result;
  }

  /// The losses of a batch, averaged over its own labels and sequences, without gradients. load
  /// [MoE layers, E], where given, is added to.
  template <class Observer = NoObserver>
  Losses losses(const Batch& batch, Observer&& observer = {}, View<Index, 2> load = {}) {
    require_labels("Model::losses", batch);
    Losses result;
    run(batch, [&](auto& backend, const auto& inputs, auto& pass, Arena& arena) {
      transformer_.forward(backend, this->operands(), inputs, mean_of(layout_), Keep::nothing, true,
                           nullptr, load, pass, arena, observer);
      if (!arena.counting()) add_losses(pass, result);
    });
    return result;
  }

  /// The losses of a batch, and its gradients, which are added to grads. scale says how a batch
  /// that is part of a larger one counts; load [MoE layers, E], where given, is added to.
  template <class Observer = NoObserver>
  Losses losses_and_gradients(const Batch& batch, const LossScale& scale,
                              const ModelTensors<P, M>& grads, View<Index, 2> load = {},
                              bool recompute = false, Observer&& observer = {}) {
    Losses result;
    differentiate("Model::losses_and_gradients", batch, scale, grads, load, recompute, observer, {},
                  [&](const Pass& pass) { add_losses(pass, result); });
    return result;
  }

  /// The same without waiting for the backend: the losses are added to report [2 + D] in its
  /// memory: loss, balance loss, those of the MTP depths.
  void add_losses_and_gradients(const Batch& batch, const LossScale& scale,
                                const ModelTensors<P, M>& grads, View<double, 1> report,
                                View<Index, 2> load = {}, bool recompute = false) {
    const char* caller = "Model::add_losses_and_gradients";
    check_shape(caller, "report", report, 2 + this->config().num_nextn_predict_layers,
                "losses and MTP depths");
    differentiate(caller, batch, scale, grads, load, recompute, NoObserver{}, report,
                  [&](const Pass& pass) {
                    for_each_row(this->backend(), 1,
                                 detail::AddLossesRow<A>{pass.loss, pass.balance, report});
                  });
  }

  /// The averages of a batch that is a whole step: over its own labels and sequences.
  LossScale mean_of(const BatchLayout& layout) const {
    LossScale scale;
    scale.per_token = layout.targets ? 1 / static_cast<double>(layout.targets) : 0;
    scale.per_sequence = layout.sequences ? 1 / static_cast<double>(layout.sequences) : 0;
    return scale;
  }

  /// Expert choices for the next passes, one [T, K] view for each MoE layer (MTP's last), ascending
  /// by expert, in the backend's memory; empty: the gates choose.
  void force_experts(std::vector<View<const std::int32_t, 2>> choices) {
    if (!choices.empty())
      check_equal("Model::force_experts", "choices", static_cast<Index>(choices.size()),
                  "MoE layers", this->config().moe_layers());
    forced_ = std::move(choices);
  }

  /// Bytes that the last pass took from the arena at its peak, as counted before it and as
  /// measured.
  Index counted_bytes() const { return counted_; }
  Index measured_bytes() const { return measured_; }

 private:
  using Pass = typename Transformer<P>::Pass;
  using Inputs = typename Transformer<P>::Inputs;

  static const ModelConfig& checked(const ModelConfig& config) {
    validate(config);
    if constexpr (is_static)
      if (!(config == static_config))
        throw std::invalid_argument(
            "Model: the given ModelConfig must equal the constexpr one of the model's type");
    return config;
  }

  Model(Backend& backend, const ModelConfig& config, const ModelOptions& options, std::nullptr_t)
      : Weights(backend, config, options), transformer_(config) {}

  static void require_labels(const char* caller, const Batch& batch) {
    if (!batch.labels.data)
      throw std::invalid_argument(std::string(caller) +
                                  ": labels of the batch (0) must equal its "
                                  "tokens (" +
                                  std::to_string(batch.tokens.size()) + ")");
  }

  template <class T1, int Rank>
  static Index bytes_of(const View<T1, Rank>& v) {
    return v.size() * static_cast<Index>(sizeof(T1));
  }

  // Forward and backward of a batch, then after(pass) while the pass lies in the arena. With a
  // report, after() asks kernels alone, which write there, and nothing reads the pass afterwards.
  void differentiate(const char* caller, const Batch& batch, const LossScale& scale,
                     const ModelTensors<P, M>& grads, View<Index, 2> load, bool recompute,
                     auto&& observer, View<double, 1> report, auto&& after) {
    require_labels(caller, batch);
    const Keep keep = recompute ? Keep::inputs : Keep::all;
    run(batch, [&](auto& backend, const auto& inputs, auto& pass, Arena& arena) {
      const auto work = [&] {
        transformer_.forward(backend, this->operands(), inputs, scale, keep, true, &grads, load,
                             pass, arena, observer);
        transformer_.backward(backend, this->operands(), inputs, scale, keep, pass, grads, arena);
        if (!arena.counting()) after(pass);
      };
      if (report.data && !detail::reads_back<P> && !arena.counting())
        run_recorded(backend, key_of(inputs, scale, keep, grads, load).add(report), work);
      else
        work();
    });
  }

  // What decides the kernels of differentiate(). The lists' contents and the weights may change.
  RecordKey key_of(const Inputs& inputs, const LossScale& scale, Keep keep,
                   const ModelTensors<P, M>& grads, View<Index, 2> load) const {
    RecordKey key;
    key.add(this).add(arena_memory_.data()).add(grads.embed_tokens.data).add(load).add(keep);
    key.add(scale.per_token).add(scale.per_sequence).add(scale.mtp_lambda).add(scale.balance_alpha);
    for (const auto& level : inputs.levels)
      key.add(level.row).add(level.token).add(level.label).add(level.sequences.first);
    key.add(inputs.table).add(inputs.bias);
    for (const auto& choice : inputs.forced) key.add(choice);
    return key;
  }

  void add_losses(const Pass& pass, Losses& result) {
    std::vector<A> loss(static_cast<std::size_t>(pass.loss.extent(0)));
    std::vector<A> balance(static_cast<std::size_t>(pass.balance.extent(0)));
    copy_to_host(this->backend(), loss.data(), pass.loss.data, bytes_of(pass.loss));
    copy_to_host(this->backend(), balance.data(), pass.balance.data, bytes_of(pass.balance));
    result.loss = static_cast<double>(loss[0]);
    result.mtp_loss.clear();
    for (std::size_t k = 1; k < loss.size(); ++k)
      result.mtp_loss.push_back(static_cast<double>(loss[k]));
    result.balance = 0;
    for (const A value : balance) result.balance += static_cast<double>(value);
  }

  std::vector<A> logits(const Batch& batch, Index level) {
    const Index V = this->config().vocab_size;
    std::vector<A> result(static_cast<std::size_t>(batch.tokens.size() * V));
    run(batch, [&](auto& backend, const auto& inputs, auto& pass, Arena& arena) {
      transformer_.forward(backend, this->operands(), inputs, LossScale{}, Keep::nothing, false,
                           nullptr, {}, pass, arena);
      const auto& h = pass.levels[static_cast<std::size_t>(level)].h;
      const Index n = h.extent(0), most = Head<P>::chunk_tokens(V, logits_at_once(this->backend()));
      const auto z = arena.take<A>({n < most ? n : most, V});
      for (Index first = 0; first < n && !arena.counting(); first += most) {
        const Index count = n - first < most ? n - first : most;
        Head<P>{}.logits(this->backend(), this->operands().lm_head, as_const(h.rows(first, count)),
                         z.rows(0, count));
        for (Index i = 0; i < count; ++i)
          copy_to_host(this->backend(), result.data() + source_of(level, first + i) * V,
                       z.data + i * V, V * static_cast<Index>(sizeof(A)));
      }
    });
    return result;
  }

  // The place b * T + t of a token of some level.
  Index source_of(Index level, Index token) const {
    auto at = static_cast<std::size_t>(token);
    for (auto k = static_cast<std::size_t>(level); k > 0; --k)
      at = static_cast<std::size_t>(layout_.levels[k].row[at]);
    return layout_.source[at];
  }

  // Lays the batch out, counts what the pass takes, and runs it in that much memory.
  void run(const Batch& batch, auto&& pass_of) {
    layout_.assign(batch, this->config());
    Arena counting;
    DryRun<Backend> dry{this->backend()};
    pass_of(dry, make_inputs(dry, counting), pass_, counting);
    counted_ = counting.peak();
    if (arena_memory_.bytes() < counted_) {
      arena_memory_ = Buffer<Backend>();  // the old block goes before the new one comes
      arena_memory_ = Buffer<Backend>(this->backend(), counted_);
    }
    Arena arena(arena_memory_.data(), arena_memory_.bytes());
    pass_of(this->backend(), make_inputs(this->backend(), arena), pass_, arena);
    measured_ = arena.peak();
  }

  template <class AnyBackend>
  Inputs make_inputs(AnyBackend& backend, Arena& arena) const {
    Inputs inputs;
    Index positions = 1;
    for (const auto& level : layout_.levels) {
      inputs.levels.push_back(DeviceLevel::upload(backend, level, arena));
      for (const std::int32_t p : level.position) positions = p < positions ? positions : p + 1;
    }
    const auto table = arena.take<A>({positions, 2, this->config().qk_rope_head_dim / 2});
    if (!arena.counting()) {
      const auto values = rope_table<A>(this->config(), positions);
      copy_to_backend(backend, table.data, values.data(), bytes_of(table));
    }
    inputs.table = table;
    inputs.bias = this->bias();
    inputs.forced = forced_;
    return inputs;
  }

  Transformer<P> transformer_;
  Buffer<Backend> arena_memory_;
  std::vector<View<const std::int32_t, 2>> forced_;
  BatchLayout layout_;
  Pass pass_;
  Index counted_ = 0, measured_ = 0;
};

}  // namespace dsv3
