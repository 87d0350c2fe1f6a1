// Decoder: a model's passes over a latent cache.
#pragma once

#include <dsv3/core/dry_run.hpp>
#include <dsv3/core/recorded.hpp>
#include <dsv3/infer/latent_cache.hpp>
#include <dsv3/infer/pass_layout.hpp>
#include <dsv3/nn/model.hpp>
#include <tuple>

namespace dsv3 {

/// Runs a model over a latent cache: prefill, in chunks or whole, and decoding, for one or many
/// sequences of unequal length in one pass. It owns the memory that a pass works in; model and
/// cache must outlive it.
///
/// Model    anything with Precision, config(), backend(), transformer(), operands() and bias():
///          Model and InferenceModel.
/// Types    C is the cache's element.
///
/// A token's results depend on the tokens before it in its sequence, on the form of each pass, and
/// on the cache's element; on a backend that fixes the order of its sums (Cpu) not a bit of them
/// depends on blocks, on how tokens are cut into passes, or on other sequences.
///
/// Errors   std::invalid_argument naming what, where and both values; cache and lengths are then
///          as before. std::bad_alloc.
template <class Model, class C = typename Model::Precision::activation>
class Decoder {
 public:
  using P = typename Model::Precision;
  using T = typename P::activation;
  using R = typename P::residual;
  using V = typename P::weight;
  using A = typename P::accumulator;
  using Backend = std::remove_reference_t<decltype(std::declval<Model&>().backend())>;
  using Cache = LatentCache<Backend, C>;

  static constexpr bool scales_by_row = [] {
    if constexpr (QuantizedPolicy<P>) return P::tile > 0;
    return true;
  }();
  static_assert(scales_by_row,
                "inference needs an FP8 policy with tiles: with tile = 0 one scale for a whole "
                "tensor would make a sequence depend on its neighbours in the batch");

  /// What a pass leaves of its tokens, until the next pass of the same level.
  struct Output {
    View<const T, 2> h;        // [T, H] what the head reads
    View<const T, 2> carried;  // [T, H] what the next MTP depth reads (spec 6.1, mtp_hidden)
  };

  Decoder(Model& model, Cache& cache)
      : model_(&model), cache_(&cache), outputs_(static_cast<std::size_t>(cache.levels())) {
    refresh();
  }

  Cache& cache() const { return *cache_; }
  Model& model() const { return *model_; }

  /// To be called when the model's weights have changed: an FP8 policy keeps the values of
  /// kv_b_proj, which the absorbed form reads.
  void refresh() {
    if constexpr (QuantizedPolicy<P>) {
      const auto& weights = model_->operands();
      const auto each = [&](const auto& block, Arena& arena) {
        const auto& kv_b = block.self_attn.kv_b_proj;
        const auto values = arena.template take<V>({kv_b.extent(0), kv_b.extent(1)});
        using Source = std::remove_cvref_t<decltype(as_const(kv_b))>;
        if (!arena.counting())
          for_each_row(backend(), values.extent(0),
                       detail::DequantizeRow<Source, V>{as_const(kv_b), values});
        absorbed_.push_back(values);
      };
      const auto all = [&](Arena& arena) {
        absorbed_.clear();
        for (const auto& block : weights.layers) each(block, arena);
        for (const auto& mtp : weights.mtp) each(mtp.block, arena);
      };
      Arena counting;
      all(counting);
      if (!absorbed_memory_.bytes()) absorbed_memory_ = Buffer<Backend>(backend(), counting.used());
      Arena arena(absorbed_memory_.data(), absorbed_memory_.bytes());
      all(arena);
    } else {
      absorbed_.assign(
          static_cast<std::size_t>(config().num_hidden_layers + config().num_nextn_predict_layers),
          View<V, 2>());
    }
  }

  /// Runs the main model on the next tokens of sequences and adds their entries to the cache.
  /// Tokens of a part follow one another; a sequence occurs once. Returns rows in their order.
  Output forward(const std::vector<CachePart>& parts, AttentionForm form) {
    return run(0, parts, form, {});
  }

  /// Runs MTP depth `depth` >= 1. The entry at position i takes the token i + depth and the row of
  /// hidden that the level before carried for position i; its h predicts token i + depth + 1.
  Output forward_mtp(Index depth, const std::vector<CachePart>& parts, AttentionForm form,
                     View<const T, 2> hidden) {
    check_at_most("Decoder::forward_mtp", "least depth", 1, "depth", depth);
    check_at_most("Decoder::forward_mtp", "depth", depth, "MTP levels of the cache",
                  cache_->levels() - 1);
    return run(depth, parts, form, hidden);
  }

