#include <doctest/doctest.h>

#include <dsv3/io/checkpoint.hpp>
#include <dsv3/model.hpp>
#include <functional>

#include "folder.hpp"
#include "model_bits.hpp"
#include "small_model.hpp"

using namespace dsv3;

namespace {

ModelConfig sizes() {
  ModelConfig c = small::config();
  c.hidden_size = 140;
  return c;
}

// A checkpoint of the model's sizes in FP8, which each failure damages in its own way.
struct Tensors {
  std::vector<SafetensorsEntry> all;
  std::vector<std::shared_ptr<std::string>> data;

  explicit Tensors(const CheckpointFiles& files) {
    for (const auto& [name, tensor] : files.tensors())
      add(name, tensor->dtype, tensor->shape, tensor->data, tensor->bytes);
  }
  void add(const std::string& name, DType dtype, std::vector<Index> shape, const void* from,
           Index bytes) {
    data.push_back(std::make_shared<std::string>(static_cast<const char*>(from),
                                                 static_cast<std::size_t>(bytes)));
    all.push_back({name, dtype, std::move(shape), fill_from(data.back()->data())});
  }
  void add(const std::string& name, DType dtype, std::vector<Index> shape) {
    const std::string zeros(4096, '\0');
    add(name, dtype, std::move(shape), zeros.data(), 4096);
  }
  void remove(const std::string& name) {
    const auto n = std::erase_if(all, [&](const auto& entry) { return entry.name == name; });
    REQUIRE(n == 1);
  }
};

struct Failure {
  const char* what;                                             // part of the message
  std::function<void(Tensors&)> damage = [](Tensors&) {};       // before the file is written
  std::function<void(const TestFolder&)> after = [](auto&) {};  // to the folder "x"
};

void cut(const TestFolder& folder, std::size_t bytes) {
  const std::string path = folder.path("x/model.safetensors");
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - bytes);
}

void replace_in_header(const TestFolder& folder, const std::string& from, const std::string& to) {
  std::string text = TestFolder::read(folder.path("x/model.safetensors"));
  const auto at = text.find(from);
  REQUIRE(at != std::string::npos);
  folder.write("x/model.safetensors", text.replace(at, from.size(), to));
}

const std::vector<Failure>& failures() {
  static const std::vector<Failure> all = {
      {"missing tensor 'model.norm.weight'", [](Tensors& t) { t.remove("model.norm.weight"); }},
      {"missing tensor 'model.layers.2.eh_proj.weight'",
       [](Tensors& t) { t.remove("model.layers.2.eh_proj.weight"); }},
      {"missing tensor 'model.layers.1.mlp.gate.e_score_correction_bias'",
       [](Tensors& t) { t.remove("model.layers.1.mlp.gate.e_score_correction_bias"); }},
      {"shape ([53]) must equal the model's ([140])",
       [](Tensors& t) {
         t.remove("model.norm.weight");
         t.add("model.norm.weight", DType::bf16, {53});
       }},
      {"dtype (I32) must be a real type",
       [](Tensors& t) {
         t.remove("model.norm.weight");
         t.add("model.norm.weight", DType::i32, {140});
       }},
      {"unknown tensor 'model.layers.1.mlp.experts.8.up_proj.weight'",
       [](Tensors& t) { t.add("model.layers.1.mlp.experts.8.up_proj.weight", DType::f32, {1}); }},
      {"missing tensor 'model.layers.0.self_attn.o_proj.weight_scale_inv'",
       [](Tensors& t) { t.remove("model.layers.0.self_attn.o_proj.weight_scale_inv"); }},
      {"shape ([1, 1]) must equal the blocks of 128 x 128",
       [](Tensors& t) {
         t.remove("model.layers.0.self_attn.o_proj.weight_scale_inv");
         t.add("model.layers.0.self_attn.o_proj.weight_scale_inv", DType::f32, {1, 1});
       }},
      {"dtype (BF16) must be F32",
       [](Tensors& t) {
         t.remove("model.layers.0.self_attn.o_proj.weight_scale_inv");
         t.add("model.layers.0.self_attn.o_proj.weight_scale_inv", DType::bf16, {2, 1});
       }},
      {"whose dtype (BF16) must be F8_E4M3",
       [](Tensors& t) {
         t.add("lm_head.weight_scale_inv", DType::f32, {1, 2});
       }},
      {"must equal 'lm_head.weight': the model shares it",
       [](Tensors& t) {
         const std::string other(2 * 53 * 140, '\1');
         t.remove("model.layers.2.shared_head.head.weight");
         t.add("model.layers.2.shared_head.head.weight", DType::bf16, {53, 140}, other.data(),
               2 * 53 * 140);
       }},
      {"must be at most the data's bytes", [](Tensors&) {}, [](auto& f) { cut(f, 1); }},
      {"must be at most the bytes that follow", [](Tensors&) {},
       [](auto& f) { std::filesystem::resize_file(f.path("x/model.safetensors"), 1000); }},
      {"data's bytes (", [](Tensors&) {},
       [](auto& f) {
         f.write("x/model.safetensors", TestFolder::read(f.path("x/model.safetensors")) + "x");
       }},
      {"overlap", [](Tensors&) {},
       [](auto& f) {  // the second tensor of the file begins where the first one does
         const SafetensorsFile file(f.path("x/model.safetensors"));
         const Index first = file.tensors()[0].bytes, second = file.tensors()[1].bytes;
         const std::string from = std::to_string(first) + "," + std::to_string(first + second);
         std::string to = "0," + std::to_string(second);
         to.insert(0, from.size() - to.size(), ' ');
         replace_in_header(f, from, to);
       }},
      {"duplicate tensor 'model.layers.0.mlp.gate_proj.weight'", [](Tensors&) {},
       [](auto& f) {
         replace_in_header(f, "\"model.layers.0.mlp.down_proj.weight\"",
                           "\"model.layers.0.mlp.gate_proj.weight\"");
       }},
      {"not valid JSON", [](Tensors&) {},
       [](auto& f) { replace_in_header(f, "\"dtype\":", "\"dtype\";"); }},
      {"no such file or folder", [](Tensors&) {},
       [](auto& f) { std::filesystem::remove_all(f.path("x")); }},
      {"holds neither model.safetensors nor", [](Tensors&) {},
       [](auto& f) { std::filesystem::remove(f.path("x/model.safetensors")); }},
      {"file 'none' is missing", [](Tensors&) {},
       [](auto& f) {
         f.write("x/model.safetensors.index.json", R"({"weight_map":{"lm_head.weight":"none"}})");
       }},
      {"must be the name of a file in the same folder", [](Tensors&) {},
       [](auto& f) {
         f.write("x/model.safetensors.index.json",
                 R"({"weight_map":{"lm_head.weight":"../x/model.safetensors"}})");
       }},
      {"is not what the index has for this file", [](Tensors&) {},
       [](auto& f) {
         f.write("x/model.safetensors.index.json",
                 R"({"weight_map":{"lm_head.weight":"model.safetensors"}})");
       }},
      {"config.json: hidden_size (141) must equal the model's (140)", [](Tensors&) {},
       [](auto& f) {
         ModelConfig c = sizes();
         c.hidden_size = 141;
         save_config(f.path("x/config.json"), c);
       }},
      {"not valid JSON at byte 1", [](Tensors&) {}, [](auto& f) { f.write("x/config.json", ""); }},
  };
  return all;
}

