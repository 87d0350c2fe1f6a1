// ModelConfig: what a checkpoint's config.json says of a model, under the same names; the published
// models; and the rules that a config must keep.
#pragma once

#include <dsv3/core/view.hpp>
#include <stdexcept>
#include <string>

namespace dsv3 {

/// kimi_k2 is deepseek_v3 under another name.
enum class ModelType { deepseek_v2, deepseek_v3, kimi_k2 };
enum class ScoringFunc { sigmoid, softmax };
enum class TopkMethod {
  noaux_tc,              ///< a bias chooses experts and never weighs them; groups by their best two
  group_limited_greedy,  ///< no bias; groups by their best expert
  greedy                 ///< the largest scores, without groups
};
/// Which hidden state the next MTP module receives.
enum class MtpHidden { post_norm, pre_norm };

/// YaRN: how rotary frequencies were stretched to a longer context (`rope_scaling`, type yarn).
struct RopeScaling {
  bool enabled = false;  // false where config.json has null
  double factor = 40;
  Index original_max_position_embeddings = 4096;
  double beta_fast = 32, beta_slow = 1;
  double mscale = 1, mscale_all_dim = 0;
  bool mscale_given = false;  // neither key present: cos and sin are multiplied instead (spec 3.3)

  constexpr bool operator==(const RopeScaling&) const = default;
};

/// The sizes and variants of a model, under their config.json names. Step options (learning rate,
/// loss weights) are not here.
///
/// Source   DeepSeek-V3 config.json; spec 1.1. `q_lora_rank` 0 stands for null.
struct ModelConfig {
  ModelType model_type = ModelType::deepseek_v3;
  Index vocab_size = 129280;
  Index hidden_size = 7168;
  Index intermediate_size = 18432;
  Index moe_intermediate_size = 2048;
  Index num_hidden_layers = 61;
  Index num_nextn_predict_layers = 0;
  Index first_k_dense_replace = 3;
  Index moe_layer_freq = 1;
  Index num_attention_heads = 128;
  Index num_key_value_heads = 128;
  Index q_lora_rank = 1536;
  Index kv_lora_rank = 512;
  Index qk_nope_head_dim = 128;
  Index qk_rope_head_dim = 64;
  Index v_head_dim = 128;
  Index n_routed_experts = 256;
  Index n_shared_experts = 1;
  Index num_experts_per_tok = 8;
  Index n_group = 8;
  Index topk_group = 4;
  TopkMethod topk_method = TopkMethod::noaux_tc;
  ScoringFunc scoring_func = ScoringFunc::sigmoid;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 2.5;
  bool seq_aux = true;  ///< the balance loss averages over each sequence; false: the whole batch
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  RopeScaling rope_scaling = {};
  Index max_position_embeddings = 4096;
  Index bos_token_id = 0;
  Index eos_token_id = 1;

  // Not in the published config.json; read where present, written where not at these values.
  MtpHidden mtp_hidden = MtpHidden::post_norm;
  double latent_norm_eps = 1e-6;  ///< of q_a_layernorm and kv_a_layernorm (spec trap 2)
  Index group_score_top = 0;      ///< scores added up to rank a group; 0: 2 with a bias, else 1

  constexpr bool operator==(const ModelConfig&) const = default;

