// The whole network on a flat batch: embedding, blocks, final norm, head, MTP; forward and
// backward.
#pragma once

#include <dsv3/nn/batch.hpp>
#include <dsv3/nn/head.hpp>
#include <dsv3/nn/mtp.hpp>

namespace dsv3 {

/// The weights of a whole model under their checkpoint names, as views of U.
template <class P, class U>
struct ModelTensors {
  matrix_of<U> embed_tokens;  // [vocab_size, H]
  std::vector<typename Block<P>::template Tensors<U>> layers;
  vector_of<U> norm;             // [H]
  product_matrix_of<U> lm_head;  // [vocab_size, H]
  std::vector<typename Mtp<P>::template Tensors<U>> mtp;

  /// Views of the right shapes from an arena, in a fixed order.
  static ModelTensors make(const ModelConfig& c, Arena& arena) {
    ModelTensors t;
    using Views = WeightViews<U>;
    t.embed_tokens = Views::take_matrix(arena, c.vocab_size, c.hidden_size);
    for (Index l = 0; l < c.num_hidden_layers; ++l)
      t.layers.push_back(Block<P>::template make_tensors<U>(c, l, arena));
    t.norm = Views::take_vector(arena, c.hidden_size);
    t.lm_head = ProductViews<U>::take_matrix(arena, c.vocab_size, c.hidden_size);
    for (Index k = 0; k < c.num_nextn_predict_layers; ++k)
      t.mtp.push_back(Mtp<P>::template make_tensors<U>(c, c.num_hidden_layers + k, arena));
    return t;
  }
};

/// Calls f(checkpoint name, view of each argument) for every trainable tensor, experts one by one.
/// Views have one or two dimensions. The gate's bias is not among them: it is not trained.
template <class P>
void for_each_tensor(auto&& f, auto&... t) {
  f(std::string("model.embed_tokens.weight"), t.embed_tokens...);
  const auto count = [](const auto& first, const auto&...) {
    return std::pair(first.layers.size(), first.mtp.size());
  }(t...);
  const auto named = [&](std::size_t layer) {
    return [&f, prefix = "model.layers." + std::to_string(layer) + "."](
               const std::string& name, auto... views) { f(prefix + name, views...); };
  };
  for (std::size_t l = 0; l < count.first; ++l) Block<P>::for_each_tensor(named(l), t.layers[l]...);
  f(std::string("model.norm.weight"), t.norm...);
  f(std::string("lm_head.weight"), t.lm_head...);
  for (std::size_t k = 0; k < count.second; ++k)
    Mtp<P>::for_each_tensor(named(count.first + k), t.mtp[k]...);
}

/// Calls f(checkpoint name, view [E]) for the bias of every gate that has one, of bias [MoE layers,
/// E].
template <class A>
void for_each_gate_bias(const ModelConfig& c, const View<A, 2>& bias, auto&& f) {
  if (!c.has_bias()) return;
  for (Index l = 0; l < c.num_hidden_layers + c.num_nextn_predict_layers; ++l)
    if (c.is_moe(l))
      f("model.layers." + std::to_string(l) + ".mlp.gate.e_score_correction_bias",
        bias[c.moe_layers_before(l)]);
}

/// What a pass keeps of each block until backward.
enum class Keep {
  nothing,  ///< no backward follows
  inputs,   ///< the block's input and its choice of experts; the rest is computed again
  all       ///< what spec 2.6 lists
};

/// How losses are averaged and weighed.
struct LossScale {
  double per_token = 1;      ///< 1 / labels of the global batch
  double per_sequence = 1;   ///< 1 / sequences of the global batch
  double mtp_lambda = 0;     ///< weight of the mean MTP loss (lambda)
  double balance_alpha = 0;  ///< weight of the sum of balance losses (alpha)
};

/// The network as a function: hyperparameters in the object, every tensor in the arguments.
///
/// Source   DeepSeek-V3 sections 2.1 and 2.2; spec 2.6 and 6.
template <class P>
class Transformer {
 public:
  using T = typename P::activation;
  using R = typename P::residual;
  using V = typename P::weight;
  using W = operand_t<P>;
  using A = typename P::accumulator;
  using M = typename P::master;