  /// log p(label) of every row of h, in nats: returns [T]; 0 where the label is negative.
  std::vector<A> log_probs(View<const T, 2> h, const std::vector<std::int32_t>& labels) {
    const Index n = h.extent(0);
    check_equal("Decoder::log_probs", "labels", static_cast<Index>(labels.size()), "rows of h", n);
    for (const Index label : labels)
      check_at_most("Decoder::log_probs", "label", label, "largest id", config().vocab_size - 1);
    std::vector<A> result(labels.size());
    const auto all = [&](auto& b, Arena& arena) {
      const auto device = PassLayout::upload(b, labels, arena);
      const auto nll = arena.template take<A>({n}), loss = arena.template take<A>({1});
      Head<P>{}.loss(b, model_->operands().lm_head, h, device, 1, nll, loss, arena);
      if (!arena.counting())
        copy_to_host(backend(), result.data(), nll.data, n * static_cast<Index>(sizeof(A)));
    };
    Arena counting;
    DryRun<Backend> dry{backend()};
    all(dry, counting);
    Arena arena = scratch(counting.peak());
    all(backend(), arena);
    for (A& value : result) value = -value;
    return result;
  }

  /// Logits of some rows of h, in nats: returns [rows, vocab_size].
  std::vector<A> logits(View<const T, 2> h, const std::vector<std::int32_t>& rows) {
    const Index V_ = config().vocab_size;
    std::vector<A> result(rows.size() * static_cast<std::size_t>(V_));
    const auto nothing = [](Arena&, Index) { return 0; };
    for_each_logits(h, rows, Head<P>::chunk_tokens(V_, logits_at_once(backend())), nothing,
                    [&](Index first, View<A, 2> z, int) {
                      copy_to_host(backend(), result.data() + first * V_, z.data,
                                   z.size() * static_cast<Index>(sizeof(A)));
                    });
    return result;
  }

  /// Calls use(first, logits [count, vocab_size], taken) for the logits of some rows of h, in nats,
  /// in the backend's memory: count of them at a time, `most` at most. taken is what
  /// take(arena, most rows at a time) took from the same memory.
  void for_each_logits(View<const T, 2> h, const std::vector<std::int32_t>& rows, Index most,
                       auto&& take, auto&& use) {
    const Index H = h.extent(1), n = static_cast<Index>(rows.size());
    const Index each = n < most ? n : most;
    const auto take_all = [&](Arena& arena) {
      return std::tuple(arena.template take<std::int32_t>({n}), arena.template take<T>({n, H}),
                        arena.template take<A>({each, config().vocab_size}), take(arena, each));
    };
    Arena counting;
    take_all(counting);
    Arena arena = scratch(counting.peak());
    const auto [device_rows, gathered, z, taken] = take_all(arena);
    copy_to_backend(backend(), device_rows.data, rows.data(), n * Index{sizeof(std::int32_t)});
    for_each_row(backend(), n, detail::GatherRow<T, T>{h, device_rows, gathered});
    for (Index first = 0; first < n; first += each) {
      const Index count = n - first < each ? n - first : each;
      Head<P>{}.logits(backend(), model_->operands().lm_head, as_const(gathered.rows(first, count)),
                       z.rows(0, count));
      use(first, z.rows(0, count), taken);
    }
  }

 private:
  using W = operand_t<P>;

  const ModelConfig& config() const { return model_->config(); }
  Backend& backend() const { return model_->backend(); }

  // Working memory of at least so many bytes.
  Arena scratch(Index bytes) {
    if (memory_.bytes() < bytes) {
      memory_ = Buffer<Backend>();  // the old block goes before the new one comes
      memory_ = Buffer<Backend>(backend(), bytes);
    }
    return Arena(memory_.data(), memory_.bytes());
  }

  Output run(Index level, const std::vector<CachePart>& parts, AttentionForm form,
             View<const T, 2> hidden) {
    layout_.assign(parts, level, *cache_, config(), form);
    const Index tokens = layout_.tokens(), H = config().hidden_size;
    if (level > 0) check_shape("Decoder", "hidden", hidden, tokens, "tokens", H, "hidden_size");
    for (const CachePart& part : parts) cache_->prepare(part.sequence, part.count(), level);
    layout_.place(parts, *cache_, recorded_keys(backend()));
    grow_table(layout_.positions());
    const Output output = grow_output(static_cast<std::size_t>(level), tokens, H);
    Arena counting;
    DryRun<Backend> dry{backend()};
    pass(dry, level, hidden, output, counting);
    Arena arena = scratch(counting.peak());
    pass(backend(), level, hidden, output, arena);
    for (const CachePart& part : parts) cache_->advance(part.sequence, part.count(), level);
    return output;
  }

  template <class AnyBackend>
  void pass(AnyBackend& b, Index level, View<const T, 2> hidden, const Output& output,
            Arena& arena) {
    const auto ids = layout_.upload(b, layout_.token, arena);
    const CacheInputs in = layout_.inputs(b, arena);
    const auto work = [&] { kernels(b, level, ids, in, hidden, output, arena); };
    if (detail::reads_back<P> || arena.counting())
      work();
    else
      run_recorded(b, key_of(level, in, hidden, output), work);
  }

