// ModelConfig from and to the config.json of published checkpoints.
#pragma once

#include <dsv3/config.hpp>
#include <dsv3/io/atomic_file.hpp>
#include <dsv3/io/config_reader.hpp>
#include <dsv3/io/dtype.hpp>
#include <dsv3/io/mapped_file.hpp>

namespace dsv3 {

namespace detail {

// Of rope_scaling or rope_parameters.
inline RopeScaling rope_scaling_from(const ConfigReader& json) {
  const std::string type = json.string("type", ""), rope_type = json.string("rope_type", "");
  if (!type.empty() && !rope_type.empty() && type != rope_type)
    json.fail(json.name("type") + " (" + in_quotes(type) + ") must equal " +
              json.name("rope_type") + " (" + in_quotes(rope_type) + ")");
  const bool yarn = json.choice<bool>(type.empty() ? "rope_type" : "type",
                                      {{"yarn", true}, {"default", false}}, "default");
  if (!yarn) return {};
  RopeScaling r;
  r.enabled = true;
  r.factor = json.real("factor");
  r.original_max_position_embeddings = json.integer("original_max_position_embeddings");
  r.beta_fast = json.real("beta_fast", 32);
  r.beta_slow = json.real("beta_slow", 1);
  r.mscale_given = json.find("mscale") || json.find("mscale_all_dim");
  r.mscale = json.real("mscale", 1);
  r.mscale_all_dim = json.real("mscale_all_dim", 0);
  json.refuse(json.find("attention_factor") != nullptr, "attention_factor", "given");
  json.refuse(!json.boolean("truncate", true), "truncate", "false");
  return r;
}

// Everything about rotation: rope_theta and rope_scaling, or rope_parameters, or both if they
// agree.
inline void read_rope(const ConfigReader& json, ModelConfig& c) {
  const auto scaling = json.object("rope_scaling"), parameters = json.object("rope_parameters");
  c.rope_theta = json.real("rope_theta", 10000);
  if (scaling) c.rope_scaling = rope_scaling_from(*scaling);
  if (!parameters) return;
  const RopeScaling other = rope_scaling_from(*parameters);
  if (scaling && other != c.rope_scaling)
    json.fail("rope_scaling and rope_parameters must agree where both are given");
  c.rope_scaling = other;
  const double theta = parameters->real("rope_theta", c.rope_theta);
  if (json.find("rope_theta") && theta != c.rope_theta)
    json.fail("rope_theta (" + Json(c.rope_theta).dump() +
              ") must equal rope_parameters.rope_theta (" + Json(theta).dump() + ")");
  c.rope_theta = theta;
}

inline void read_experts(const ConfigReader& json, ModelConfig& c, bool v3) {
  c.topk_method =
      json.choice<TopkMethod>("topk_method",
                              {{"noaux_tc", TopkMethod::noaux_tc},
                               {"group_limited_greedy", TopkMethod::group_limited_greedy},
                               {"greedy", TopkMethod::greedy}},
                              v3 ? "noaux_tc" : "greedy");
  c.scoring_func = json.choice<ScoringFunc>(
      "scoring_func", {{"sigmoid", ScoringFunc::sigmoid}, {"softmax", ScoringFunc::softmax}},
      v3 ? "sigmoid" : "softmax");
  c.norm_topk_prob = json.boolean("norm_topk_prob", v3);
  c.routed_scaling_factor = json.real("routed_scaling_factor", v3 ? 2.5 : 1.0);
  c.seq_aux = json.boolean("seq_aux", true);
  c.group_score_top = json.integer("group_score_top", 0);
  // Sizes are needed where a block has experts. (Absurd numbers of layers are left to validate().)
  const bool countable = c.num_hidden_layers >= 1 && c.num_hidden_layers <= 65536 &&
                         c.num_nextn_predict_layers >= 0 && c.num_nextn_predict_layers <= 64 &&
                         c.moe_layer_freq >= 1;
  const bool moe = countable && c.has_moe();
  const auto size = [&](const char* key) { return moe ? json.integer(key) : json.integer(key, 0); };
  c.moe_intermediate_size = size("moe_intermediate_size");
  c.n_routed_experts = size("n_routed_experts");
  c.num_experts_per_tok = size("num_experts_per_tok");
  c.n_shared_experts = json.find("n_shared_experts") || !json.has("n_shared_experts")
                           ? size("n_shared_experts")
                           : 0;  // null: none
  const bool grouped = moe && c.topk_method != TopkMethod::greedy;
  c.n_group = grouped ? json.integer("n_group") : json.integer("n_group", 1);
  c.topk_group = grouped ? json.integer("topk_group") : json.integer("topk_group", 1);
}

// A token id, -1 where it is null.
inline Index read_token(const ConfigReader& json, const char* key, Index otherwise) {
  const Index id = json.integer(key, json.has(key) ? -1 : otherwise);
  constexpr Index most = std::numeric_limits<std::int32_t>::max();
  if (id < -1 || id > most)
    json.fail(json.name(key) + " (" + std::to_string(id) + ") must be from -1 to " +
              std::to_string(most));
  return id;
}

// Of FP8 checkpoints: there is one way to store them.
inline void check_quantization(const ConfigReader& json) {
  json.choice<bool>("quant_method", {{"fp8", true}}, "");
  json.choice<bool>("fmt", {{"e4m3", true}}, "e4m3");
  json.choice<bool>("activation_scheme", {{"dynamic", true}}, "dynamic");
  const Json* block = json.find("weight_block_size");
  if (block && *block != Json{128, 128})
    json.fail(json.name("weight_block_size") + " (" + in_quotes(block->dump()) +
              ") must equal [128,128]");
}

inline void refuse_unsupported(const ConfigReader& json, const ModelConfig& c) {
  const std::string act = json.string("hidden_act", "silu");
  json.refuse(act != "silu", "hidden_act", in_quotes(act));
  for (const char* key : {"attention_bias", "mlp_bias", "tie_word_embeddings"})
    json.refuse(json.boolean(key, false), key, "true");
  json.refuse(!json.boolean("rope_interleave", true), "rope_interleave", "false");
  const double dropout = json.real("attention_dropout", 0);
  json.refuse(dropout != 0, "attention_dropout", Json(dropout).dump());
  const Index qk = json.integer("qk_head_dim", c.qk_head_dim());
  if (qk != c.qk_head_dim())
    json.fail("qk_head_dim (" + std::to_string(qk) +
              ") must equal qk_nope_head_dim + qk_rope_head_dim (" +
              std::to_string(c.qk_head_dim()) + ")");
  if (const auto quantization = json.object("quantization_config"))
    check_quantization(*quantization);
}

}  // namespace detail

/// The configuration that the text of a config.json describes. `where` (a path) begins every
/// message. Keys that decide a tensor's shape must be there; others default to what the model_type
/// (deepseek_v2, deepseek_v3, kimi_k2) means by their absence. Keys that do not change the forward
/// pass are ignored. bos_token_id and eos_token_id are -1 where null.
///
/// Errors   std::invalid_argument "where: ...": not JSON, a duplicate or missing key, a value of
///          the wrong kind (named with what was expected and found), something unsupported, or a
///          rule of validate(ModelConfig).
/// Source   spec 1.1; transformers, configuration_deepseek_v2.py and _v3.py.
inline ModelConfig config_from_json(std::string_view text, const std::string& where) {
  const detail::Json root = detail::parse_json(text, where);
  if (!root.is_object())
    throw std::invalid_argument(where + ": must hold an object, found " + detail::kind_of(root));
  const detail::ConfigReader json(root, where);
  ModelConfig c;
  if (!json.find("model_type")) json.fail("missing key 'model_type'");
  c.model_type = json.choice<ModelType>("model_type",
                                        {{"deepseek_v2", ModelType::deepseek_v2},
                                         {"deepseek_v3", ModelType::deepseek_v3},
                                         {"kimi_k2", ModelType::kimi_k2}},
                                        "");
  const bool v3 = c.model_type != ModelType::deepseek_v2;
  c.vocab_size = json.integer("vocab_size");
  c.hidden_size = json.integer("hidden_size");
  c.num_hidden_layers = json.integer("num_hidden_layers");
  c.num_nextn_predict_layers = json.integer("num_nextn_predict_layers", 0);
  c.first_k_dense_replace = json.integer("first_k_dense_replace");
  c.moe_layer_freq = json.integer("moe_layer_freq", 1);
  c.intermediate_size = c.first_k_dense_replace > 0 || c.moe_layer_freq != 1
                            ? json.integer("intermediate_size")
                            : json.integer("intermediate_size", 0);
  c.num_attention_heads = json.integer("num_attention_heads");
  c.num_key_value_heads = json.integer("num_key_value_heads", c.num_attention_heads);
  if (!json.has("q_lora_rank")) json.fail("missing key 'q_lora_rank' (null: no query latent)");
  c.q_lora_rank = json.integer("q_lora_rank", 0);
  c.kv_lora_rank = json.integer("kv_lora_rank");
  c.qk_nope_head_dim = json.integer("qk_nope_head_dim");
  c.qk_rope_head_dim = json.integer("qk_rope_head_dim");
  c.v_head_dim = json.integer("v_head_dim");
  c.rms_norm_eps = json.real("rms_norm_eps", 1e-6);
  c.latent_norm_eps = json.real("latent_norm_eps", 1e-6);
  c.max_position_embeddings = json.integer("max_position_embeddings", v3 ? 4096 : 2048);
  c.bos_token_id = detail::read_token(json, "bos_token_id", 0);
  c.eos_token_id = detail::read_token(json, "eos_token_id", 1);
  c.mtp_hidden = json.choice<MtpHidden>(
      "mtp_hidden", {{"post_norm", MtpHidden::post_norm}, {"pre_norm", MtpHidden::pre_norm}},
      "post_norm");
  detail::read_rope(json, c);
  detail::read_experts(json, c, v3);
  try {
    validate(c);
  } catch (const std::invalid_argument& error) {
    json.fail(error.what());
  }
  detail::refuse_unsupported(json, c);
  return c;
}

/// The configuration in a file. Errors: as config_from_json, and what MappedFile throws.
inline ModelConfig load_config(const std::string& path) {
  const MappedFile file(path);
  if (file.size() > std::size_t{1} << 24)
    throw std::invalid_argument("load_config: " + detail::in_quotes(path) + ": bytes (" +
                                std::to_string(file.size()) + ") must be at most 16777216");
  return config_from_json(
      {static_cast<const char*>(static_cast<const void*>(file.data())), file.size()},
      "load_config: " + detail::in_quotes(path));
}

namespace detail {

// Says in a config.json how the weights beside it are stored: FP8 ones beside BF16 ones, or all of
// one type. The keys are those of transformers before and after its version 5.
inline void set_storage(nlohmann::ordered_json& json, DType storage) {
  const char* type = json.contains("dtype") ? "dtype" : "torch_dtype";
  json[type] = storage == DType::f64 ? "float64" : storage == DType::f32 ? "float32" : "bfloat16";
  if (storage == DType::f8_e4m3)
    json["quantization_config"] = {{"activation_scheme", "dynamic"},
                                   {"fmt", "e4m3"},
                                   {"quant_method", "fp8"},
                                   {"weight_block_size", {128, 128}}};
  else
    json.erase("quantization_config");
}

}  // namespace detail

/// The text of a config.json that config_from_json reads as this configuration, and transformers
/// as the same model. Where `storage` is given it says how the weights are stored: F8_E4M3 (with
/// quantization_config), BF16, F32 or F64.
inline std::string config_to_json(const ModelConfig& c, std::optional<DType> storage = {}) {
  const bool v3 = c.model_type != ModelType::deepseek_v2;
  nlohmann::ordered_json json;
  json["architectures"] = {v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"};
  json["model_type"] = c.model_type == ModelType::kimi_k2 ? "kimi_k2"
                       : v3                               ? "deepseek_v3"
                                                          : "deepseek_v2";
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.hidden_size;
  json["intermediate_size"] = c.intermediate_size;
  json["moe_intermediate_size"] = c.moe_intermediate_size;
  json["num_hidden_layers"] = c.num_hidden_layers;
  json["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
  json["first_k_dense_replace"] = c.first_k_dense_replace;
  json["moe_layer_freq"] = c.moe_layer_freq;
  json["num_attention_heads"] = c.num_attention_heads;
  json["num_key_value_heads"] = c.num_key_value_heads;
  json["q_lora_rank"] = nullptr;
  if (c.q_lora_rank != 0) json["q_lora_rank"] = c.q_lora_rank;
  json["kv_lora_rank"] = c.kv_lora_rank;
  json["qk_nope_head_dim"] = c.qk_nope_head_dim;
  json["qk_rope_head_dim"] = c.qk_rope_head_dim;
  json["v_head_dim"] = c.v_head_dim;
  json["n_routed_experts"] = c.n_routed_experts;
  json["n_shared_experts"] = c.n_shared_experts;
  json["num_experts_per_tok"] = c.num_experts_per_tok;
  json["n_group"] = c.n_group;
  json["topk_group"] = c.topk_group;
  json["topk_method"] = c.topk_method == TopkMethod::noaux_tc ? "noaux_tc"
                        : c.topk_method == TopkMethod::greedy ? "greedy"
                                                              : "group_limited_greedy";
  json["scoring_func"] = c.scoring_func == ScoringFunc::sigmoid ? "sigmoid" : "softmax";
  json["norm_topk_prob"] = c.norm_topk_prob;
  json["routed_scaling_factor"] = c.routed_scaling_factor;
  json["seq_aux"] = c.seq_aux;
  json["hidden_act"] = "silu";
  json["rms_norm_eps"] = c.rms_norm_eps;
  json["rope_theta"] = c.rope_theta;
  json["rope_scaling"] = nullptr;
  if (const RopeScaling& r = c.rope_scaling; r.enabled) {
    auto& scaling = json["rope_scaling"];
    scaling = {{"type", "yarn"},
               {"factor", r.factor},
               {"original_max_position_embeddings", r.original_max_position_embeddings},
               {"beta_fast", r.beta_fast},
               {"beta_slow", r.beta_slow}};
    if (r.mscale_given) {
      scaling["mscale"] = r.mscale;
      scaling["mscale_all_dim"] = r.mscale_all_dim;
    }
  }
  json["max_position_embeddings"] = c.max_position_embeddings;
  const auto token = [&](const char* key, Index id) {
    json[key] = nullptr;
    if (id >= 0) json[key] = id;
  };
  token("bos_token_id", c.bos_token_id);
  token("eos_token_id", c.eos_token_id);
  json["attention_bias"] = false;
  json["attention_dropout"] = 0.0;
  json["tie_word_embeddings"] = false;
  const ModelConfig otherwise;
  if (c.mtp_hidden != otherwise.mtp_hidden) json["mtp_hidden"] = "pre_norm";
  if (c.latent_norm_eps != otherwise.latent_norm_eps) json["latent_norm_eps"] = c.latent_norm_eps;
  if (c.group_score_top != otherwise.group_score_top) json["group_score_top"] = c.group_score_top;
  if (storage) detail::set_storage(json, *storage);
  return json.dump(2) + "\n";
}

/// Writes config_to_json(config, storage) through AtomicFile.
inline void save_config(const std::string& path, const ModelConfig& config,
                        std::optional<DType> storage = {}) {
  AtomicFile file(path);
  file.write(config_to_json(config, storage));
  file.commit();
}

}  // namespace dsv3
