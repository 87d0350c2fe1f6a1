// Trainer: whole optimizer steps on a model.
#pragma once

#include <chrono>
#include <cstring>
#include <dsv3/nn/model.hpp>
#include <dsv3/train/adamw_tensor.hpp>
#include <dsv3/train/gate_bias.hpp>
#include <dsv3/train/options.hpp>
#include <dsv3/train/schedule.hpp>
#include <dsv3/train/tensor_groups.hpp>
#include <span>

namespace dsv3 {

/// Trains a model: gradients, clipping, AdamW, gate-bias update, one report a step.
///
/// Memory   gradients in P::master and two moments in P::moment beside the model; with ema_decay,
///          the average of the weights in P::master.
/// Errors   std::invalid_argument for options or batches that make no sense, before anything is
///          changed.
/// Source   DeepSeek-V3 section 4.2; spec 8.
template <class Model>
class Trainer {
 public:
  using P = typename Model::Precision;
  using M = typename P::master;
  using A = typename P::accumulator;
  using Moment = typename P::moment;
  using SecondMoment = second_moment_t<P>;
  using Backend = std::remove_reference_t<decltype(std::declval<Model>().backend())>;

  explicit Trainer(Model& model, const TrainOptions& options = {})
      : model_(&model),
        options_((validate<M>(options), options)),
        gradient_memory_(backend(), Model::template tensor_bytes<M>(model.config())),
        moment_memory_(backend(), Model::template tensor_bytes<Moment>(model.config()) +
                                      Model::template tensor_bytes<SecondMoment>(model.config())) {
    const ModelConfig& c = model.config();
    Arena gradients(gradient_memory_.data(), gradient_memory_.bytes());
    gradients_ = ModelTensors<P, M>::make(c, gradients);
    Arena moments(moment_memory_.data(), moment_memory_.bytes());
    m_ = ModelTensors<P, Moment>::make(c, moments);
    v_ = ModelTensors<P, SecondMoment>::make(c, moments);
    if (options_.ema_decay > 0) {
      average_memory_ = Buffer<Backend>(backend(), gradient_memory_.bytes());
      Arena averages(average_memory_.data(), average_memory_.bytes());
      averages_ = ModelTensors<P, M>::make(c, averages);
      dsv3::for_each_tensor<P>(
          [&](const std::string&, auto weight, auto average) {
            for_each_row(backend(), Model::chunks(weight.size()),
                         detail::OperandRow<M, M>{as_const(weight.flat()), average.flat()});
          },
          model.masters(), averages_);
    }
    fill_zero(backend(), moment_memory_.data(), moment_memory_.bytes());
    groups_ = detail::TensorGroups(options_, gradients_);
    const Index layers = c.moe_layers(), experts = c.n_routed_experts;
    const auto take = [&](Arena& arena) {
      load_ = arena.take<Index>({layers, experts});
      losses_ = arena.take<double>({2 + c.num_nextn_predict_layers});
      norm_ = arena.take<double>({2});
      partial_ = arena.take<double>({groups_.partials()});
      rules_ = arena.take<AdamW>({static_cast<Index>(options_.groups.size()) + 1});
    };
    Arena counting;
    take(counting);
    small_memory_ = Buffer<Backend>(backend(), counting.used());
    Arena small(small_memory_.data(), small_memory_.bytes());
    take(small);
  }

  Model& model() const { return *model_; }
  const TrainOptions& options() const { return options_; }
  const Progress& progress() const { return progress_; }
  void set_progress(const Progress& progress) { progress_ = progress; }
  const ModelTensors<P, M>& gradients() const { return gradients_; }

  /// One optimizer step on rows of T + 1 tokens: columns 0 ... T - 1 in, columns 1 ... T as labels.
  StepReport step(View<const std::int32_t, 2> tokens) {
    const Batch batch = next_token_batch(tokens);
    return step(std::span<const Batch>(&batch, 1));
  }