template <class P>
void check_untouched() {
  TestFolder folder;
  Cpu backend(2);
  {
    Model<P, Cpu> other(backend, sizes(), {.seed = 9, .init_std = 0.3});
    save_checkpoint(other, folder.path("good"), {.dtype = DType::f8_e4m3});
  }
  Model<P, Cpu> model(backend, sizes(), {.seed = 1, .init_std = 0.3});
  const std::string before = bits_of(model);
  for (const Failure& failure : failures()) {
    CAPTURE(failure.what);
    std::filesystem::remove_all(folder.path("x"));
    std::filesystem::create_directory(folder.path("x"));
    save_config(folder.path("x/config.json"), sizes());
    Tensors tensors{CheckpointFiles(folder.path("good"))};
    failure.damage(tensors);
    save_safetensors(folder.path("x/model.safetensors"), tensors.all);
    failure.after(folder);
    std::string message = "accepted";
    try {
      load_weights(model, folder.path("x"));
    } catch (const std::exception& error) {
      message = error.what();
    }
    CHECK_MESSAGE(message.find(failure.what) != std::string::npos, message);
    CHECK(bits_of(model) == before);
  }
  load_weights(model, folder.path("good"));
  CHECK(bits_of(model) != before);
}

}  // namespace

TEST_CASE("A load that fails, in whatever way, leaves every bit of the model as it was") {
  CHECK(failures().size() >= 24);
  SUBCASE("fp32") { check_untouched<Fp32>(); }
  SUBCASE("bf16") { check_untouched<Bf16>(); }
  SUBCASE("fp8") { check_untouched<Fp8>(); }
}

TEST_CASE("A gate's bias is read from BF16 as from F32") {
  TestFolder folder;
  Cpu backend(2);
  Model<Fp32, Cpu> model(backend, sizes(), {.seed = 9});
  for (Index i = 0; i < model.bias().size(); ++i) model.bias().data[i] = float(i) / 8;
  save_checkpoint(model, folder.path("f32"), {.dtype = DType::bf16});
  load_weights(model, folder.path("f32"));  // the weights as they are in BF16
  CHECK(model.bias()(0, 5) == 5.0f / 8);
  Tensors tensors{CheckpointFiles(folder.path("f32"))};
  for (SafetensorsEntry& entry : tensors.all) {
    if (!entry.name.ends_with("e_score_correction_bias")) continue;
    entry.dtype = DType::bf16;
    entry.fill = [fill = entry.fill](std::byte* to, Index offset, Index bytes) {
      std::vector<float> wide(static_cast<std::size_t>(bytes / 2));
      fill(static_cast<std::byte*>(static_cast<void*>(wide.data())), 2 * offset, 2 * bytes);
      for (std::size_t i = 0; i < wide.size(); ++i) {
        const bf16 narrow(wide[i]);
        std::memcpy(to + 2 * i, &narrow, 2);
      }
    };
  }
  std::filesystem::create_directory(folder.path("bf16"));
  save_safetensors(folder.path("bf16/model.safetensors"), tensors.all);
  Model<Fp32, Cpu> other(backend, sizes(), {.seed = 1});
  load_weights(other, folder.path("bf16"));
  CHECK(bits_of(other) == bits_of(model));
}