  explicit Transformer(const ModelConfig& config) : config_(config), block_(config), mtp_(config) {}

  const ModelConfig& config() const { return config_; }

  /// What a pass reads beside the weights. All in the backend's memory.
  struct Inputs {
    std::vector<DeviceLevel> levels;                  // 1 + D
    View<const A, 3> table;                           // rope_table, [positions, 2, d_r / 2]
    View<const A, 2> bias;                            // [MoE layers, E]; or empty
    std::vector<View<const std::int32_t, 2>> forced;  // of each MoE layer [T, K]; or empty
  };

  /// What a pass leaves. Views live in the arena until the caller releases it.
  struct Pass {
    struct Level {
      std::vector<View<R, 2>> x;  // input of each block
      std::vector<typename Block<P>::Saved> blocks;
      View<R, 2> last;       // output of the last block
      View<T, 2> h;          // after the norm, what the head reads
      View<T, 2> e, hidden;  // MTP: what enorm and hnorm read
      View<A, 1> nll;        // [T] -log probability of each label
      View<T, 2> dh;         // gradient in h
    };
    std::vector<Level> levels;
    View<A, 1> loss;     // [1 + D] main, then each depth
    View<A, 1> balance;  // [MoE layers] with alpha = 1
  };

  /// Runs every level and leaves h of each in `pass`. load [MoE layers, E], where given, counts the
  /// tokens of each expert. Without labels (gradients null, with_loss false) no loss is computed.
  template <class Backend, class Observer = NoObserver>
  void forward(Backend& backend, const ModelTensors<P, const W>& params, const Inputs& inputs,
               const LossScale& scale, Keep keep, bool with_loss, const ModelTensors<P, M>* grads,
               View<Index, 2> load, Pass& pass, Arena& arena, Observer&& observer = {}) const {
    const std::size_t depth = inputs.levels.size();
    const auto L = static_cast<std::size_t>(config_.num_hidden_layers);
    pass.levels.resize(depth);
    pass.loss = arena.take<A>({static_cast<Index>(depth)});
    pass.balance = arena.take<A>({config_.moe_layers()});
    Index moe_layer = 0;
    for (std::size_t k = 0; k < depth; ++k) {
      auto& level = pass.levels[k];
      const DeviceLevel& tokens = inputs.levels[k];
      const Index n = tokens.token.extent(0), H = config_.hidden_size;
      const std::size_t blocks = k == 0 ? L : 1;
      level.h = arena.take<T>({n, H});
      if (with_loss) level.nll = arena.take<A>({n});
      if (grads) level.dh = arena.take<T>({n, H});
      level.x.resize(blocks);
      level.blocks.resize(blocks);
      level.x[0] = arena.take<R>({n, H});
      if (k == 0) {
        Embedding{}.forward(backend, params.embed_tokens, tokens.token, level.x[0]);
      } else {
        level.e = arena.take<T>({n, H});
        level.hidden = arena.take<T>({n, H});
        Embedding{}.forward(backend, params.embed_tokens, tokens.token, level.e);
        gather_hidden(backend, pass.levels[k - 1], tokens.row, level.hidden);
        mtp_.forward_input(backend, params.mtp[k - 1], level.e, level.hidden, level.x[0], arena);
      }
      for (std::size_t b = 0; b < blocks; ++b) {
        const bool is_last = b + 1 == blocks;
        // A block reads x for the last time before it writes y: one memory serves where x is not
        // kept.
        const View<R, 2> y = keep == Keep::nothing ? level.x[b] : arena.take<R>({n, H});
        run_block(backend, params, inputs, k, b, scale, keep, level, y, moe_layer, load, pass,
                  arena, observer);
        (is_last ? level.last : level.x[b + 1]) = y;
      }
      const RmsNorm<R, T, V> norm{config_.rms_norm_eps};
      norm.forward(backend, {final_norm(params, k)}, level.last, level.h);
      if (!with_loss) continue;
      const Head<P> head;
      const auto loss = pass.loss.rows(static_cast<Index>(k), 1);
      if (grads)
        head.loss_and_gradients(backend, params.lm_head, level.h, tokens.label, scale.per_token,
                                weight_of(k, scale), level.nll, loss, level.dh, grads->lm_head,
                                arena);
      else
        head.loss(backend, params.lm_head, level.h, tokens.label, scale.per_token, level.nll, loss,
                  arena);
    }
  }