  /// One optimizer step on one batch.
  StepReport step(const Batch& batch) { return step(std::span<const Batch>(&batch, 1)); }

  /// One optimizer step on several micro-batches, whose gradients are added up in order. Averages
  /// run over the labels and sequences of all of them. Without seq_aux there can be but one: the
  /// shares of all tokens are needed before the first gradient.
  StepReport step(std::span<const Batch> micro_batches) {
    const auto start = std::chrono::steady_clock::now();
    const LossScale scale = scale_of("Trainer::step", micro_batches);
    if (!model_->config().seq_aux && model_->config().has_moe())
      check_at_most("Trainer::step", "micro-batches", static_cast<Index>(micro_batches.size()),
                    "batches that a balance loss without seq_aux averages over", 1);
    StepReport report;
    report.tokens = targets_;
    report.step = progress_.step + 1;
    report.lr =
        options_.schedule ? options_.schedule->lr(report.step, progress_.tokens) : options_.peak_lr;
    const auto rules = detail::TensorGroups::rules(options_, report.lr, progress_.updates + 1);
    copy_to_backend(backend(), rules_.data, rules.data(),
                    rules_.size() * static_cast<Index>(sizeof(AdamW)));
    fill_zero(backend(), gradient_memory_.data(), gradient_memory_.bytes());
    fill_zero(backend(), small_memory_.data(), report_bytes());
    model_->for_each_history([&](const std::string&, View<float, 2> history) {
      for (Index row = 0; row < 2; ++row)  // evaluations since the last step leave nothing
        fill_zero(backend(), &history(row, 0), static_cast<Index>(sizeof(float)));
    });
    for (const Batch& batch : micro_batches)
      model_->add_losses_and_gradients(batch, scale, gradients_, losses_, load_,
                                       options_.recompute);
    update();
    finish(report);
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    report.seconds = passed.count();
    report.tokens_per_second = static_cast<double>(report.tokens) / passed.count();
    return report;
  }

  /// The losses on rows of T + 1 tokens that are not trained on.
  EvaluationReport evaluate(View<const std::int32_t, 2> tokens) {
    const Batch batch = next_token_batch(tokens);
    return evaluate(std::span<const Batch>(&batch, 1));
  }

  /// The losses on a held-out set given as batches: means over the labels (balance: over the
  /// sequences; without seq_aux over the batches, by their sequences) of all of them. Changes
  /// nothing.
  EvaluationReport evaluate(std::span<const Batch> batches) {
    const LossScale scale = scale_of("Trainer::evaluate", batches);
    EvaluationReport report;
    report.tokens = targets_;
    fill_zero(backend(), load_.data, load_.size() * static_cast<Index>(sizeof(Index)));
    for (const Batch& batch : batches) {
      layout_.assign(batch, model_->config());
      const Losses losses = model_->losses(batch, NoObserver{}, load_);
      report.add(losses, static_cast<double>(layout_.targets) * scale.per_token,
                 static_cast<double>(layout_.sequences) * scale.per_sequence);
    }
    report.load.resize(static_cast<std::size_t>(load_.size()));
    copy_to_host(backend(), report.load.data(), load_.data,
                 load_.size() * static_cast<Index>(sizeof(Index)));
    report.max_violation = mean_violation(report.load);
    return report;
  }

  /// The weights of the losses for the next step.
  double mtp_lambda() const {
    return options_.schedule ? options_.schedule->mtp_lambda(progress_.tokens)
                             : options_.mtp_lambda;
  }
  double bias_gamma() const {
    return options_.schedule ? options_.schedule->bias_gamma(progress_.tokens)
                             : options_.bias_gamma;
  }

  /// The exponential average of the weights over the steps, where ema_decay is not 0. It starts at
  /// the weights that the trainer was made with.
  const ModelTensors<P, M>& averages() const { return averages_; }