  // What decides the kernels of a pass. The lists' contents may change, and what the cache holds.
  RecordKey key_of(Index level, const CacheInputs& in, View<const T, 2> hidden,
                   const Output& output) const {
    RecordKey key;
    key.add(this).add(level).add(in.form).add(memory_.data()).add(table_.data()).add(positions_);
    key.add(in.slot).add(in.key_slot).add(in.table.blocks).add(in.table.block_size);
    key.add(in.table.keys).add(hidden).add(output.h).add(output.carried);
    return key.add(absorbed_memory_.data());
  }

  // The kernels of a pass, whose lists lie in the backend's memory.
  template <class AnyBackend>
  void kernels(AnyBackend& b, Index level, View<const std::int32_t, 1> ids, const CacheInputs& in,
               View<const T, 2> hidden, const Output& output, Arena& arena) {
    const auto& weights = model_->operands();
    const ModelConfig& c = config();
    const Index tokens = layout_.tokens(), H = c.hidden_size;
    const View<const A, 3> table(static_cast<const A*>(table_.data()),
                                 {positions_, 2, c.qk_rope_head_dim / 2});
    const auto x = arena.template take<R>({tokens, H});
    if (level == 0) {
      Embedding{}.forward(b, weights.embed_tokens, ids, x);
    } else {
      const ArenaScope scope(arena);
      const auto e = arena.template take<T>({tokens, H});
      Embedding{}.forward(b, weights.embed_tokens, ids, e);
      Mtp<P>(c).forward_input(b, weights.mtp[static_cast<std::size_t>(level - 1)], as_const(e),
                              hidden, x, arena);
    }
    const Index layers = level == 0 ? c.num_hidden_layers : 1;
    for (Index l = 0; l < layers; ++l) run_block(b, level, l, in, table, x, arena);
    const View<const V, 1> norm_weight =
        level == 0 ? weights.norm
                   : weights.mtp[static_cast<std::size_t>(level - 1)].shared_head_norm;
    const View<T, 2> h = writable(output.h), carried = writable(output.carried);
    RmsNorm<R, T, V>{c.rms_norm_eps}.forward(b, {norm_weight}, as_const(x), h);
    if (carried.data != h.data)
      for_each_row(b, tokens, detail::CastRow<R, T>{as_const(x), carried});
  }

  template <class AnyBackend>
  void run_block(AnyBackend& b, Index level, Index l, const CacheInputs& in, View<const A, 3> table,
                 View<R, 2> x, Arena& arena) {
    const auto& weights = model_->operands();
    const ModelConfig& c = config();
    const Index layer = level == 0 ? l : c.num_hidden_layers + level - 1;
    const auto& params = level == 0 ? weights.layers[static_cast<std::size_t>(l)]
                                    : weights.mtp[static_cast<std::size_t>(level - 1)].block;
    const Block<P> block(c);
    const LatentMla<P, C> mla{block.mla};
    const ArenaScope scope(arena);
    auto saved = block.make_ffn_saved(arena, params.is_moe(), x.extent(0), x.extent(1));
    View<const A, 1> bias;
    if (params.is_moe() && c.has_bias()) bias = model_->bias()[c.moe_layers_before(layer)];
    const auto kv_b = mla.absorbed(params.self_attn, absorbed_[static_cast<std::size_t>(layer)]);
    block.forward_around(b, params, bias, {}, as_const(x), in.sequences, 0, x, saved, arena,
                         [&](typename Projection<P>::Input n, View<T, 2> out) {
                           mla.forward(b, params.self_attn, kv_b, n, in, cache_->pages(level, l),
                                       table, out, arena);
                         });
  }

  static View<T, 2> writable(const View<const T, 2>& v) {
    return {const_cast<T*>(v.data), {v.extent(0), v.extent(1)}};
  }

  // Angles of the first `positions` positions.
  void grow_table(Index positions) {
    if (positions <= positions_) return;
    const Index wanted = std::max({positions, 2 * positions_, Index{256}});
    const auto values = rope_table<A>(config(), wanted);
    const Index bytes = static_cast<Index>(values.size() * sizeof(A));
    table_ = Buffer<Backend>(backend(), bytes);
    copy_to_backend(backend(), table_.data(), values.data(), bytes);
    synchronize(backend());
    positions_ = wanted;
  }

  Output grow_output(std::size_t level, Index tokens, Index H) {
    const bool both = config().mtp_hidden != MtpHidden::post_norm && cache_->levels() > 1;
    const Index bytes = Arena::bytes<T>(tokens * H) * (both ? 2 : 1);
    if (outputs_[level].bytes() < bytes) outputs_[level] = Buffer<Backend>(backend(), bytes);
    Arena arena(outputs_[level].data(), outputs_[level].bytes());
    const auto h = arena.template take<T>({tokens, H});
    return {h, both ? arena.template take<T>({tokens, H}) : h};
  }

  Model* model_;
  Cache* cache_;
  PassLayout layout_;
  Buffer<Backend> memory_, table_, absorbed_memory_;
  std::vector<Buffer<Backend>> outputs_;  // of each level
  std::vector<View<V, 2>> absorbed_;      // of each layer; empty views in plain policies
  Index positions_ = 0;                   // of table_
};

}  // namespace dsv3
