#include <doctest/doctest.h>

#include <dsv3/io/config_json.hpp>

#include "folder.hpp"

using namespace dsv3;

namespace {

const std::string golden = DSV3_TEST_DATA "/golden/";

ModelConfig golden_config(const std::string& name) {
  return load_config(golden + name + "/config.json");
}

// The text of a config with one key changed, or taken out where the value is discarded.
std::string changed(const ModelConfig& config, const char* key,
                    const nlohmann::ordered_json& value) {
  auto json = nlohmann::ordered_json::parse(config_to_json(config));
  if (value.is_discarded())
    json.erase(key);
  else
    json[key] = value;
  return json.dump();
}
const nlohmann::ordered_json none = nlohmann::ordered_json::value_t::discarded;

}  // namespace

TEST_CASE("Every golden config.json loads, and comes back from its own text") {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden)) {
    const std::string path = entry.path().string() + "/config.json";
    if (!std::filesystem::exists(path)) continue;
    ++files;
    const ModelConfig config = load_config(path);
    const std::string text = config_to_json(config);
    CHECK(config_from_json(text, "again") == config);
    CHECK(config_to_json(config_from_json(text, "again")) == text);
  }
  CHECK(files >= 11);
}

TEST_CASE("The published models come back from their own text") {
  for (const ModelConfig& config :
       {presets::deepseek_v3, presets::deepseek_v2, presets::deepseek_v2_lite, presets::moonlight,
        presets::kimi_k2})
    CHECK(config_from_json(config_to_json(config), "preset") == config);
}

TEST_CASE("config_from_json takes every field from its key") {
  const ModelConfig v3 = golden_config("v3");
  CHECK(v3.model_type == ModelType::deepseek_v3);
  CHECK(v3.vocab_size == 61);
  CHECK(v3.hidden_size == 32);
  CHECK(v3.intermediate_size == 40);
  CHECK(v3.moe_intermediate_size == 12);
  CHECK(v3.num_hidden_layers == 3);
  CHECK(v3.num_nextn_predict_layers == 1);
  CHECK(v3.first_k_dense_replace == 1);
  CHECK(v3.num_attention_heads == 3);
  CHECK(v3.q_lora_rank == 20);
  CHECK(v3.kv_lora_rank == 12);
  CHECK(v3.qk_nope_head_dim == 6);
  CHECK(v3.qk_rope_head_dim == 4);
  CHECK(v3.v_head_dim == 10);
  CHECK(v3.n_routed_experts == 8);
  CHECK(v3.n_shared_experts == 1);
  CHECK(v3.num_experts_per_tok == 2);
  CHECK(v3.n_group == 4);
  CHECK(v3.topk_group == 2);
  CHECK(v3.routed_scaling_factor == 2.5);
  CHECK_FALSE(v3.rope_scaling.enabled);

  const ModelConfig v2 = golden_config("v2");
  CHECK(v2.topk_method == TopkMethod::group_limited_greedy);
  CHECK(v2.scoring_func == ScoringFunc::softmax);
  CHECK_FALSE(v2.norm_topk_prob);

  const ModelConfig moonlight = golden_config("moonlight");
  CHECK(moonlight.q_lora_rank == 0);
  CHECK(moonlight.rms_norm_eps == 1e-5);
  CHECK(moonlight.rope_theta == 50000);

  const ModelConfig variants = golden_config("variants");
  CHECK(variants.mtp_hidden == MtpHidden::pre_norm);
  CHECK(variants.rope_scaling == RopeScaling{true, 40, 8, 32, 1, 0.707, 1.0, true});
}

TEST_CASE("config_from_json reads what newer transformers writes: rope_parameters") {
  const ModelConfig hf = golden_config("hf_checkpoint");
  CHECK(hf.rope_scaling == RopeScaling{true, 4, 8, 32, 1, 1, 1, true});
  CHECK(hf.rope_theta == 10000);
  CHECK(hf.max_position_embeddings == 32);
  const auto plain = nlohmann::ordered_json{{"rope_type", "default"}, {"rope_theta", 7.0}};
  auto json = nlohmann::ordered_json::parse(changed(golden_config("v3"), "rope_parameters", plain));
  json.erase("rope_theta");
  const ModelConfig c = config_from_json(json.dump(), "x");
  CHECK(c.rope_theta == 7);
  CHECK_FALSE(c.rope_scaling.enabled);
}

