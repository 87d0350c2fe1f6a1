// Model: a network that owns its weights and its working memory.
#pragma once

#include <dsv3/core/buffer.hpp>
#include <dsv3/core/dry_run.hpp>
#include <dsv3/core/recorded.hpp>
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

/// The losses of a batch, in nats.
struct Losses {
  double loss = 0;               ///< mean of -log probability over the labels
  std::vector<double> mtp_loss;  ///< of each depth, divided by the main model's label count
  double balance = 0;            ///< sum over MoE layers with alpha = 1

  /// Adds the weighted losses of another part of the same whole.
  void add(const Losses& part, double token_weight, double sequence_weight) {
    mtp_loss.resize(part.mtp_loss.size());
    loss = fma(token_weight, part.loss, loss);
    balance = fma(sequence_weight, part.balance, balance);
    for (std::size_t k = 0; k < mtp_loss.size(); ++k)
      mtp_loss[k] = fma(token_weight, part.mtp_loss[k], mtp_loss[k]);
  }
};

namespace detail {
// report += the losses of a pass: main, balance, then each MTP depth.
template <class A>
struct AddLossesRow {
  View<const A, 1> loss, balance;
  View<double, 1> report;

  DSV3_HD void operator()(auto team, Index) const {
    team.once([&] {
      double sum = 0;
      for (Index l = 0; l < balance.extent(0); ++l) sum += static_cast<double>(balance(l));
      report(0) += static_cast<double>(loss(0));
      report(1) += sum;
      for (Index k = 1; k < loss.extent(0); ++k) report(1 + k) += static_cast<double>(loss(k));
    });
  }
};

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
class Model {
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

  const ModelConfig& config() const { return transformer_.config(); }
  Backend& backend() const { return *backend_; }
  const Transformer<P>& transformer() const { return transformer_; }

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

  /// Logits of every token, in nats, row by row: returns [B * T * vocab_size]; zeros at padding.
  std::vector<A> logits(const Batch& batch) { return logits(batch, 0); }

  /// Logits of MTP depth k >= 1: returns [B * T * vocab_size], where position t predicts token
  /// t + k + 1; zeros where there is no such token.
  std::vector<A> mtp_logits(const Batch& batch, Index depth) {
    check_at_most("Model::mtp_logits", "least depth", 1, "depth", depth);
    check_at_most("Model::mtp_logits", "depth", depth, "num_nextn_predict_layers",
                  config().num_nextn_predict_layers);
    return logits(batch, depth);
  }

  /// log p(label) of every token given those before it: returns [B * T], 0 where ignored.
  std::vector<A> log_probs(const Batch& batch) {
    require_labels("Model::log_probs", batch);
    std::vector<A> result(static_cast<std::size_t>(batch.tokens.size()));
    run(batch, [&](auto& backend, const auto& inputs, auto& pass, Arena& arena) {
      transformer_.forward(backend, operands_, inputs, LossScale{}, Keep::nothing, true, nullptr,
                           {}, pass, arena);
      if (arena.counting()) return;
      const auto& nll = pass.levels[0].nll;
      std::vector<A> flat(static_cast<std::size_t>(nll.extent(0)));
      copy_to_host(*backend_, flat.data(), nll.data, bytes_of(nll));
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
      transformer_.forward(backend, operands_, inputs, mean_of(layout_), Keep::nothing, true,
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
    check_shape(caller, "report", report, 2 + config().num_nextn_predict_layers,
                "losses and MTP depths");
    differentiate(
        caller, batch, scale, grads, load, recompute, NoObserver{}, report, [&](const Pass& pass) {
          for_each_row(*backend_, 1, detail::AddLossesRow<A>{pass.loss, pass.balance, report});
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
                  "MoE layers", config().moe_layers());
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
      : backend_(&backend),
        transformer_(config),
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
        transformer_.forward(backend, operands_, inputs, scale, keep, true, &grads, load, pass,
                             arena, observer);
        transformer_.backward(backend, operands_, inputs, scale, keep, pass, grads, arena);
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
    copy_to_host(*backend_, loss.data(), pass.loss.data, bytes_of(pass.loss));
    copy_to_host(*backend_, balance.data(), pass.balance.data, bytes_of(pass.balance));
    result.loss = static_cast<double>(loss[0]);
    result.mtp_loss.clear();
    for (std::size_t k = 1; k < loss.size(); ++k)
      result.mtp_loss.push_back(static_cast<double>(loss[k]));
    result.balance = 0;
    for (const A value : balance) result.balance += static_cast<double>(value);
  }

  std::vector<A> logits(const Batch& batch, Index level) {
    const Index V = config().vocab_size;
    std::vector<A> result(static_cast<std::size_t>(batch.tokens.size() * V));
    run(batch, [&](auto& backend, const auto& inputs, auto& pass, Arena& arena) {
      transformer_.forward(backend, operands_, inputs, LossScale{}, Keep::nothing, false, nullptr,
                           {}, pass, arena);
      const auto& h = pass.levels[static_cast<std::size_t>(level)].h;
      const Index n = h.extent(0), most = Head<P>::chunk_tokens(V, logits_at_once(*backend_));
      const auto z = arena.take<A>({n < most ? n : most, V});
      for (Index first = 0; first < n && !arena.counting(); first += most) {
        const Index count = n - first < most ? n - first : most;
        Head<P>{}.logits(*backend_, operands_.lm_head, as_const(h.rows(first, count)),
                         z.rows(0, count));
        for (Index i = 0; i < count; ++i)
          copy_to_host(*backend_, result.data() + source_of(level, first + i) * V, z.data + i * V,
                       V * static_cast<Index>(sizeof(A)));
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
    layout_.assign(batch, config());
    Arena counting;
    DryRun<Backend> dry{*backend_};
    pass_of(dry, make_inputs(dry, counting), pass_, counting);
    counted_ = counting.peak();
    if (arena_memory_.bytes() < counted_) {
      arena_memory_ = Buffer<Backend>();  // the old block goes before the new one comes
      arena_memory_ = Buffer<Backend>(*backend_, counted_);
    }
    Arena arena(arena_memory_.data(), arena_memory_.bytes());
    pass_of(*backend_, make_inputs(*backend_, arena), pass_, arena);
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
    const auto table = arena.take<A>({positions, 2, config().qk_rope_head_dim / 2});
    if (!arena.counting()) {
      const auto values = rope_table<A>(config(), positions);
      copy_to_backend(backend, table.data, values.data(), bytes_of(table));
    }
    inputs.table = table;
    inputs.bias = bias_;
    inputs.forced = forced_;
    return inputs;
  }

  Backend* backend_;
  Transformer<P> transformer_;
  Buffer<Backend> master_memory_, operand_memory_, bias_memory_, arena_memory_;
  ModelTensors<P, M> masters_;
  ModelTensors<P, W> writable_operands_;
  ModelTensors<P, const W> operands_;
  View<A, 2> bias_;
  std::vector<View<const std::int32_t, 2>> forced_;
  BatchLayout layout_;
  Pass pass_;
  Index counted_ = 0, measured_ = 0;
};

}  // namespace dsv3
