#include <doctest/doctest.h>

#include <dsv3/io/config_json.hpp>

using namespace dsv3;

namespace {

using Json = nlohmann::ordered_json;

// What every release says alike, with what it says beside the model.
Json common() {
  return Json::parse(R"({
    "attention_bias": false, "attention_dropout": 0.0, "aux_loss_alpha": 0.001,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "ep_size": 1, "hidden_act": "silu", "initializer_range": 0.02, "kv_lora_rank": 512,
    "moe_layer_freq": 1, "pretraining_tp": 1, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06, "seq_aux": true, "tie_word_embeddings": false,
    "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": true,
    "v_head_dim": 128})");
}

Json with(Json json, const char* more) {
  json.update(Json::parse(more));
  return json;
}

Json v3() {
  return with(common(), R"({
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 3, "num_attention_heads": 128, "num_key_value_heads": 128,
    "q_lora_rank": 1536, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc",
    "scoring_func": "sigmoid", "norm_topk_prob": true, "routed_scaling_factor": 2.5,
    "rope_theta": 10000, "max_position_embeddings": 163840, "bos_token_id": 0, "eos_token_id": 1,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
      "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
      "quant_method": "fp8", "weight_block_size": [128, 128]}})");
}

Json v2() {
  return with(common(), R"({
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288,
    "moe_intermediate_size": 1536, "num_hidden_layers": 60, "first_k_dense_replace": 1,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 8,
    "topk_group": 3, "topk_method": "group_limited_greedy", "scoring_func": "softmax",
    "norm_topk_prob": false, "routed_scaling_factor": 16.0, "rope_theta": 10000,
    "max_position_embeddings": 163840, "bos_token_id": 100000, "eos_token_id": 100001,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
      "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"}})");
}

Json v2_lite() {
  return with(common(), R"({
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_hidden_layers": 27, "first_k_dense_replace": 1,
    "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": null,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1,
    "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax",
    "norm_topk_prob": false, "routed_scaling_factor": 1.0, "rope_theta": 10000,
    "max_position_embeddings": 163840, "bos_token_id": 100000, "eos_token_id": 100001,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
      "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096, "type": "yarn"}})");
}

Json moonlight() {
  return with(common(), R"({
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 11264,
    "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_nextn_predict_layers": 0,
    "first_k_dense_replace": 1, "num_attention_heads": 16, "num_key_value_heads": 16,
    "q_lora_rank": null, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
    "scoring_func": "sigmoid", "norm_topk_prob": true, "routed_scaling_factor": 2.446,
    "rms_norm_eps": 1e-05, "rope_theta": 50000.0, "rope_scaling": null,
    "max_position_embeddings": 8192, "bos_token_id": 163584, "eos_token_id": 163586})");
}

Json kimi_k2() {
  return with(v3(), R"({
    "model_type": "kimi_k2", "vocab_size": 163840, "num_nextn_predict_layers": 0,
    "first_k_dense_replace": 1, "num_attention_heads": 64, "num_key_value_heads": 64,
    "n_routed_experts": 384, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
    "rope_theta": 50000.0, "max_position_embeddings": 131072, "bos_token_id": 163584,
    "eos_token_id": 163585,
    "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0,
      "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"}})");
}

struct Release {
  Json json;
  ModelConfig preset;
};
const Release releases[] = {{v3(), presets::deepseek_v3},
                            {v2(), presets::deepseek_v2},
                            {v2_lite(), presets::deepseek_v2_lite},
                            {moonlight(), presets::moonlight},
                            {kimi_k2(), presets::kimi_k2}};

}  // namespace

TEST_CASE("Each release's config.json is its preset") {
  for (const Release& release : releases)
    CHECK_MESSAGE(config_from_json(release.json.dump(), "x") == release.preset,
                  release.json["model_type"]);
}

TEST_CASE("Each preset is saved under the release's own values, key by key") {
  for (const auto& [json, preset] : releases) {
    const auto saved = nlohmann::json::parse(config_to_json(preset));  // in any order of keys
    const auto published = nlohmann::json::parse(json.dump());
    for (const auto& item : saved.items()) {
      const auto& key = item.key();
      const auto& value = item.value();
      CAPTURE(key);
      if (published.contains(key))
        CHECK(value == published.at(key));
      else
        CHECK((key == "num_nextn_predict_layers" && value == 0));
    }
  }
}

TEST_CASE("rope_type, and rope_parameters with rope_theta inside, say the same as rope_scaling") {
  for (const auto& [json, preset] : releases) {
    Json renamed = json, newer = json;
    Json parameters = json.at("rope_scaling");
    if (parameters.is_null()) parameters = {{"rope_type", "default"}};
    if (parameters.contains("type")) {
      parameters["rope_type"] = parameters["type"];
      parameters.erase("type");
      renamed["rope_scaling"] = parameters;
    }
    CHECK(config_from_json(renamed.dump(), "x") == preset);
    parameters["rope_theta"] = json.at("rope_theta");
    newer["rope_parameters"] = parameters;
    newer.erase("rope_scaling");
    newer.erase("rope_theta");
    CHECK(config_from_json(newer.dump(), "x") == preset);
  }
}

TEST_CASE("A saved config.json says how the weights beside it are stored") {
  const auto saved = [](DType storage) {
    return Json::parse(config_to_json(presets::deepseek_v3, storage));
  };
  CHECK(saved(DType::f8_e4m3).at("quantization_config") == v3().at("quantization_config"));
  CHECK(saved(DType::f8_e4m3).at("torch_dtype") == "bfloat16");
  CHECK(saved(DType::bf16).at("torch_dtype") == "bfloat16");
  CHECK(saved(DType::f32).at("torch_dtype") == "float32");
  CHECK(saved(DType::f64).at("torch_dtype") == "float64");
  CHECK_FALSE(saved(DType::bf16).contains("quantization_config"));
}
