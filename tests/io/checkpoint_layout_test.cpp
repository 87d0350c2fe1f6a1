#include <doctest/doctest.h>

#include <chrono>
#include <cstdio>
#include <dsv3/io/checkpoint_index.hpp>
#include <dsv3/plan.hpp>

#include "folder.hpp"
#include "small_model.hpp"

using namespace dsv3;

namespace {

struct Totals {
  Index tensors = 0, elements = 0, bytes = 0;

  Totals(const ModelConfig& config, DType storage) {
    for (const TensorLayout& tensor : checkpoint_layout(config, storage)) {
      ++tensors;
      elements += tensor.size();
      bytes += tensor.bytes();
    }
  }
};

// The tensors of a layout by name, each as "dtype shape".
std::map<std::string, std::string> listing(const ModelConfig& config, DType storage) {
  std::map<std::string, std::string> all;
  for (const TensorLayout& t : checkpoint_layout(config, storage))
    all[t.name] = dtype_name(t.dtype) + (" " + detail::shape_text(t.shape.data(), t.shape.size()));
  return all;
}

nlohmann::json index_of(const ModelConfig& config, std::size_t shards) {
  nlohmann::json map;
  const auto layout = checkpoint_layout(config, DType::f8_e4m3);
  for (std::size_t i = 0; i < layout.size(); ++i) {
    char file[60];
    std::snprintf(file, sizeof file, "model-%05zu-of-%06zu.safetensors",
                  i * shards / layout.size() + 1, shards);
    map[layout[i].name] = file;
  }
  return {{"metadata", nlohmann::json::object()}, {"weight_map", map}};
}

}  // namespace