  /// Exchanges the model's weights with their average: to evaluate or save it, and once more to go
  /// on training. Errors   std::logic_error without ema_decay.
  void swap_averages() {
    if (options_.ema_decay == 0)
      throw std::logic_error("Trainer::swap_averages: ema_decay (0) must be positive");
    dsv3::for_each_tensor<P>(
        [&](const std::string&, auto weight, auto average) {
          for_each_row(backend(), Model::chunks(weight.size()),
                       detail::SwapRow<M>{weight.flat(), average.flat()});
        },
        model_->masters(), averages_);
    model_->refresh_operands();
  }

  /// Calls f(name, view) for everything that a resumed run needs beside progress(): masters and
  /// gate biases under their checkpoint names, moments under "adamw.m." and "adamw.v." + name, the
  /// average under "average." + name, histories of delayed scaling under "amax." + name.
  /// After writing to them call model().refresh_operands().
  void for_each_state_tensor(auto&& f) const {
    model_->for_each_tensor(f);
    dsv3::for_each_tensor<P>(
        [&](const std::string& name, auto m, auto v) {
          state_of("adamw.m." + name, m, f);
          state_of("adamw.v." + name, v, f);
        },
        m_, v_);
    if (options_.ema_decay > 0)
      dsv3::for_each_tensor<P>(
          [&](const std::string& name, auto average) { f("average." + name, average); }, averages_);
    model_->for_each_history(
        [&](const std::string& name, View<float, 2> history) { f("amax." + name, history); });
  }

 private:
  template <class T, int Rank>
  static void state_of(const std::string& name, const View<T, Rank>& view, auto&& f) {
    f(name, view);
  }
  template <class C, int Rank>
  static void state_of(const std::string& name, const MomentView<C, Rank>& moment, auto&& f) {
    View<std::uint8_t, Rank> codes;
    codes.data = reinterpret_cast<std::uint8_t*>(moment.codes.data);
    for (int d = 0; d < Rank; ++d) {
      codes.extents[d] = moment.codes.extents[d];
      codes.strides[d] = moment.codes.strides[d];
    }
    f(name + ".codes", codes);
    f(name + ".scale", moment.scales);
  }

  Backend& backend() const { return model_->backend(); }

  // Checks every batch and adds up what the losses are divided by.
  LossScale scale_of(const char* caller, std::span<const Batch> micro_batches) {
    check_at_most(caller, "batches needed", 1, "batches", static_cast<Index>(micro_batches.size()));
    targets_ = 0;
    Index sequences = 0;
    for (const Batch& batch : micro_batches) {
      layout_.assign(batch, model_->config());
      targets_ += layout_.targets;
      sequences += layout_.sequences;
    }
    check_at_most(caller, "labels needed", 1, "labels", targets_);
    return {1 / static_cast<double>(targets_), 1 / static_cast<double>(sequences), mtp_lambda(),
            options_.balance_alpha};
  }

  // All that follows from the step's gradients. What changes from step to step, rules_, lies in the
  // backend's memory.
  void update() {
    const double gamma = bias_gamma();
    const auto work = [&] {
      measure_gradient();
      update_weights();
      if (gamma != 0) update_bias(gamma);
      model_->for_each_history([&](const std::string&, View<float, 2> history) {
        for_each_row(backend(), history.extent(0), detail::AdvanceHistoryRow{history, norm_});
      });
      if (options_.ema_decay > 0) update_average();
    };
    if constexpr (detail::reads_back<P>) {
      work();
    } else {
      RecordKey key;
      key.add(small_memory_.data()).add(model_->masters().embed_tokens.data).add(gamma);
      run_recorded(backend(), key, work);
    }
  }

  void measure_gradient() {
    std::size_t i = 0;
    dsv3::for_each_tensor<P>(
        [&](const std::string&, auto gradient) {
          const auto& tensor = groups_[i++];
          if (tensor.frozen) return;
          const Index n = Model::chunks(gradient.size());
          for_each_row(backend(), n,
                       detail::SquaredNormRow<M>{as_const(gradient.flat()),
                                                 partial_.rows(tensor.first_partial, n)});
        },
        gradients_);
    for_each_row(backend(), 1, detail::ClipRow{partial_, options_.clip_norm, norm_});
  }

