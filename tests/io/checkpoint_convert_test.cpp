#include <doctest/doctest.h>

#include <dsv3/io/checkpoint.hpp>
#include <dsv3/io/checkpoint_convert.hpp>
#include <dsv3/model.hpp>

#include "folder.hpp"
#include "small_model.hpp"

using namespace dsv3;

namespace {

using Content = std::map<std::string, std::string>;

ModelConfig sizes() {
  ModelConfig c = small::config();
  c.hidden_size = 140;
  c.intermediate_size = 130;
  return c;
}

// The folder "in": a model's weights, stored as asked for.
template <class P = Fp32>
void save(const TestFolder& folder, DType dtype, const std::string& name = "in") {
  EigenCpu backend;
  Model<P, EigenCpu> model(backend, sizes(), {.seed = 5, .init_std = 0.5});
  save_checkpoint(model, folder.path(name), {.dtype = dtype});
}

void convert(const TestFolder& folder, const char* from, const char* to, DType dtype) {
  convert_checkpoint(folder.path(from), folder.path(to), {.dtype = dtype});
}

std::string weights(const TestFolder& folder, const std::string& name) {
  return TestFolder::read(folder.path(name + "/model.safetensors"));
}

}  // namespace

TEST_CASE("FP32 becomes the BF16 and FP8 that a model writes, byte for byte") {
  TestFolder folder;
  save(folder, DType::f32);
  save(folder, DType::bf16, "bf16");
  save<Fp8>(folder, DType::f8_e4m3, "fp8");
  convert(folder, "in", "to_bf16", DType::bf16);
  convert(folder, "in", "to_fp8", DType::f8_e4m3);
  CHECK(weights(folder, "to_bf16") == weights(folder, "bf16"));
  CHECK(weights(folder, "to_fp8") == weights(folder, "fp8"));
}