TEST_CASE("The layout of DeepSeek-V3 in FP8 adds up to the release's tensors and bytes") {
  const Totals v3(presets::deepseek_v3, DType::f8_e4m3);  // spec 1.2
  CHECK(v3.tensors == 91'991);
  CHECK(v3.elements == 684'531'386'000);
  CHECK(v3.bytes == 688'574'839'360);
}

TEST_CASE("The layouts of the other releases add up to their published parameters") {
  CHECK(Totals(presets::deepseek_v2, DType::bf16).elements == 235'741'434'880);
  CHECK(Totals(presets::deepseek_v2_lite, DType::bf16).elements == 15'706'484'224);
  CHECK(Totals(presets::moonlight, DType::bf16).elements == 15'960'110'208);
  CHECK(Totals(presets::kimi_k2, DType::bf16).elements == plan::main_parameters(presets::kimi_k2));
  // Two bytes an element, and two more for each gate's bias: 26 layers of 64 experts.
  CHECK(Totals(presets::deepseek_v2, DType::bf16).bytes == 2 * 235'741'434'880);
  CHECK(Totals(presets::moonlight, DType::bf16).bytes == 2 * (15'960'110'208 + 26 * 64));
}

TEST_CASE("The layout lists each tensor of a release with its type and shape") {
  const auto v3 = listing(presets::deepseek_v3, DType::f8_e4m3);
  const std::map<std::string, std::string> some = {
      // spec 9.1
      {"model.embed_tokens.weight", "BF16 [129280, 7168]"},
      {"model.layers.0.input_layernorm.weight", "BF16 [7168]"},
      {"model.layers.0.self_attn.q_a_proj.weight", "F8_E4M3 [1536, 7168]"},
      {"model.layers.0.self_attn.q_a_proj.weight_scale_inv", "F32 [12, 56]"},
      {"model.layers.0.self_attn.q_b_proj.weight_scale_inv", "F32 [192, 12]"},
      {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "F8_E4M3 [576, 7168]"},
      {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv", "F32 [5, 56]"},
      {"model.layers.0.self_attn.kv_b_proj.weight_scale_inv", "F32 [256, 4]"},
      {"model.layers.0.self_attn.o_proj.weight_scale_inv", "F32 [56, 128]"},
      {"model.layers.2.mlp.down_proj.weight_scale_inv", "F32 [56, 144]"},
      {"model.layers.3.mlp.gate.weight", "BF16 [256, 7168]"},
      {"model.layers.3.mlp.gate.e_score_correction_bias", "F32 [256]"},
      {"model.layers.60.mlp.experts.255.down_proj.weight", "F8_E4M3 [7168, 2048]"},
      {"model.layers.60.mlp.shared_experts.up_proj.weight_scale_inv", "F32 [16, 56]"},
      {"model.layers.61.eh_proj.weight", "BF16 [7168, 14336]"},
      {"model.layers.61.embed_tokens.weight", "BF16 [129280, 7168]"},
      {"model.layers.61.shared_head.head.weight", "BF16 [129280, 7168]"},
      {"model.layers.61.shared_head.norm.weight", "BF16 [7168]"},
      {"model.norm.weight", "BF16 [7168]"},
      {"lm_head.weight", "BF16 [129280, 7168]"}};
  for (const auto& expected : some) {
    const auto& name = expected.first;
    CAPTURE(name);
    REQUIRE(v3.count(name));
    CHECK(v3.at(name) == expected.second);
  }
  const auto lite = listing(presets::deepseek_v2_lite, DType::f32);
  CHECK(lite.at("model.layers.26.self_attn.q_proj.weight") == "F32 [3072, 2048]");
  CHECK(lite.at("model.layers.26.mlp.shared_experts.down_proj.weight") == "F32 [2048, 2816]");
  CHECK_FALSE(lite.count("model.layers.26.mlp.gate.e_score_correction_bias"));
}

TEST_CASE("What a layout stores in FP8 is what an Fp8 model multiplies in FP8") {
  for (const ModelConfig& config : {small::config(), presets::deepseek_v2_lite}) {
    const auto layout = listing(config, DType::f8_e4m3);
    Arena counting;
    const auto operands = ModelTensors<Fp8, const operand_t<Fp8>>::make(config, counting);
    for_each_tensor<Fp8>(
        [&](const std::string& name, const auto& operand) {
          const bool fp8 = layout.at(name).starts_with("F8_E4M3");
          CHECK_MESSAGE(
              fp8 == requires { operand.codes; }, name);
          if constexpr (requires { operand.codes; })
            CHECK(layout.at(name + "_scale_inv") ==
                  "F32 " + detail::shape_text(operand.scales.extents, 2));
        },
        operands);
  }
}

TEST_CASE("checkpoint_layout refuses other storage types and broken configs") {
  CHECK_THROWS_WITH_AS(checkpoint_layout(small::config(), DType::f16),
                       "checkpoint_layout: storage (F16) must be F8_E4M3, BF16, F32 or F64",
                       std::invalid_argument);
  ModelConfig broken = small::config();
  broken.hidden_size = 0;
  CHECK_THROWS_AS(checkpoint_layout(broken, DType::bf16), std::invalid_argument);
}

TEST_CASE("An index of DeepSeek-V3's real size opens and is checked within a second") {
  TestFolder folder;
  const std::string path =
      folder.write("model.safetensors.index.json", index_of(presets::deepseek_v3, 163).dump(2));
  const auto start = std::chrono::steady_clock::now();
  const CheckpointIndex index(path);
  check_index(index, presets::deepseek_v3);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
  CHECK(index.tensors().size() == 91'991);
  CHECK(index.files().size() == 163);
  MESSAGE("V3's index, opened and checked: " << passed.count() << " s");
}

TEST_CASE("check_index names what is missing and what is unknown") {
  TestFolder folder;
  ModelConfig config = small::config();
  const std::string path = folder.path("index");
  const auto check = [&](const nlohmann::json& json) {
    folder.write("index", json.dump());
    check_index(CheckpointIndex(path), config);
  };
  const auto refuses = [&](const nlohmann::json& json, const std::string& message) {
    CHECK_THROWS_WITH_AS(check(json), ("check_index: '" + path + "': " + message).c_str(),
                         std::invalid_argument);
  };
  const nlohmann::json good = index_of(config, 2);
  const auto without = [&](const char* name) {
    auto json = good;
    json["weight_map"].erase(name);
    return json;
  };
  const auto with = [&](const char* name) {
    auto json = good;
    json["weight_map"][name] = "file";
    return json;
  };
  check(good);
  check(without("model.layers.2.embed_tokens.weight"));           // a copy
  check(without("model.layers.0.mlp.up_proj.weight_scale_inv"));  // perhaps stored in BF16
  check(with("model.layers.0.self_attn.rotary_emb.inv_freq"));
  check(with("lm_head.weight_scale_inv"));
  refuses(without("model.norm.weight"), "missing tensor 'model.norm.weight'");
  refuses(without("model.layers.1.mlp.gate.e_score_correction_bias"),
          "missing tensor 'model.layers.1.mlp.gate.e_score_correction_bias'");
  refuses(without("model.layers.2.eh_proj.weight"),
          "missing tensor 'model.layers.2.eh_proj.weight'");
  refuses(with("model.layers.1.mlp.experts.8.up_proj.weight"),
          "unknown tensor 'model.layers.1.mlp.experts.8.up_proj.weight' in 'file'");
  refuses(with("model.layers.3.enorm.weight"),
          "unknown tensor 'model.layers.3.enorm.weight' in 'file'");
  refuses(with("z_scale_inv"), "unknown tensor 'z_scale_inv' in 'file'");
  config.num_nextn_predict_layers = 0;
  check(good);  // MTP's tensors are ignored
  config.num_nextn_predict_layers = 2;
  refuses(good, "missing tensor 'model.layers.3.enorm.weight'");
}
