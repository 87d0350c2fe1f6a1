#include <doctest/doctest.h>

#include <dsv3/io/checkpoint.hpp>
#include <dsv3/model.hpp>

#include "folder.hpp"
#include "model_bits.hpp"
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

bool is_projection(const std::string& name) {
  return name.ends_with("_proj.weight") ? !name.ends_with("eh_proj.weight")
                                        : name.ends_with("kv_a_proj_with_mqa.weight");
}

// Element i of a tensor. FP8 codes stay below the largest, and scales are no powers of two: whoever
// quantises the weights again finds other codes and scales.
std::uint64_t random(const std::string& name, Index i) {
  return hash_name(name + "/" + std::to_string(i));
}
e4m3 code_of(const std::string& name, Index i) {
  e4m3 c;
  c.code = static_cast<std::uint8_t>(random(name, i) & 0xF7u);  // at most 240, and no NaN
  return c;
}
float scale_of(const std::string& name, Index i) {
  return 1e-3f * float(1 + random(name, i) % 1000);
}
bf16 plain(const std::string& name, Index i) {
  return bf16(float(random(name, i) % 2001) / 1000 - 1);
}

template <class T>
SafetensorsEntry entry(const std::string& name, std::vector<Index> shape,
                       T (*element)(const std::string&, Index)) {
  return {name, dtype_of<T>(), std::move(shape), [=](std::byte* to, Index offset, Index bytes) {
            constexpr auto unit = static_cast<Index>(sizeof(T));
            for (Index at = 0; at < bytes; at += unit) {
              const T value = element(name, (offset + at) / unit);
              std::memcpy(to + at, &value, sizeof(T));
            }
          }};
}

// The release's layout in small: shards, all scales in the other one than their weights.
struct Checkpoint {
  std::vector<SafetensorsEntry> weights, scales;

  Checkpoint() {
    EigenCpu backend;
    const Model<Fp32, EigenCpu> model(backend, sizes());
    model.for_each_tensor([&](const std::string& name, const auto& view) {
      auto shape = detail::shape_of(view);
      if (is_projection(name)) {
        scales.push_back(
            entry(name + "_scale_inv", {(shape[0] + 127) / 128, (shape[1] + 127) / 128}, scale_of));
        weights.push_back(entry(name, shape, code_of));
      } else {
        weights.push_back(entry(name, shape, plain));
      }
    });
  }

  void save(TestFolder& folder) const {
    nlohmann::json map;
    for (const auto& e : weights) map[e.name] = "1";
    for (const auto& e : scales) map[e.name] = "2";
    folder.write("model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
    save_safetensors(folder.path("1"), weights);
    save_safetensors(folder.path("2"), scales);
  }
};

// Every master is what the checkpoint says, in the arithmetic of its type.
template <class P>
void check_masters() {
  TestFolder folder;
  Checkpoint().save(folder);
  EigenCpu backend;
  Model<P, EigenCpu> model(backend, sizes());
  load_weights(model, folder.at.string());
  model.for_each_tensor([&](const std::string& name, const auto& view) {
    using M = std::remove_cvref_t<decltype(*view.data)>;
    const Index columns = view.extents[sizeof(view.extents) / sizeof(Index) - 1];
    const Index across = (columns + 127) / 128;
    Index wrong = 0;
    for (Index i = 0; i < view.size(); ++i) {
      M expected = M(float(plain(name, i)));
      if (is_projection(name)) {
        const Index block = i / columns / 128 * across + i % columns / 128;
        expected = M(float(code_of(name, i))) * M(scale_of(name + "_scale_inv", block));
      }
      wrong += view.data[i] != expected;
    }
    CHECK_MESSAGE(wrong == 0, name);
  });
}

// How many codes and scales of the model's operands are not those of the checkpoint.
template <class P>
Index differences(const Model<P, EigenCpu>& model) {
  Index different = 0;
  dsv3::for_each_tensor<P>(
      [&](const std::string& name, const auto& operand) {
        if constexpr (requires { operand.codes; }) {
          const auto& scales = operand.scales;
          for (Index i = 0; i < operand.size(); ++i)
            different += operand.codes.data[i].code != code_of(name, i).code;
          for (Index i = 0; i < scales.extents[0]; ++i)
            for (Index j = 0; j < scales.extents[1]; ++j)
              different += scales(i, j) != scale_of(name + "_scale_inv", i * scales.extents[1] + j);
        }
      },
      model.operands());
  return different;
}

struct Blocks64 : Fp8 {
  static constexpr Index block = 64;
};

}  // namespace