  /// Adds to grads what the losses of `pass` leave beyond the head. `pass` came from forward with
  /// the same arguments and grads; its dh are used up.
  template <class Backend>
  void backward(Backend& backend, const ModelTensors<P, const W>& params, const Inputs& inputs,
                const LossScale& scale, Keep keep, Pass& pass, const ModelTensors<P, M>& grads,
                Arena& arena) const {
    const Index H = config_.hidden_size;
    const RmsNorm<R, T, V> norm{config_.rms_norm_eps};
    Index moe_layer = config_.moe_layers();
    View<T, 2> from_next;  // gradient in the hidden states that depth k + 1 took, [its tokens, H]
    View<const std::int32_t, 1> from_rows;
    const ArenaScope scope(arena);
    for (std::size_t k = inputs.levels.size(); k-- > 0;) {
      auto& level = pass.levels[k];
      const DeviceLevel& tokens = inputs.levels[k];
      const Index n = tokens.token.extent(0);
      const bool post_norm = config_.mtp_hidden == MtpHidden::post_norm;
      const auto dx = arena.take<R>({n, H});
      const auto scatter = [&](auto to) {
        using To = std::remove_pointer_t<decltype(to.data)>;
        if (from_next.data || from_rows.extent(0))
          for_each_row(backend, from_rows.extent(0),
                       detail::ScatterAddRow<T, To>{from_next, from_rows, to});
      };
      if (post_norm) scatter(level.dh);
      norm.backward(backend, {final_norm(params, k)}, level.last, level.dh, dx, Output::overwrite,
                    {k == 0 ? grads.norm : grads.mtp[k - 1].shared_head_norm}, arena);
      if (!post_norm) scatter(dx);
      for (std::size_t b = level.blocks.size(); b-- > 0;)
        back_block(backend, params, inputs, k, b, scale, keep, level, dx, moe_layer, grads, arena);
      if (k == 0) {
        Embedding{}.backward(backend, tokens.token, as_const(dx), grads.embed_tokens, arena);
        continue;
      }
      const auto dhidden = arena.take<T>({n, H});
      const ArenaScope inner(arena);
      const auto de = arena.take<T>({n, H});
      mtp_.backward_input(backend, params.mtp[k - 1], level.e, level.hidden, dx, de, dhidden,
                          grads.mtp[k - 1], arena);
      Embedding{}.backward(backend, tokens.token, as_const(de), grads.embed_tokens, arena);
      from_next = dhidden;
      from_rows = tokens.row;
    }
  }

 private:
  // Gradient weight of each token's loss at level k: 1 / Z, or (lambda / D) / Z.
  double weight_of(std::size_t k, const LossScale& scale) const {
    if (k == 0) return scale.per_token;
    return scale.per_token * scale.mtp_lambda /
           static_cast<double>(config_.num_nextn_predict_layers);
  }

  static View<const V, 1> final_norm(const ModelTensors<P, const W>& params, std::size_t k) {
    return k == 0 ? params.norm : params.mtp[k - 1].shared_head_norm;
  }

  const auto& block_params(const ModelTensors<P, const W>& params, std::size_t k,
                           std::size_t b) const {
    return k == 0 ? params.layers[b] : params.mtp[k - 1].block;
  }

  template <class Backend>
  void gather_hidden(Backend& backend, const typename Pass::Level& before,
                     View<const std::int32_t, 1> rows, View<T, 2> hidden) const {
    if (config_.mtp_hidden == MtpHidden::post_norm)
      for_each_row(backend, rows.extent(0), detail::GatherRow<T, T>{before.h, rows, hidden});
    else
      for_each_row(backend, rows.extent(0), detail::GatherRow<R, T>{before.last, rows, hidden});
  }

  View<const A, 1> bias_of(const Inputs& inputs, Index moe_layer) const {
    return inputs.bias.extent(0) ? inputs.bias[moe_layer] : View<const A, 1>();
  }

