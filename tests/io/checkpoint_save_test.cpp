#include <doctest/doctest.h>

#include <dsv3/io/checkpoint.hpp>
#include <dsv3/model.hpp>

#include "folder.hpp"
#include "small_model.hpp"

using namespace dsv3;

namespace {

// Matrices of one and of two blocks, the last ones ragged.
ModelConfig sizes() {
  ModelConfig c = small::config();
  c.hidden_size = 140;
  c.intermediate_size = 130;
  return c;
}

// Without MTP, bias and query latent.
ModelConfig v2_sizes() {
  ModelConfig c = sizes();
  c.model_type = ModelType::deepseek_v2;
  c.num_nextn_predict_layers = 0;
  c.q_lora_rank = 0;
  c.topk_method = TopkMethod::greedy;
  c.scoring_func = ScoringFunc::softmax;
  return c;
}

template <class P>
struct Fixture {
  EigenCpu backend;
  Model<P, EigenCpu> model;

  explicit Fixture(const ModelConfig& config = sizes(), std::uint64_t seed = 5)
      : model(backend, config, {.seed = seed, .init_std = 0.5}) {
    float value = 0;
    for (Index i = 0; i < model.bias().size(); ++i) model.bias().data[i] = value += 0.01f;
  }
};

using Content = std::map<std::string, std::string>;

// What a model of P gives back of a folder that it has read.
template <class P>
Content written_again(const TestFolder& folder, const std::string& name,
                      const SaveOptions& options) {
  Fixture<P> f(load_config(folder.path(name + "/config.json")), 6);
  load_weights(f.model, folder.path(name));
  TestFolder other;
  save_checkpoint(f.model, other.path(name), options);
  return other.content();
}

}  // namespace

TEST_CASE("A saved folder holds exactly the tensors of the layout") {
  for (const ModelConfig& config : {sizes(), v2_sizes()}) {
    Fixture<Fp32> f(config);
    for (const DType dtype : {DType::f8_e4m3, DType::bf16, DType::f32, DType::f64}) {
      TestFolder folder;
      save_checkpoint(f.model, folder.path("x"), {.dtype = dtype});
      CHECK(load_config(folder.path("x/config.json")) == config);
      const CheckpointFiles files(folder.path("x"));
      const auto layout = checkpoint_layout(config, dtype);
      CHECK(files.tensors().size() == layout.size());
      for (const TensorLayout& tensor : layout) {
        const SafetensorsTensor* saved = files.find(tensor.name);
        REQUIRE_MESSAGE(saved, tensor.name);
        CHECK(saved->dtype == tensor.dtype);
        CHECK(saved->shape == tensor.shape);
      }
    }
  }
}