TEST_CASE("An FP8 weight becomes code times scale, rounded once to the master's type") {
  SUBCASE("Fp64") { check_masters<Fp64>(); }
  SUBCASE("Fp32") { check_masters<Fp32>(); }
  SUBCASE("Bf16") { check_masters<Bf16>(); }
  SUBCASE("Fp8") { check_masters<Fp8>(); }
}

TEST_CASE("An Fp8 model multiplies the file's own codes and scales") {
  TestFolder folder;
  Checkpoint().save(folder);
  EigenCpu backend;
  Model<Fp8, EigenCpu> model(backend, sizes());
  load_weights(model, folder.at.string());
  CHECK(differences(model) == 0);
  const auto& operands = model.operands();
  CHECK(float(operands.lm_head(1, 2)) == float(plain("lm_head.weight", 142)));
  model.refresh_operands();  // quantises the masters
  CHECK(differences(model) > 0);
}

TEST_CASE("An FP8 model with other blocks quantises the masters") {
  TestFolder folder;
  Checkpoint().save(folder);
  EigenCpu backend;
  Model<Blocks64, EigenCpu> model(backend, sizes());
  load_weights(model, folder.at.string());
  const std::string loaded = bits_of(model);
  model.refresh_operands();
  CHECK(bits_of(model) == loaded);
}

TEST_CASE("A projection that is not stored in FP8 is quantised") {
  TestFolder folder;
  Checkpoint checkpoint;
  const std::string name = "model.layers.1.mlp.experts.2.up_proj.weight";
  std::erase_if(checkpoint.scales, [&](const auto& e) { return e.name == name + "_scale_inv"; });
  for (auto& e : checkpoint.weights)
    if (e.name == name) e = entry(name, e.shape, plain);
  checkpoint.save(folder);
  EigenCpu backend;
  Model<Fp8, EigenCpu> model(backend, sizes());
  load_weights(model, folder.at.string());
  const auto up_proj = model.operands().layers[1].moe.up_proj[2];
  float largest = 0;
  for (Index i = 0; i < 24; ++i)
    for (Index j = 0; j < 128; ++j)
      largest = std::max(largest, std::abs(float(plain(name, i * 140 + j))));
  CHECK(up_proj.scales(0, 0) == largest / 448);
  CHECK(up_proj.codes(3, 5).code ==
        e4m3(float(plain(name, 3 * 140 + 5)) / up_proj.scales(0, 0)).code);
}

TEST_CASE("A refused FP8 checkpoint leaves masters and codes as they were") {
  TestFolder folder;
  Checkpoint checkpoint;
  const std::string name = checkpoint.scales.back().name;
  checkpoint.scales.pop_back();
  checkpoint.save(folder);
  EigenCpu backend;
  Model<Fp8, EigenCpu> model(backend, sizes());
  const std::string before = bits_of(model);
  CHECK_THROWS_WITH_AS(load_weights(model, folder.at.string()),
                       ("load_weights: '" + folder.at.string() + "': missing tensor '" + name +
                        "': '" + name.substr(0, name.size() - 10) + "' is F8_E4M3")
                           .c_str(),
                       std::invalid_argument);
  CHECK(bits_of(model) == before);
}

TEST_CASE("A model without MTP skips MTP's scales") {
  TestFolder folder;
  Checkpoint().save(folder);
  ModelConfig config = sizes();
  config.num_nextn_predict_layers = 0;
  EigenCpu backend;
  Model<Fp8, EigenCpu> model(backend, config);
  load_weights(model, folder.at.string());
  CHECK(differences(model) == 0);
}