TEST_CASE("FP8 becomes code times scale, rounded once") {
  TestFolder folder;
  const std::string golden = DSV3_TEST_DATA "/golden/fp8_checkpoint";
  for (const DType dtype : {DType::f32, DType::bf16})
    convert_checkpoint(golden, folder.path(dtype_name(dtype)), {.dtype = dtype});
  const CheckpointFiles from(golden), fp32(folder.path("F32")), bf16s(folder.path("BF16"));
  CHECK(fp32.tensors().size() ==
        checkpoint_layout(load_config(golden + "/config.json"), DType::f32).size());
  Index wrong = 0, projections = 0;
  for (const auto& [name, tensor] : from.tensors()) {
    if (tensor->dtype != DType::f8_e4m3) continue;
    ++projections;
    const auto codes = tensor->values<double>(),
               scales = from.find(name + "_scale_inv")->values<double>();
    const auto wide = fp32.find(name)->values<float>();
    const auto narrow = bf16s.find(name)->values<bf16>();
    const Index columns = tensor->shape[1], across = (columns + 127) / 128;
    for (Index i = 0; i < tensor->size(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const double exact =
          codes[at] *
          scales[static_cast<std::size_t>(i / columns / 128 * across + i % columns / 128)];
      wrong += wide[at] != float(exact);
      wrong += narrow[at].bits != bf16_nearest(exact).bits;
    }
  }
  CHECK(projections > 30);
  CHECK(wrong == 0);
}

TEST_CASE("A product that float would round to a tie of BF16 is rounded once") {
  // The first scale whose product with 1.125 float rounds onto a tie, from which BF16 goes the
  // wrong way.
  float scale = 0;
  const e4m3 code(1.125f);
  for (std::uint32_t bits = 0x3F000000u; scale == 0 && bits < 0x3F800000u; ++bits) {
    const double exact = 1.125 * double(std::bit_cast<float>(bits));
    if (bf16(float(exact)).bits != bf16_nearest(exact).bits) scale = std::bit_cast<float>(bits);
  }
  REQUIRE(scale > 0);
  TestFolder folder;
  save_safetensors(folder.path("x"), {{"w", DType::f8_e4m3, {1, 1}, fill_from(&code)},
                                      {"s", DType::f32, {1, 1}, fill_from(&scale)}});
  const SafetensorsFile file(folder.path("x"));
  bf16 converted;
  detail::fill_converted<double, bf16>(file.at("w"), &file.at("s"))(
      static_cast<std::byte*>(static_cast<void*>(&converted)), 0, 2);
  const double exact = 1.125 * double(scale);
  CHECK(std::abs(double(converted) - exact) < std::abs(double(bf16(float(exact))) - exact));
}

TEST_CASE("What is converted to its own type is the same tensors, FP8 codes included") {
  TestFolder folder;
  for (const std::string name : {"fp8_checkpoint", "hf_checkpoint"}) {
    const std::string golden = DSV3_TEST_DATA "/golden/" + name;
    convert_checkpoint(golden, folder.path(name),
                       {.dtype = name == "hf_checkpoint" ? DType::bf16 : DType::f8_e4m3});
    const CheckpointFiles from(golden), to(folder.path(name));
    CHECK(from.tensors().size() == to.tensors().size());
    for (const auto& entry : from.tensors()) {
      const auto& tensor_name = entry.first;
      const SafetensorsTensor* tensor = entry.second;
      const SafetensorsTensor* same = to.find(tensor_name);
      REQUIRE_MESSAGE(same, tensor_name);
      // transformers stores the gate's bias in BF16, a release and we in F32.
      if (tensor_name.ends_with("e_score_correction_bias"))
        CHECK(same->values<float>() == tensor->values<float>());
      else
        CHECK_MESSAGE(
            (same->dtype == tensor->dtype && same->shape == tensor->shape &&
             std::memcmp(same->data, tensor->data, static_cast<std::size_t>(tensor->bytes)) == 0),
            tensor_name);
    }
  }
}

TEST_CASE("FP8 of ours to FP32 and back is the same folder") {
  TestFolder folder;
  save<Fp8>(folder, DType::f8_e4m3);
  convert(folder, "in", "wide", DType::f32);
  convert(folder, "wide", "back", DType::f8_e4m3);
  CHECK(weights(folder, "back") == weights(folder, "in"));
}

TEST_CASE("config.json is kept but for what says how weights are stored") {
  TestFolder folder;
  save(folder, DType::f32);
  auto config = nlohmann::ordered_json::parse(TestFolder::read(folder.path("in/config.json")));
  config["auto_map"] = {{"AutoConfig", "x.Y"}};
  config["initializer_range"] = 0.02;
  folder.write("in/config.json", config.dump());
  convert(folder, "in", "fp8", DType::f8_e4m3);
  convert(folder, "fp8", "bf16", DType::bf16);
  const auto fp8 = nlohmann::ordered_json::parse(TestFolder::read(folder.path("fp8/config.json")));
  CHECK(fp8.at("quantization_config").at("quant_method") == "fp8");
  CHECK(fp8.at("torch_dtype") == "bfloat16");
  config["torch_dtype"] = "bfloat16";
  CHECK(TestFolder::read(folder.path("bf16/config.json")) == config.dump(2) + "\n");
}

TEST_CASE("Conversion reports its progress in bytes up to the end") {
  TestFolder folder;
  save(folder, DType::f32);
  Index last = 0, all = 0;
  bool ascending = true;
  convert_checkpoint(folder.path("in"), folder.path("out"),
                     {.dtype = DType::bf16, .progress = [&](Index done, Index total) {
                        ascending = ascending && done > last;
                        last = done;
                        all = total;
                      }});
  Index bytes = 0;
  for (const TensorLayout& tensor : checkpoint_layout(sizes(), DType::bf16))
    bytes += tensor.bytes();
  CHECK(ascending);
  CHECK(last == bytes);
  CHECK(all == bytes);
}

TEST_CASE("Conversion refuses what it cannot read or would overwrite, and writes nothing") {
  TestFolder folder;
  save(folder, DType::bf16);
  folder.write("there/file", "x");
  Content before = folder.content();
  const auto refuses = [&](const std::string& from, const std::string& to,
                           const ConvertOptions& options, const std::string& message) {
    std::string found = "accepted";
    try {
      convert_checkpoint(folder.path(from), folder.path(to), options);
    } catch (const std::exception& error) {
      found = error.what();
    }
    CHECK(found == message);
    CHECK(folder.content() == before);
  };
  refuses("in", "there", {}, "AtomicFolder: '" + folder.path("there") + "' exists already");
  refuses("in", "out", {.dtype = DType::f16},
          "checkpoint_layout: storage (F16) must be F8_E4M3, BF16, F32 or F64");
  refuses("in", "out", {.shard_bytes = 0},
          "convert_checkpoint: least shard_bytes (1) must be at most shard_bytes (0)");
  refuses("none", "out", {},
          "MappedFile: open '" + folder.path("none/config.json") + "': No such file or directory");
  ModelConfig other = sizes();
  other.n_routed_experts = 16;
  save_config(folder.path("in/config.json"), other);
  before = folder.content();
  refuses("in", "out", {},
          "convert_checkpoint: '" + folder.path("in") +
              "': tensor 'model.layers.1.mlp.gate.weight': shape ([8, 140]) must equal the "
              "model's ([16, 140])");
  save_config(folder.path("in/config.json"), sizes());
  convert_checkpoint(folder.path("in"), folder.path("there"),
                     {.dtype = DType::f32, .if_exists = IfExists::replace});
  CHECK_FALSE(std::filesystem::exists(folder.path("there/file")));
}