  template <class Backend, class Observer>
  void run_block(Backend& backend, const ModelTensors<P, const W>& params, const Inputs& inputs,
                 std::size_t k, std::size_t b, const LossScale& scale, Keep keep,
                 typename Pass::Level& level, View<R, 2> y, Index& moe_layer, View<Index, 2> load,
                 Pass& pass, Arena& arena, Observer&& observer) const {
    const auto& block = block_params(params, k, b);
    const DeviceLevel& tokens = inputs.levels[k];
    const Index n = tokens.token.extent(0), H = config_.hidden_size;
    const auto layer = static_cast<Index>(k == 0 ? b : level_layer(k));
    View<std::int32_t, 2> choice;  // outlives the rest where only inputs are kept
    if (keep == Keep::inputs && block.is_moe())
      choice = arena.take<std::int32_t>({n, config_.num_experts_per_tok});
    Index mark = arena.used();
    auto saved = block_.make_saved(arena, block.is_moe(), n, H, tokens.sequences.count());
    if (keep == Keep::all) mark = arena.used();
    View<const std::int32_t, 2> forced;
    if (block.is_moe()) {
      saved.moe.balance = pass.balance.rows(moe_layer, 1);
      if (!inputs.forced.empty()) forced = inputs.forced[static_cast<std::size_t>(moe_layer)];
    }
    in_layer(layer, [&] {
      block_.forward(backend, block, bias_of(inputs, moe_layer), forced, level.x[b],
                     tokens.sequences, inputs.table, scale.per_sequence, y, saved, arena,
                     [&](const char* what, auto view) {
                       if (!arena.counting()) observer(what, layer, view);
                     });
    });
    if (block.is_moe()) {
      if (load.extent(0))
        for_each_row(backend, 1, detail::CountLoadRow{saved.moe.routing.offsets, load[moe_layer]});
      if (keep == Keep::inputs) {
        for_each_row(backend, n, detail::CopyRow<std::int32_t>{saved.moe.routing.topk_idx, choice});
        saved.moe.routing.topk_idx = choice;
      }
      ++moe_layer;
    }
    level.blocks[b] = saved;
    arena.release(mark);
  }

  template <class Backend>
  void back_block(Backend& backend, const ModelTensors<P, const W>& params, const Inputs& inputs,
                  std::size_t k, std::size_t b, const LossScale& scale, Keep keep,
                  typename Pass::Level& level, View<R, 2> dx, Index& moe_layer,
                  const ModelTensors<P, M>& grads, Arena& arena) const {
    const auto& block = block_params(params, k, b);
    const auto& block_grads = k == 0 ? grads.layers[b] : grads.mtp[k - 1].block;
    const DeviceLevel& tokens = inputs.levels[k];
    const Index n = tokens.token.extent(0), H = config_.hidden_size;
    if (block.is_moe()) --moe_layer;
    const ArenaScope scope(arena);
    auto saved = level.blocks[b];
    if (keep == Keep::inputs) {  // the same forward again, with the choice it made then
      const View<const std::int32_t, 2> choice = saved.moe.routing.topk_idx;
      saved = block_.make_saved(arena, block.is_moe(), n, H, tokens.sequences.count());
      const auto y = arena.take<R>({n, H});
      block_.forward(backend, block, bias_of(inputs, moe_layer), choice, level.x[b],
                     tokens.sequences, inputs.table, scale.per_sequence, y, saved, arena);
    }
    in_layer(static_cast<Index>(k == 0 ? b : level_layer(k)), [&] {
      block_.backward(backend, block, level.x[b], saved, tokens.sequences, inputs.table,
                      scale.per_sequence * scale.balance_alpha, dx, block_grads, arena);
    });
  }

  // Runs f; where the checked mode of an FP8 policy stops it, says in which layer.
  static void in_layer(Index layer, auto f) {
    try {
      f();
    } catch (const NonFinite& error) {
      throw NonFinite("model.layers." + std::to_string(layer) + ": " + error.what());
    }
  }

  std::size_t level_layer(std::size_t k) const {
    return static_cast<std::size_t>(config_.num_hidden_layers) + k - 1;
  }

  ModelConfig config_;
  Block<P> block_;
  Mtp<P> mtp_;
};

}  // namespace dsv3