TEST_CASE("What is saved, read and saved again is the same folder, byte for byte") {
  for (const DType dtype : {DType::f8_e4m3, DType::bf16, DType::f32}) {
    for (const Index shard_bytes : {Index{1} << 40, Index{100'000}}) {
      CAPTURE(dtype_name(dtype));
      const SaveOptions options = {.dtype = dtype, .shard_bytes = shard_bytes};
      TestFolder folder;
      Fixture<Fp32> f;
      save_checkpoint(f.model, folder.path("x"), options);
      const Content saved = folder.content();
      CHECK(written_again<Fp32>(folder, "x", options) == saved);
      CHECK(written_again<Fp64>(folder, "x", options) == saved);
      CHECK(written_again<Bf16>(folder, "x", options) == saved);
      CHECK(written_again<Fp8>(folder, "x", options) == saved);
    }
  }
}

TEST_CASE("An Fp8 model gives the release's own codes and scales back, byte for byte") {
  const std::string golden = DSV3_TEST_DATA "/golden/fp8_checkpoint";
  Fixture<Fp8> f(load_config(golden + "/config.json"));
  load_weights(f.model, golden);
  TestFolder folder;
  save_checkpoint(f.model, folder.path("x"), {.dtype = DType::f8_e4m3});
  const CheckpointFiles files(folder.path("x")), release(golden);
  CHECK(files.tensors().size() == release.tensors().size());
  for (const auto& entry : release.tensors()) {
    const auto& name = entry.first;
    const SafetensorsTensor* tensor = entry.second;
    const SafetensorsTensor* saved = files.find(name);
    REQUIRE_MESSAGE(saved, name);
    CHECK(saved->dtype == tensor->dtype);
    CHECK(saved->shape == tensor->shape);
    CHECK_MESSAGE(
        std::memcmp(saved->data, tensor->data, static_cast<std::size_t>(tensor->bytes)) == 0, name);
  }
}

TEST_CASE("Codes that no quantiser of ours made come back from an Fp8 model alone") {
  TestFolder folder;
  Fixture<Fp8> f;
  save_checkpoint(f.model, folder.path("x"), {.dtype = DType::f8_e4m3});
  {
    const auto file = folder.path("x/model.safetensors");
    std::string bytes = TestFolder::read(file);
    const SafetensorsFile parsed(file);
    const auto& scales = parsed.at("model.layers.0.mlp.up_proj.weight_scale_inv");
    const float scale = 0.3f;  // no amax / 448 of these codes
    const std::size_t header =
        bytes.size() -
        static_cast<std::size_t>(parsed.tensors().back().data + parsed.tensors().back().bytes -
                                 parsed.tensors().front().data);
    std::memcpy(bytes.data() + header +
                    static_cast<std::size_t>(scales.data - parsed.tensors().front().data),
                &scale, 4);
    const auto& codes = parsed.at("model.layers.0.mlp.up_proj.weight");
    std::memset(bytes.data() + header +
                    static_cast<std::size_t>(codes.data - parsed.tensors().front().data),
                0x11, static_cast<std::size_t>(codes.bytes));
    folder.write("x/model.safetensors", bytes);
  }
  const Content changed = folder.content();
  CHECK(written_again<Fp8>(folder, "x", {.dtype = DType::f8_e4m3}) == changed);
  CHECK(written_again<Fp32>(folder, "x", {.dtype = DType::f8_e4m3}) != changed);
}

TEST_CASE("Every policy quantises the same masters to the same codes and scales") {
  TestFolder folder;
  Fixture<Fp32> fp32;
  Fixture<Bf16> bf16;
  Fixture<Fp8> fp8;  // writes its own codes
  save_checkpoint(fp32.model, folder.path("fp32"), {.dtype = DType::f8_e4m3});
  save_checkpoint(bf16.model, folder.path("bf16"), {.dtype = DType::f8_e4m3});
  save_checkpoint(fp8.model, folder.path("fp8"), {.dtype = DType::f8_e4m3});
  const std::string expected = TestFolder::read(folder.path("fp8/model.safetensors"));
  CHECK(TestFolder::read(folder.path("fp32/model.safetensors")) == expected);
  CHECK(TestFolder::read(folder.path("bf16/model.safetensors")) == expected);
}

TEST_CASE("A scale of amax / 448 comes back from the values that it scales") {
  // The float next to 448 s, divided by 448, can miss s by a bit, but for no s of this form: those
  // s that are missed are 4 modulo 8 units beyond 8/7 of a power of two, and a / 448 never is.
  std::uint32_t state = 1;
  int missed = 0;
  for (int i = 0; i < 2'000'000; ++i) {
    state = state * 1664525u + 1013904223u;
    const auto amax = std::bit_cast<float>(0x3F800000u + (state >> 7));  // [1, 32)
    const float scale = ScaleRule{}.scale<e4m3>(amax);
    missed += ScaleRule{}.scale<e4m3>(448 * scale) != scale;
  }
  CHECK(missed == 0);
}

TEST_CASE("Shards hold at most what was asked for, and the index says where everything is") {
  TestFolder folder;
  Fixture<Fp32> f;
  const Index most = 60'000;
  save_checkpoint(f.model, folder.path("x"), {.dtype = DType::bf16, .shard_bytes = most});
  const CheckpointIndex index(folder.path("x/model.safetensors.index.json"));
  check_index(index, sizes());
  CHECK(index.files().size() > 3);
  CHECK(index.files()[0] == "model-00001-of-" +
                                std::string(index.files().size() < 10 ? "00000" : "0000") +
                                std::to_string(index.files().size()) + ".safetensors");
  Index total = 0;
  for (const std::string& name : index.files()) {
    const SafetensorsFile file(folder.path("x/" + name));
    CHECK(file.metadata().at("format") == "pt");
    Index bytes = 0;
    for (const SafetensorsTensor& tensor : file.tensors()) bytes += tensor.bytes;
    CHECK((bytes <= most || file.tensors().size() == 1));
    total += bytes;
  }
  const auto json = nlohmann::json::parse(TestFolder::read(index.path()));
  CHECK(json.at("metadata").at("total_size") == total);
  CHECK(folder.content().size() == index.files().size() + 3);  // x/, config.json and the index
}

TEST_CASE("Tokenizer and generation files are carried along, and nothing else") {
  TestFolder folder;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                           "special_tokens_map.json", "modeling_deepseek.py", "LICENSE", "notes",
                           "config.json", "model.safetensors", "sub/tokenizer.json"})
    folder.write(std::string("from/") + name, name);
  Fixture<Fp32> f(v2_sizes());
  save_checkpoint(f.model, folder.path("x"),
                  {.metadata = {{"made", "here"}}, .companions = folder.path("from")});
  std::string names;
  for (const auto& [name, content] : folder.content())
    if (name.starts_with("x/")) names += name.substr(2) + " ";
  CHECK(names ==
        " LICENSE config.json generation_config.json model.safetensors modeling_deepseek.py "
        "special_tokens_map.json tokenizer.json tokenizer_config.json ");
  CHECK(folder.content().at("x/tokenizer.json") == "tokenizer.json");
  CHECK(SafetensorsFile(folder.path("x/model.safetensors")).metadata() ==
        std::map<std::string, std::string>{{"format", "pt"}, {"made", "here"}});
}

TEST_CASE("save_checkpoint refuses bad options before anything is written") {
  TestFolder folder;
  folder.write("old/file", "x");
  const Content before = folder.content();
  Fixture<Fp32> f(v2_sizes());
  const auto refuses = [&](const SaveOptions& options, const std::string& message) {
    CHECK_THROWS_WITH_AS(save_checkpoint(f.model, folder.path("old"), options), message.c_str(),
                         std::invalid_argument);
    CHECK(folder.content() == before);
  };
  refuses({.dtype = DType::f16}, "save_checkpoint: dtype (F16) must be F8_E4M3, BF16, F32 or F64");
  refuses({.shard_bytes = 0},
          "save_checkpoint: least shard_bytes (1) must be at most shard_bytes (0)");
  refuses({.if_exists = IfExists::refuse},
          "AtomicFolder: '" + folder.path("old") + "' exists already");
  refuses({.companions = folder.path("none")},
          "companions_of: '" + folder.path("none") + "' is no folder");
  refuses(
      {.metadata = {{"bad", "\xff"}}},
      "save_safetensors: '" + folder.path("old.tmp/model.safetensors") + "': '\xff' must be UTF-8");
}
