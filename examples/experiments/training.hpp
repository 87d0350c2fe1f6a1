// One training run of an experiment, and what it leaves. Compiled once, in training.cpp.
#pragma once

#include <dsv3/config.hpp>
#include <functional>

#include "copies.hpp"
#include "domains.hpp"

namespace experiment {

/// The model that experiments change: bytes as tokens, four layers, sixteen experts in four groups.
inline constexpr dsv3::ModelConfig base = [] {
  dsv3::ModelConfig c;
  c.vocab_size = dsv3::ByteVocabulary::size;
  c.hidden_size = 128;
  c.num_hidden_layers = 4;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = c.num_key_value_heads = 4;
  c.q_lora_rank = 48;
  c.kv_lora_rank = 32;
  c.qk_nope_head_dim = 24;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 24;
  c.intermediate_size = 320;
  c.moe_intermediate_size = 48;
  c.n_routed_experts = 16;
  c.num_experts_per_tok = 4;
  c.n_shared_experts = 1;
  c.n_group = 4;
  c.topk_group = 2;
  return c;
}();

/// Everything that a run depends on, beside the text.
struct Recipe {
  dsv3::ModelConfig config = base;
  double bias_gamma = 1e-2;     ///< V3: 1e-3 over a million times as many steps
  double balance_alpha = 1e-4;  ///< of the balance loss, sequence-wise where config.seq_aux
  Index batch = 16, length = 128;
  Index pieces = 1;  ///< each row is one of so many parts of a longer one; held-out rows too
  double peak_lr = 3e-3;
  bool constant_lr = false;  ///< no warm-up and no decay, as V3 extends its context
};

/// What held-out text says of a model.
struct Evaluation {
  Index step = 0;
  double loss = 0;                       ///< nats a token, mean over domains
  double max_violation = 0;              ///< MaxVio, over all domains, mean over layers
  std::vector<double> domain_loss;       ///< [domains]
  std::vector<std::vector<Index>> load;  ///< [domains][MoE layers * E] tokens of each expert
  Copies copies;  ///< over all MoE layers, each group of experts a node; after the last step
};

struct Run {
  std::vector<double> loss, max_violation;  ///< of each training step
  std::vector<Evaluation> evaluations;      ///< the last one after the last step
  double seconds = 0;

  const Evaluation& last() const { return evaluations.back(); }
};

/// A trained model and its text: trained.hpp says what it is made of.
struct Trained;

/// Trains a new model, or one that starts with the weights of `from`, and evaluates it `looks`
/// times, evenly spaced. Bits depend on recipe, text, steps and seed, not on threads. `after` sees
/// the trained model.
Run train(const Recipe& recipe, const std::vector<DomainText>& texts, Index steps, Index looks,
          std::uint64_t seed, int threads, const std::function<void(Index step)>& progress,
          const std::function<void(Trained&)>& after = {}, const Trained* from = nullptr);

}  // namespace experiment