  constexpr Index qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  constexpr bool has_bias() const { return topk_method == TopkMethod::noaux_tc; }
  constexpr Index groups() const { return topk_method == TopkMethod::greedy ? 1 : n_group; }
  constexpr Index ranking_scores() const {
    return group_score_top > 0 ? group_score_top : (has_bias() ? 2 : 1);
  }
  /// True where block `layer` has experts. MTP's blocks, numbered from num_hidden_layers, do.
  constexpr bool is_moe(Index layer) const {
    return layer >= num_hidden_layers ||
           (layer >= first_k_dense_replace && layer % moe_layer_freq == 0);
  }
  constexpr Index moe_layers() const {
    return moe_layers_before(num_hidden_layers + num_nextn_predict_layers);
  }
  /// Blocks with experts among the first `layer`: the row of a block's gate bias.
  constexpr Index moe_layers_before(Index layer) const {
    Index n = 0;
    for (Index l = 0; l < layer; ++l) n += is_moe(l);
    return n;
  }
  constexpr bool has_moe() const { return moe_layers() > 0; }
};

namespace detail {

// Throws "ModelConfig: first_word (left) rest of the sentence (right)" unless the rule holds; the
// right value is left out where the sentence already states it. In a constant expression the
// compiler prints the sentence instead.
constexpr void require(bool holds, const char* sentence, Index left, const Index* right = nullptr) {
  if (holds) return;
  const std::string text = sentence;
  const auto space = text.find(' ');
  throw std::invalid_argument("ModelConfig: " + text.substr(0, space) + " (" +
                              std::to_string(left) + ")" + text.substr(space) +
                              (right ? " (" + std::to_string(*right) + ")" : std::string()));
}

constexpr void require(bool holds, const char* sentence, Index left, Index right) {
  require(holds, sentence, left, &right);
}

// For real values, which are printed to six decimals.
constexpr void require_real(bool holds, const char* sentence, double value) {
  if (holds) return;
  const std::string text = sentence;
  const auto space = text.find(' ');
  throw std::invalid_argument("ModelConfig: " + text.substr(0, space) + " (" +
                              std::to_string(value) + ")" + text.substr(space));
}

// All sizes together: an upper bound of the parameters, in double, so that nothing that is later
// counted in integers or bytes overflows.
constexpr void require_countable(const ModelConfig& c) {
  const auto d = [](Index n) { return static_cast<double>(n < 0 ? 0 : n); };
  const double heads = d(c.num_attention_heads), hidden = d(c.hidden_size);
  const double widths = d(c.q_lora_rank) + d(c.kv_lora_rank) + hidden;
  const double attention = 2 * widths * (hidden + heads * d(c.qk_head_dim() + c.v_head_dim));
  const double experts = d(c.n_routed_experts) + d(c.n_shared_experts);
  const double layer = attention + 3 * hidden * d(c.intermediate_size) +
                       experts * hidden * (1 + 3 * d(c.moe_intermediate_size)) +
                       2 * hidden * hidden;
  const double layers = d(c.num_hidden_layers + c.num_nextn_predict_layers);
  const double bound = 2 * d(c.vocab_size) * hidden + layers * layer;
  require(bound < 0x1p53, "num_hidden_layers makes a model of more than 2^53 parameters",
          c.num_hidden_layers);
}

}  // namespace detail

/// Throws unless the config keeps every rule of spec 1.1. In a constant expression a broken rule
/// does not compile, and the compiler's message holds its sentence.
/// Errors   std::invalid_argument naming the first broken rule and the values.
constexpr void validate(const ModelConfig& c) {
  using detail::require;
  using detail::require_real;
  constexpr Index most = Index{1} << 24;
  require(c.vocab_size >= 2, "vocab_size must be at least 2", c.vocab_size);
  require(c.vocab_size <= most, "vocab_size must be at most 16777216", c.vocab_size);
  require(c.hidden_size >= 1, "hidden_size must be at least 1", c.hidden_size);
  require(c.hidden_size <= most, "hidden_size must be at most 16777216", c.hidden_size);
  require(c.num_hidden_layers >= 1, "num_hidden_layers must be at least 1", c.num_hidden_layers);
  require(c.num_hidden_layers <= 65536, "num_hidden_layers must be at most 65536",
          c.num_hidden_layers);
  require(c.num_nextn_predict_layers >= 0, "num_nextn_predict_layers must be at least 0",
          c.num_nextn_predict_layers);
  require(c.num_nextn_predict_layers <= 64, "num_nextn_predict_layers must be at most 64",
          c.num_nextn_predict_layers);
  require(c.first_k_dense_replace >= 0, "first_k_dense_replace must be at least 0",
          c.first_k_dense_replace);
  require(c.first_k_dense_replace <= c.num_hidden_layers,
          "first_k_dense_replace must be at most num_hidden_layers", c.first_k_dense_replace,
          c.num_hidden_layers);
  require(c.moe_layer_freq >= 1, "moe_layer_freq must be at least 1", c.moe_layer_freq);
  require(c.moe_layer_freq <= 65536, "moe_layer_freq must be at most 65536", c.moe_layer_freq);
  require(c.num_attention_heads >= 1, "num_attention_heads must be at least 1",
          c.num_attention_heads);
  require(c.num_attention_heads <= 65536, "num_attention_heads must be at most 65536",
          c.num_attention_heads);
  require(c.num_key_value_heads == c.num_attention_heads,
          "num_key_value_heads must equal num_attention_heads", c.num_key_value_heads,
          c.num_attention_heads);
  require(c.q_lora_rank >= 0, "q_lora_rank must be at least 0", c.q_lora_rank);
  require(c.q_lora_rank <= most, "q_lora_rank must be at most 16777216", c.q_lora_rank);
  require(c.kv_lora_rank >= 1, "kv_lora_rank must be at least 1", c.kv_lora_rank);
  require(c.kv_lora_rank <= most, "kv_lora_rank must be at most 16777216", c.kv_lora_rank);
  require(c.qk_nope_head_dim >= 1, "qk_nope_head_dim must be at least 1", c.qk_nope_head_dim);
  require(c.qk_nope_head_dim <= 65536, "qk_nope_head_dim must be at most 65536",
          c.qk_nope_head_dim);
  require(c.qk_rope_head_dim >= 2, "qk_rope_head_dim must be at least 2", c.qk_rope_head_dim);
  require(c.qk_rope_head_dim <= 65536, "qk_rope_head_dim must be at most 65536",
          c.qk_rope_head_dim);
  require(c.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim must be even: it rotates pairs",
          c.qk_rope_head_dim);
  require(c.v_head_dim >= 1, "v_head_dim must be at least 1", c.v_head_dim);
  require(c.v_head_dim <= 65536, "v_head_dim must be at most 65536", c.v_head_dim);
  require_real(c.rms_norm_eps >= 0 && c.rms_norm_eps < 1, "rms_norm_eps must be in [0, 1)",
               c.rms_norm_eps);
  require_real(c.latent_norm_eps >= 0 && c.latent_norm_eps < 1, "latent_norm_eps must be in [0, 1)",
               c.latent_norm_eps);
  require_real(c.rope_theta > 1 && c.rope_theta < 1e15, "rope_theta must be above 1 and finite",
               c.rope_theta);
  constexpr Index most_positions = (Index{1} << 31) - 1;  // positions are 32-bit integers
  require(c.max_position_embeddings >= 1, "max_position_embeddings must be at least 1",
          c.max_position_embeddings);
  require(c.max_position_embeddings <= most_positions,
          "max_position_embeddings must be at most 2147483647", c.max_position_embeddings);
  if (c.rope_scaling.enabled) {
    const RopeScaling& r = c.rope_scaling;
    require_real(r.factor >= 1 && r.factor < 1e6, "rope_scaling.factor must be at least 1",
                 r.factor);
    require(r.original_max_position_embeddings >= 1,
            "rope_scaling.original_max_position_embeddings must be at least 1",
            r.original_max_position_embeddings);
    require(r.original_max_position_embeddings <= most_positions,
            "rope_scaling.original_max_position_embeddings must be at most 2147483647",
            r.original_max_position_embeddings);
    require_real(r.beta_slow > 0 && r.beta_slow < 1e9, "rope_scaling.beta_slow must be positive",
                 r.beta_slow);
    require_real(r.beta_fast >= r.beta_slow && r.beta_fast < 1e9,
                 "rope_scaling.beta_fast must be at least beta_slow", r.beta_fast);
    require_real(r.mscale >= 0 && r.mscale < 1e6, "rope_scaling.mscale must be at least 0",
                 r.mscale);
    require_real(r.mscale_all_dim >= 0 && r.mscale_all_dim < 1e6,
                 "rope_scaling.mscale_all_dim must be at least 0", r.mscale_all_dim);
  }
  bool dense = false;
  for (Index l = 0; l < c.num_hidden_layers; ++l) dense = dense || !c.is_moe(l);
  if (dense) {
    require(c.intermediate_size >= 1, "intermediate_size must be at least 1", c.intermediate_size);
    require(c.intermediate_size <= most, "intermediate_size must be at most 16777216",
            c.intermediate_size);
  }
  detail::require_countable(c);
  if (!c.has_moe()) return;
  require(c.moe_intermediate_size >= 1, "moe_intermediate_size must be at least 1",
          c.moe_intermediate_size);
  require(c.moe_intermediate_size <= most, "moe_intermediate_size must be at most 16777216",
          c.moe_intermediate_size);
  require(c.n_routed_experts >= 1, "n_routed_experts must be at least 1", c.n_routed_experts);
  require(c.n_routed_experts <= 65536, "n_routed_experts must be at most 65536",
          c.n_routed_experts);
  require(c.n_shared_experts >= 0, "n_shared_experts must be at least 0", c.n_shared_experts);
  require(c.n_shared_experts <= 65536, "n_shared_experts must be at most 65536",
          c.n_shared_experts);
  require(c.num_experts_per_tok >= 1, "num_experts_per_tok must be at least 1",
          c.num_experts_per_tok);
  require(c.num_experts_per_tok <= c.n_routed_experts,
          "num_experts_per_tok must be at most n_routed_experts", c.num_experts_per_tok,
          c.n_routed_experts);
  require_real(c.routed_scaling_factor > 0 && c.routed_scaling_factor < 1e9,
               "routed_scaling_factor must be positive and finite", c.routed_scaling_factor);
  require(c.group_score_top >= 0, "group_score_top must be at least 0", c.group_score_top);
  if (c.topk_method == TopkMethod::greedy) return;
  require(c.n_group >= 1, "n_group must be at least 1", c.n_group);
  require(c.n_routed_experts % c.n_group == 0, "n_group must divide n_routed_experts", c.n_group,
          c.n_routed_experts);
  require(c.topk_group >= 1, "topk_group must be at least 1", c.topk_group);
  require(c.topk_group <= c.n_group, "topk_group must be at most n_group", c.topk_group, c.n_group);
  if (c.n_group == 1) return;
  const Index in_group = c.n_routed_experts / c.n_group;
  require(c.num_experts_per_tok <= c.topk_group * in_group,
          "num_experts_per_tok must be at most the experts of topk_group groups",
          c.num_experts_per_tok, c.topk_group * in_group);
  require(in_group >= c.ranking_scores(),
          "group_score_top must be at most the experts of one group", c.ranking_scores(), in_group);
}

/// Stands for "sizes known at run time only" as the last argument of Model.
inline constexpr ModelConfig runtime_config = {};

/// The published models, as their config.json has them.
namespace presets {

inline constexpr RopeScaling deepseek_yarn = {.enabled = true,
                                              .factor = 40,
                                              .original_max_position_embeddings = 4096,
                                              .beta_fast = 32,
                                              .beta_slow = 1,
                                              .mscale = 1,
                                              .mscale_all_dim = 1,
                                              .mscale_given = true};

inline constexpr ModelConfig deepseek_v3 = [] {
  ModelConfig c;
  c.num_nextn_predict_layers = 1;
  c.rope_scaling = deepseek_yarn;
  c.max_position_embeddings = 163840;
  return c;
}();

inline constexpr ModelConfig deepseek_v2 = [] {
  ModelConfig c = deepseek_v3;
  c.model_type = ModelType::deepseek_v2;
  c.vocab_size = 102400;
  c.hidden_size = 5120;
  c.intermediate_size = 12288;
  c.moe_intermediate_size = 1536;
  c.num_hidden_layers = 60;
  c.num_nextn_predict_layers = 0;
  c.first_k_dense_replace = 1;
  c.n_routed_experts = 160;
  c.n_shared_experts = 2;
  c.num_experts_per_tok = 6;
  c.topk_group = 3;
  c.topk_method = TopkMethod::group_limited_greedy;
  c.scoring_func = ScoringFunc::softmax;
  c.norm_topk_prob = false;
  c.routed_scaling_factor = 16;
  c.bos_token_id = 100000;
  c.eos_token_id = 100001;
  return c;
}();

inline constexpr ModelConfig deepseek_v2_lite = [] {
  ModelConfig c = deepseek_v2;
  c.hidden_size = 2048;
  c.intermediate_size = 10944;
  c.moe_intermediate_size = 1408;
  c.num_hidden_layers = 27;
  c.num_attention_heads = c.num_key_value_heads = 16;
  c.q_lora_rank = 0;
  c.n_routed_experts = 64;
  c.n_group = c.topk_group = 1;
  c.topk_method = TopkMethod::greedy;
  c.routed_scaling_factor = 1;
  c.rope_scaling.mscale = c.rope_scaling.mscale_all_dim = 0.707;
  return c;
}();

inline constexpr ModelConfig moonlight = [] {
  ModelConfig c = deepseek_v2_lite;
  c.model_type = ModelType::deepseek_v3;
  c.vocab_size = 163840;
  c.intermediate_size = 11264;
  c.topk_method = TopkMethod::noaux_tc;
  c.scoring_func = ScoringFunc::sigmoid;
  c.norm_topk_prob = true;
  c.routed_scaling_factor = 2.446;
  c.rms_norm_eps = 1e-5;
  c.rope_theta = 50000;
  c.rope_scaling = {};
  c.max_position_embeddings = 8192;
  c.bos_token_id = 163584;
  c.eos_token_id = 163586;
  return c;
}();

inline constexpr ModelConfig kimi_k2 = [] {
  ModelConfig c = deepseek_v3;
  c.model_type = ModelType::kimi_k2;
  c.vocab_size = 163840;
  c.num_nextn_predict_layers = 0;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = c.num_key_value_heads = 64;
  c.n_routed_experts = 384;
  c.n_group = c.topk_group = 1;
  c.routed_scaling_factor = 2.827;
  c.rope_theta = 50000;
  c.rope_scaling.factor = 32;
  c.rope_scaling.beta_fast = c.rope_scaling.beta_slow = 1;
  c.max_position_embeddings = 131072;
  c.bos_token_id = 163584;
  c.eos_token_id = 163585;
  return c;
}();

}  // namespace presets
}  // namespace dsv3