TEST_CASE("config_from_json takes a release's quantization_config, which changes no field") {
  const auto fp8 = nlohmann::ordered_json{{"activation_scheme", "dynamic"},
                                          {"fmt", "e4m3"},
                                          {"quant_method", "fp8"},
                                          {"weight_block_size", {128, 128}}};
  const ModelConfig v3 = presets::deepseek_v3;
  CHECK(config_from_json(changed(v3, "quantization_config", fp8), "x") == v3);
}

TEST_CASE("Absent keys mean what the model_type means by it") {
  const auto without = [](ModelConfig c) {
    auto json = nlohmann::ordered_json::parse(config_to_json(c));
    for (const char* key :
         {"topk_method", "scoring_func", "norm_topk_prob", "routed_scaling_factor", "rms_norm_eps",
          "rope_theta", "rope_scaling", "max_position_embeddings", "num_key_value_heads",
          "moe_layer_freq", "num_nextn_predict_layers", "bos_token_id", "eos_token_id",
          "hidden_act", "seq_aux", "attention_bias", "attention_dropout", "tie_word_embeddings"})
      json.erase(key);
    return config_from_json(json.dump(), "x");
  };
  const ModelConfig v3 = without(presets::deepseek_v3);
  ModelConfig expected = presets::deepseek_v3;
  expected.num_nextn_predict_layers = 0;
  expected.rope_scaling = {};
  expected.max_position_embeddings = 4096;
  CHECK(v3 == expected);

  const ModelConfig v2 = without(presets::deepseek_v2);
  expected = presets::deepseek_v2;
  expected.topk_method = TopkMethod::greedy;
  expected.routed_scaling_factor = 1;
  expected.rope_scaling = {};
  expected.max_position_embeddings = 2048;
  expected.bos_token_id = 0;
  expected.eos_token_id = 1;
  CHECK(v2 == expected);
}

TEST_CASE("Null stands for no query latent, no shared experts, no tokens, no groups") {
  const ModelConfig lite = presets::deepseek_v2_lite;
  CHECK(config_from_json(changed(lite, "q_lora_rank", 0), "x").q_lora_rank == 0);
  CHECK(config_from_json(changed(lite, "n_shared_experts", nullptr), "x").n_shared_experts == 0);
  CHECK(config_from_json(changed(lite, "n_group", nullptr), "x").n_group == 1);
  const ModelConfig no_end = config_from_json(changed(lite, "eos_token_id", nullptr), "x");
  CHECK(no_end.eos_token_id == -1);
  CHECK(config_from_json(config_to_json(no_end), "x") == no_end);
}

TEST_CASE("seq_aux is kept") {
  ModelConfig c = presets::deepseek_v3;
  CHECK(c.seq_aux);
  c.seq_aux = false;
  CHECK(config_from_json(config_to_json(c), "x") == c);
}

TEST_CASE("YaRN without mscale is told from YaRN with it") {
  ModelConfig c = presets::deepseek_v3;
  c.rope_scaling.mscale_all_dim = 0;
  c.rope_scaling.mscale_given = false;
  CHECK(config_from_json(config_to_json(c), "x") == c);
}

TEST_CASE("A model without experts needs no sizes of experts") {
  auto json = nlohmann::ordered_json::parse(config_to_json(golden_config("dense")));
  for (const char* key : {"moe_intermediate_size", "n_routed_experts", "n_shared_experts",
                          "num_experts_per_tok", "n_group", "topk_group"})
    json.erase(key);
  CHECK_FALSE(config_from_json(json.dump(), "x").has_moe());
}

TEST_CASE("Each size that is missing is named") {
  for (const char* key :
       {"model_type", "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size",
        "num_hidden_layers", "first_k_dense_replace", "num_attention_heads", "kv_lora_rank",
        "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts",
        "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group"})
    CHECK_THROWS_WITH_AS(config_from_json(changed(presets::deepseek_v3, key, none), "file"),
                         ("file: missing key '" + std::string(key) + "'").c_str(),
                         std::invalid_argument);
}

TEST_CASE("save_config writes what load_config reads") {
  TestFolder folder;
  save_config(folder.path("config.json"), presets::deepseek_v3);
  CHECK(load_config(folder.path("config.json")) == presets::deepseek_v3);
  CHECK(folder.content().size() == 1);
}
