// What the tests of whole models share: a tiny config, batches, gradients, forced experts. Models
// here live on backends whose memory is the host's.
#pragma once

#include <dsv3/nn/model.hpp>
#include <memory>

#include "fixture.hpp"

namespace fixture {

using dsv3::Batch;
using dsv3::ModelConfig;

/// Odd sizes everywhere; one dense layer and two with experts.
constexpr ModelConfig tiny_config(Index depth = 0) {
  ModelConfig c;
  c.vocab_size = 23;
  c.hidden_size = 13;
  c.intermediate_size = 17;
  c.moe_intermediate_size = 5;
  c.num_hidden_layers = 3;
  c.num_nextn_predict_layers = depth;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = c.num_key_value_heads = 3;
  c.q_lora_rank = 7;
  c.kv_lora_rank = 9;
  c.qk_nope_head_dim = 5;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 3;
  c.n_routed_experts = 6;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 2;
  c.n_group = 3;
  c.topk_group = 2;
  return c;
}

/// The same without group limits, wide enough that vector kernels have whole and partial vectors.
constexpr ModelConfig wide_config(Index depth = 0) {
  ModelConfig c = tiny_config(depth);
  c.vocab_size = 131;
  c.hidden_size = 67;
  c.intermediate_size = 149;
  c.moe_intermediate_size = 35;
  c.q_lora_rank = 37;
  c.kv_lora_rank = 41;
  c.qk_nope_head_dim = 19;
  c.qk_rope_head_dim = 6;
  c.v_head_dim = 17;
  return c;
}

/// A batch that owns its lists. Labels are the next tokens of each row.
struct Text {
  Index rows, length;
  std::vector<std::int32_t> tokens, labels, cu;
  std::vector<std::uint8_t> mask;

  Text(Index b, Index t, Index vocab, std::uint64_t seed = 5) : rows(b), length(t) {
    const dsv3::Philox philox(seed, 99);
    const auto token = [&](Index i) {
      const auto block = philox(static_cast<std::uint64_t>(i));
      return static_cast<std::int32_t>(block.word[0] % static_cast<std::uint32_t>(vocab));
    };
    for (Index i = 0; i < b; ++i)
      for (Index j = 0; j < t; ++j) {
        tokens.push_back(token(i * (t + 1) + j));
        labels.push_back(token(i * (t + 1) + j + 1));
      }
  }
  /// From the lists themselves.
  Text(Index b, Index t, std::vector<std::int32_t> in, std::vector<std::int32_t> out)
      : rows(b), length(t), tokens(std::move(in)), labels(std::move(out)) {}

  /// Rows [first, first + count) alone.
  Text part(Index first, Index count) const {
    return {count,
            length,
            {tokens.begin() + first * length, tokens.begin() + (first + count) * length},
            {labels.begin() + first * length, labels.begin() + (first + count) * length}};
  }
  /// Tokens [from, to) of the flat list as one row.
  Text slice(Index from, Index to) const {
    return {1,
            to - from,
            {tokens.begin() + from, tokens.begin() + to},
            {labels.begin() + from, labels.begin() + to}};
  }

  Batch batch() const {
    Batch b{{tokens.data(), {rows, length}}, {labels.data(), {rows, length}}, {}, {}};
    if (!mask.empty()) b.mask = {mask.data(), {rows, length}};
    if (!cu.empty()) b.cu_seqlens = {cu.data(), {static_cast<Index>(cu.size())}};
    return b;
  }
};

/// Gives every tensor numbers of its own: matrices in (-scale, scale), norms in (1/2, 3/2), biases
/// in (-0.1, 0.1).
template <class Model>
void randomize(Model& model, double scale) {
  std::uint64_t stream = 1000;
  model.for_each_tensor([&]<class T, int Rank>(const std::string& name, const View<T, Rank>& view) {
    const bool bias = name.ends_with("bias");
    fill(view, ++stream, bias ? 0.1 : (Rank == 1 ? 0.5 : scale));
    if (Rank == 1 && !bias)
      for (Index i = 0; i < view.size(); ++i) view.data[i] += T(1);
  });
  model.refresh_operands();
}

/// Gradients of a model, zero at first.
template <class Model>
struct Gradients {
  using M = typename Model::M;
  using P = typename Model::Precision;
  Memory memory;
  dsv3::ModelTensors<P, M> tensors;
  Index bytes;

  explicit Gradients(const Model& model)
      : memory(Model::template tensor_bytes<M>(model.config())),
        tensors(dsv3::ModelTensors<P, M>::make(model.config(), memory.arena)),
        bytes(memory.arena.used()) {
    clear();
  }
  void clear() { std::memset(memory.buffer.data(), 0, static_cast<std::size_t>(bytes)); }
  /// Calls f(name, gradient).
  void each(auto&& f) const { dsv3::for_each_tensor<P>(f, tensors); }
  std::vector<std::byte> bits() const {
    const auto* first = static_cast<const std::byte*>(memory.buffer.data());
    return {first, first + bytes};
  }
};

/// The experts that a pass chose, for Model::force_experts.
struct Choices {
  Index k;
  std::vector<std::vector<std::int32_t>> lists;

  /// Sees a pass: lists come in the order of the layers.
  auto observer() {
    lists.clear();
    return [this](const char* what, Index, auto view) {
      if constexpr (std::is_same_v<std::remove_cv_t<std::remove_pointer_t<decltype(view.data)>>,
                                   std::int32_t>) {
        if (std::string(what) == "topk_idx" && view.data)
          lists.emplace_back(view.data, view.data + view.size());
      }
    };
  }
  std::vector<View<const std::int32_t, 2>> views() const {
    std::vector<View<const std::int32_t, 2>> result;
    for (const auto& list : lists)
      result.push_back({list.data(), {static_cast<Index>(list.size()) / k, k}});
    return result;
  }
};

/// What a whole step of one batch divides by, with the given weights.
template <class Model>
dsv3::LossScale scale_of(const Model& model, const Batch& batch, double lambda, double alpha) {
  dsv3::BatchLayout layout;
  layout.assign(batch, model.config());
  auto scale = model.mean_of(layout);
  scale.mtp_lambda = lambda;
  scale.balance_alpha = alpha;
  return scale;
}

/// loss + lambda / D sum mtp_loss + alpha balance.
inline double total(const dsv3::Losses& losses, double lambda, double alpha) {
  double sum = losses.loss + alpha * losses.balance;
  for (const double mtp : losses.mtp_loss)
    sum += lambda / static_cast<double>(losses.mtp_loss.size()) * mtp;
  return sum;
}

}  // namespace fixture