  void update_weights() {
    std::size_t i = 0;
    dsv3::for_each_tensor<P>(
        [&](const std::string&, auto weight, auto gradient, auto m, auto v, auto operand) {
          const auto& tensor = groups_[i++];
          if (tensor.frozen) return;
          detail::adamw_tensor<P>(backend(), as_const(rules_.rows(tensor.group, 1)), norm_, weight,
                                  gradient, m, v, operand);
        },
        model_->masters(), gradients_, m_, v_, model_->writable_operands());
  }

  void update_bias(double gamma) {
    const auto bias = model_->bias();
    if (bias.extent(0) > 0)
      for_each_row(backend(), bias.extent(0),
                   detail::GateBiasRow<A>{load_, norm_, gamma, options_.center_bias_update, bias});
  }

  void update_average() {
    dsv3::for_each_tensor<P>(
        [&](const std::string&, auto weight, auto average) {
          for_each_row(backend(), Model::chunks(weight.size()),
                       detail::AverageRow<M>{options_.ema_decay, norm_, as_const(weight.flat()),
                                             average.flat()});
        },
        model_->masters(), averages_);
  }

  // The memory of load, losses and norm, which lie one after the other.
  Index report_bytes() const {
    return static_cast<std::byte*>(static_cast<void*>(partial_.data)) -
           static_cast<std::byte*>(small_memory_.data());
  }

  // The one copy to the host of a step.
  void finish(StepReport& report) {
    report_.resize(static_cast<std::size_t>(report_bytes()));
    copy_to_host(backend(), report_.data(), small_memory_.data(), report_bytes());
    const auto values = [&](const auto& view, auto* to) {
      const auto first =
          reinterpret_cast<std::byte*>(view.data) - static_cast<std::byte*>(small_memory_.data());
      std::memcpy(to, report_.data() + first, static_cast<std::size_t>(view.size()) * sizeof *to);
    };
    double norm[2];
    values(norm_, norm);
    std::vector<double> losses(static_cast<std::size_t>(losses_.size()));
    values(losses_, losses.data());
    report.load.resize(static_cast<std::size_t>(load_.size()));
    values(load_, report.load.data());
    report.loss = losses[0];
    report.balance = losses[1];
    report.mtp_loss.assign(losses.begin() + 2, losses.end());
    report.max_violation = mean_violation(report.load);
    report.grad_norm = norm[0];
    report.skipped = norm[1] == 0;
    ++progress_.step;
    progress_.tokens += report.tokens;
    (report.skipped ? progress_.skipped : progress_.updates) += 1;
  }

  // The mean over layers of MaxVio.
  double mean_violation(const std::vector<Index>& load) const {
    const Index layers = load_.extent(0), experts = load_.extent(1);
    double mean = 0;
    for (Index l = 0; l < layers; ++l)
      mean += max_violation(load.data() + l * experts, experts) / static_cast<double>(layers);
    return mean;
  }

  Model* model_;
  TrainOptions options_;
  Buffer<Backend> gradient_memory_, moment_memory_, average_memory_, small_memory_;
  ModelTensors<P, M> gradients_, averages_;
  ModelTensors<P, Moment> m_;
  ModelTensors<P, SecondMoment> v_;
  View<Index, 2> load_;
  View<double, 1> losses_;   // of the step: loss, balance loss, those of the MTP depths
  View<double, 1> norm_;     // gradient norm, and the factor that clips it
  View<double, 1> partial_;  // sums of squares of each chunk of each trained tensor
  View<AdamW, 1> rules_;     // of the step, for each group
  std::vector<std::byte> report_;
  detail::TensorGroups groups_;
  Index targets_ = 0;
  BatchLayout layout_;
  Progress progress_;
};

}  // namespace dsv3
