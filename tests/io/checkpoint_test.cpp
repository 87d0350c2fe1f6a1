#include <doctest/doctest.h>

#include <dsv3/backend/host.hpp>
#include <dsv3/io/checkpoint.hpp>

#include "folder.hpp"

using namespace dsv3;

namespace {

// Host memory that counts what is copied, and stands for a device.
struct Device : HostMemory {
  Index largest = 0;
};
void copy_to_backend(Device& device, void* to, const void* from, Index bytes) {
  device.largest = std::max(device.largest, bytes);
  std::memcpy(to, from, static_cast<std::size_t>(bytes));
}
void copy_to_host(Device& device, void* to, const void* from, Index bytes) {
  device.largest = std::max(device.largest, bytes);
  std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

// A few tensors of a model with one layer and one MTP layer: what loading and saving see of one.
template <class T>
struct Fake {
  using Precision = Fp32;
  ModelConfig sizes;
  mutable Device device;
  std::vector<T> embed, norm, fused;
  std::vector<float> bias;
  int refreshed = 0;

  explicit Fake(Index mtp = 1, T value = 0) : embed(6, value), norm(3, value), fused(8, value) {
    sizes = load_config(DSV3_TEST_DATA "/golden/v3/config.json");
    sizes.num_hidden_layers = 1;
    sizes.num_nextn_predict_layers = mtp;
    bias.assign(2, float(value));
  }

  const ModelConfig& config() const { return sizes; }
  Device& backend() const { return device; }
  void refresh_operands() { ++refreshed; }
  void for_each_tensor(auto&& f) {
    f("model.embed_tokens.weight", View<T, 2>(embed.data(), {2, 3}));
    f("lm_head.weight", View<T, 2>(fused.data(), {2, 4}).cols(0, 3));  // rows apart
    f("model.norm.weight", View<T, 1>(norm.data(), {3}));
    f("model.layers.0.mlp.gate.e_score_correction_bias", View<float, 1>(bias.data(), {2}));
  }
  bool operator==(const Fake& other) const {
    return embed == other.embed && norm == other.norm && fused == other.fused &&
           bias == other.bias && refreshed == other.refreshed;
  }
};

SafetensorsEntry entry(const std::string& name, const std::vector<Index>& shape, float first,
                       DType dtype = DType::f32) {
  return {name, dtype, shape, [=](std::byte* to, Index offset, Index bytes) {
            std::memset(to, 0, static_cast<std::size_t>(bytes));
            for (Index i = 0; i < bytes / dtype_bytes(dtype); ++i) {
              const float f = first + float(offset / dtype_bytes(dtype) + i);
              const bf16 b(f);
              if (dtype == DType::f32) std::memcpy(to + 4 * i, &f, 4);
              if (dtype == DType::bf16) std::memcpy(to + 2 * i, &b, 2);
              if (dtype == DType::f8_e4m3) to[i] = std::byte{e4m3(f).code};
            }
          }};
}

using Entries = std::vector<SafetensorsEntry>;
Entries good() {
  return {entry("model.embed_tokens.weight", {2, 3}, 1), entry("lm_head.weight", {2, 3}, 10),
          entry("model.norm.weight", {3}, 20, DType::bf16),
          entry("model.layers.0.mlp.gate.e_score_correction_bias", {2}, 30)};
}
Entries plus(SafetensorsEntry extra) {
  Entries all = good();
  all.push_back(std::move(extra));
  return all;
}

template <class T>
void check_loaded(const Fake<T>& model) {
  CHECK(model.embed == std::vector<T>{1, 2, 3, 4, 5, 6});
  CHECK(model.fused == std::vector<T>{10, 11, 12, 0, 13, 14, 15, 0});
  CHECK(model.norm == std::vector<T>{20, 21, 22});
  CHECK(model.bias == std::vector<float>{30, 31});
  CHECK(model.refreshed == 1);
}

// Loading fails with this message and changes neither the model nor the folder.
void refuses(TestFolder& folder, const std::string& path, const std::string& message,
             Index mtp = 1) {
  const auto before = folder.content();
  Fake<float> model(mtp, 7);
  CHECK_THROWS_WITH_AS(load_weights(model, path), message.c_str(), std::invalid_argument);
  CHECK(model == Fake<float>(mtp, 7));
  CHECK(folder.content() == before);
}

}  // namespace

TEST_CASE("load_weights reads one file or the folder that holds it") {
  TestFolder folder;
  save_safetensors(folder.path("model.safetensors"), good());
  Fake<float> model;
  load_weights(model, folder.at.string());
  check_loaded(model);
  Fake<double> wide;
  load_weights(wide, folder.path("model.safetensors"));
  check_loaded(wide);
}

TEST_CASE("load_weights reads the shards that an index names") {
  TestFolder folder;
  const Entries all = good();
  save_safetensors(folder.path("a.safetensors"), {all[0], all[3]});
  save_safetensors(folder.path("b.safetensors"), {all[1], all[2]});
  folder.write("model.safetensors.index.json",
               R"({"metadata":{},"weight_map":{"model.embed_tokens.weight":"a.safetensors",
                   "lm_head.weight":"b.safetensors","model.norm.weight":"b.safetensors",
                   "model.layers.0.mlp.gate.e_score_correction_bias":"a.safetensors"}})");
  Fake<float> model;
  load_weights(model, folder.at.string());
  check_loaded(model);
}

TEST_CASE("load_weights skips what the model does not need, and nothing else") {
  TestFolder folder;
  const std::string path = folder.path("model.safetensors");
  const std::string where = "load_weights: '" + path + "': ";
  const auto save = [&](SafetensorsEntry extra) { save_safetensors(path, plus(std::move(extra))); };
  const auto loads = [&](Index mtp) {
    Fake<float> model(mtp);
    load_weights(model, path);
    check_loaded(model);
  };
  save(entry("model.layers.0.self_attn.rotary_emb.inv_freq", {3}, 0));
  loads(1);
  save(entry("model.layers.1.enorm.weight", {3}, 0));
  loads(0);
  refuses(folder, path, where + "unknown tensor 'model.layers.1.enorm.weight'");
  save(entry("model.layers.01.embed_tokens.weight", {2, 3}, 1));
  refuses(folder, path, where + "unknown tensor 'model.layers.01.embed_tokens.weight'");
  save(entry("model.layers.2.embed_tokens.weight", {2, 3}, 1));
  refuses(folder, path, where + "unknown tensor 'model.layers.2.embed_tokens.weight'");
  save(entry("model.layers.1.embed_tokens.weight", {2, 3}, 1));
  loads(1);
  save(entry("model.layers.1.shared_head.head.weight", {2, 3}, 10));
  loads(1);
  save(entry("model.layers.1.shared_head.head.weight", {2, 3}, 11));
  refuses(folder, path,
          where +
              "tensor 'model.layers.1.shared_head.head.weight' must equal "
              "'lm_head.weight': the model shares it");
  save(entry("model.layers.1.embed_tokens.weight", {2, 3}, 1, DType::bf16));
  refuses(folder, path,
          where +
              "tensor 'model.layers.1.embed_tokens.weight' must equal "
              "'model.embed_tokens.weight': the model shares it");
  Entries zeros = plus(entry("model.layers.1.embed_tokens.weight", {2, 3}, 0, DType::f64));
  zeros[0] = entry("model.embed_tokens.weight", {2, 3}, 0, DType::f16);  // begins with equal bytes
  save_safetensors(path, zeros);
  refuses(folder, path,
          where +
              "tensor 'model.layers.1.embed_tokens.weight' must equal "
              "'model.embed_tokens.weight': the model shares it");
}

TEST_CASE("load_weights tells missing, misshapen, unknown and unsupported tensors apart") {
  TestFolder folder;
  const std::string path = folder.path("model.safetensors");
  const std::string where = "load_weights: '" + path + "': ";
  const auto refuses_entry = [&](std::size_t i, SafetensorsEntry changed, const std::string& text) {
    Entries all = good();
    all[i] = std::move(changed);
    save_safetensors(path, all);
    refuses(folder, path, where + text);
  };
  refuses_entry(1, entry("other", {2, 3}, 0), "missing tensor 'lm_head.weight'");
  refuses_entry(1, entry("lm_head.weight", {3, 2}, 0),
                "tensor 'lm_head.weight': shape ([3, 2]) must equal the model's ([2, 3])");
  refuses_entry(1, entry("lm_head.weight", {6}, 0),
                "tensor 'lm_head.weight': shape ([6]) must equal the model's ([2, 3])");
  refuses_entry(1, entry("lm_head.weight", {2, 3}, 0, DType::i32),
                "tensor 'lm_head.weight': dtype (I32) must be a real type");
  refuses_entry(1, entry("lm_head.weight", {2, 3}, 0, DType::f8_e5m2),
                "tensor 'lm_head.weight': dtype (F8_E5M2) of an FP8 weight must be F8_E4M3");
  refuses_entry(2, entry("model.norm.weight", {3}, 0, DType::f8_e4m3),
                "tensor 'model.norm.weight': dimensions (1) of an FP8 weight must be 2");
  save_safetensors(path, plus(entry("z", {1}, 0)));
  refuses(folder, path, where + "unknown tensor 'z'");
}

TEST_CASE("load_weights multiplies FP8 codes by their scales, whatever the weight is for") {
  TestFolder folder;
  const std::string path = folder.path("model.safetensors");
  Entries all = plus(entry("lm_head.weight_scale_inv", {1, 1}, 0.1f));
  all[1] = entry("lm_head.weight", {2, 3}, 10, DType::f8_e4m3);
  save_safetensors(path, all);
  Fake<float> model;
  load_weights(model, path);
  CHECK(model.fused == std::vector<float>{10 * 0.1f, 11 * 0.1f, 12 * 0.1f, 0,  //
                                          13 * 0.1f, 14 * 0.1f, 15 * 0.1f, 0});
  Fake<double> wide;
  load_weights(wide, path);
  CHECK(wide.fused[1] == 11 * double(0.1f));  // no rounding to float in between
}

TEST_CASE("load_weights takes FP8 weights only with their scales, and scales only with theirs") {
  TestFolder folder;
  const std::string path = folder.path("model.safetensors");
  const std::string where = "load_weights: '" + path + "': ";
  const auto weight = entry("lm_head.weight", {2, 3}, 10, DType::f8_e4m3);
  const auto refuses_with = [&](Entries extra, const std::string& text) {
    Entries all = good();
    all[1] = weight;
    for (auto& e : extra) all.push_back(std::move(e));
    save_safetensors(path, all);
    refuses(folder, path, where + text);
  };
  const std::string scales = "lm_head.weight_scale_inv";
  refuses_with({}, "missing tensor 'lm_head.weight_scale_inv': 'lm_head.weight' is F8_E4M3");
  refuses_with({entry(scales, {1, 2}, 1)},
               "tensor 'lm_head.weight_scale_inv': shape ([1, 2]) must equal the blocks of "
               "128 x 128 of 'lm_head.weight' ([1, 1])");
  refuses_with({entry(scales, {1}, 1)},
               "tensor 'lm_head.weight_scale_inv': shape ([1]) must equal the blocks of "
               "128 x 128 of 'lm_head.weight' ([1, 1])");
  refuses_with({entry(scales, {1, 1}, 1, DType::bf16)},
               "tensor 'lm_head.weight_scale_inv': dtype (BF16) must be F32");
  const auto good_scales = entry(scales, {1, 1}, 1);
  refuses_with({good_scales, entry("model.embed_tokens.weight_scale_inv", {1, 1}, 1)},
               "tensor 'model.embed_tokens.weight_scale_inv' scales 'model.embed_tokens.weight', "
               "whose dtype (F32) must be F8_E4M3");
  refuses_with({good_scales, entry("z_scale_inv", {1, 1}, 1)},
               "tensor 'z_scale_inv' scales 'z', which is missing");
  refuses_with({good_scales, entry("z", {1, 1}, 1, DType::f8_e4m3)}, "unknown tensor 'z'");
  refuses_with({good_scales, entry("_scale_inv", {1, 1}, 1)},
               "tensor '_scale_inv' scales '', which is missing");
}

TEST_CASE("load_weights compares MTP's copy of an FP8 head with its scales") {
  TestFolder folder;
  const std::string path = folder.path("model.safetensors");
  const std::string copy = "model.layers.1.shared_head.head.weight", scales = copy + "_scale_inv";
  const auto save = [&](Entries extra) {
    Entries all = plus(entry("lm_head.weight_scale_inv", {1, 1}, 1));
    all[1] = entry("lm_head.weight", {2, 3}, 10, DType::f8_e4m3);
    for (auto& e : extra) all.push_back(std::move(e));
    save_safetensors(path, all);
  };
  const auto refuses_with = [&](Entries extra, const std::string& text) {
    save(std::move(extra));
    refuses(folder, path, "load_weights: '" + path + "': " + text);
  };
  const auto equal = entry(copy, {2, 3}, 10, DType::f8_e4m3);
  save({equal, entry(scales, {1, 1}, 1)});
  Fake<float> model;
  load_weights(model, path);
  check_loaded(model);
  refuses_with({equal}, "missing tensor '" + scales + "': '" + copy + "' is F8_E4M3");
  refuses_with({entry(scales, {1, 1}, 1)},
               "tensor '" + scales + "' scales '" + copy + "', which is missing");
  refuses_with({entry(copy, {2, 3}, 11, DType::f8_e4m3), entry(scales, {1, 1}, 1)},
               "tensor '" + copy + "' must equal 'lm_head.weight': the model shares it");
  refuses_with(
      {equal, entry(scales, {1, 1}, 2)},
      "tensor '" + scales + "' must equal 'lm_head.weight_scale_inv': the model shares it");
}

TEST_CASE("load_weights lists each size in which config.json differs from the model") {
  TestFolder folder;
  const std::string path = folder.at.string();
  save_safetensors(folder.path("model.safetensors"), good());
  ModelConfig config = Fake<float>().config();
  save_config(folder.path("config.json"), config);
  Fake<float> model;
  load_weights(model, path);
  config.hidden_size = 5;
  config.num_nextn_predict_layers = 2;
  config.n_routed_experts = 16;
  save_config(folder.path("config.json"), config);
  const std::string hidden =
      "load_weights: '" + path + "': config.json: hidden_size (5) must equal the model's (32)";
  refuses(folder, path,
          hidden +
              "; num_nextn_predict_layers (2) must equal the model's (1); "
              "n_routed_experts (16) must equal the model's (8)");
  refuses(folder, path, hidden, 0);  // one dense layer: MTP's layer and experts do not matter
}

TEST_CASE("CheckpointFiles refuses malformed indices, each with its message") {
  TestFolder folder;
  const std::string path = folder.at.string(), index = "model.safetensors.index.json";
  const std::string where = "CheckpointFiles: '" + path;
  refuses(folder, path + "/none", where + "/none': no such file or folder");
  refuses(folder, path,
          where + "': holds neither model.safetensors nor model.safetensors.index.json");
  save_safetensors(folder.path("a"), {entry("x", {1}, 0), entry("y", {1}, 0)});
  save_safetensors(folder.path("b"), {entry("x", {1}, 0)});
  const auto refuses_index = [&](const std::string& text, const std::string& message,
                                 const std::string& who = "CheckpointIndex") {
    folder.write(index, text);
    refuses(folder, path, who + ": '" + path + "/" + index + "': " + message);
  };
  refuses_index("", "not valid JSON at byte 1");
  refuses_index("[]", "must hold an object, found an array");
  refuses_index("{}", "missing key 'weight_map'");
  refuses_index(R"({"weight_map":[]})", "weight_map must be an object, found an array");
  refuses_index(R"({"weight_map":{"x":1}})", "weight_map 'x' must be a string, found an integer");
  for (const std::string bad : {"../a", "", "..", ".", "/etc/passwd", "c/a", "a\\u0000"}) {
    const std::string shown = bad == "a\\u0000" ? "a\\x00" : bad;
    refuses_index(R"({"weight_map":{"x":")" + bad + "\"}}",
                  "weight_map 'x': '" + shown + "' must be the name of a file in the same folder");
  }
  refuses_index(R"({"weight_map":{"x":"a","x":"b"}})", "duplicate key 'x'");
  refuses_index(R"({"weight_map":{"z":"a"}})", "tensor 'z' is not in 'a'", "CheckpointFiles");
  refuses_index(R"({"weight_map":{"x":"a","y":"a","z":"b"}})", "tensor 'z' is not in 'b'",
                "CheckpointFiles");
  refuses_index(R"({"weight_map":{"x":"a","y":"c"}})", "file 'c' is missing", "CheckpointFiles");
  folder.write(index, R"({"weight_map":{"x":"a"}})");
  refuses(folder, path, where + "/a': tensor 'y' is not what the index has for this file");
  std::filesystem::create_directory(folder.path("c"));
  folder.write(index, R"({"weight_map":{"x":"a","y":"c"}})");
  refuses(folder, path, "MappedFile: '" + path + "/c' must be a regular file");
}

TEST_CASE(
    "Symbolic links in a folder are followed: the folders of download caches consist of them") {
  TestFolder folder;
  save_safetensors(folder.path("blob"), good());
  std::filesystem::create_directory(folder.path("snapshot"));
  std::filesystem::create_symlink("../blob", folder.path("snapshot/model.safetensors"));
  Fake<float> model;
  load_weights(model, folder.path("snapshot"));
  check_loaded(model);
}

TEST_CASE("save_weights writes a folder that load_weights reads") {
  TestFolder folder;
  save_safetensors(folder.path("first"), good());
  Fake<float> model;
  load_weights(model, folder.path("first"));
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    save_weights(model, folder.path("x"), dtype);
    const SafetensorsFile file(folder.path("x/model.safetensors"));
    CHECK(file.metadata().at("format") == "pt");
    CHECK(file.at("lm_head.weight").dtype == dtype);
    CHECK(file.at("model.layers.0.mlp.gate.e_score_correction_bias").dtype ==
          (dtype == DType::f64 ? DType::f64 : DType::f32));
    Fake<float> again;
    load_weights(again, folder.path("x"));
    check_loaded(again);
    CHECK(load_config(folder.path("x/config.json")) == model.config());
  }
  CHECK(folder.content().size() == 4);  // first, x/ and the two files in it
  CHECK_THROWS_WITH_AS(save_weights(model, folder.path("x"), DType::f16),
                       "save_checkpoint: dtype (F16) must be F8_E4M3, BF16, F32 or F64",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(save_weights(model, folder.path("x"), DType::f32, IfExists::refuse),
                       ("AtomicFolder: '" + folder.path("x") + "' exists already").c_str(),
                       std::invalid_argument);
}

TEST_CASE("Large tensors pass through a small buffer, also where rows lie apart") {
  constexpr Index rows = 700, columns = 1001, stride = 1003;  // chunks end inside rows
  std::vector<double> from(static_cast<std::size_t>(rows * stride)), to(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = double(float(i) * 0.25f);
  const auto view = [&](std::vector<double>& v) {
    return View<double, 2>(v.data(), {rows, stride}).cols(1, columns);
  };
  TestFolder folder;
  Device device;
  save_safetensors(
      folder.path("a"),
      {{"a", DType::f32, {rows, columns}, detail::fill_from_backend<float>(device, view(from))}});
  const SafetensorsFile file(folder.path("a"));
  detail::read_to_backend(device, file.at("a"), view(to));
  CHECK(device.largest <= columns * 8);
  bool equal = true;
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < stride; ++j) {
      const auto at = static_cast<std::size_t>(i * stride + j);
      equal = equal && to[at] == (j >= 1 && j <= columns ? from[at] : 0);
    }
  CHECK(equal);
}

TEST_CASE("Scales go with the blocks of a large tensor, chunk by chunk") {
  constexpr Index rows = 700, columns = 1001, stride = 1003;  // chunks end inside rows and blocks
  TestFolder folder;
  Device device;
  std::vector<e4m3> codes(static_cast<std::size_t>(rows * columns));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i].code = std::uint8_t(i * 7 % 127);
  save_safetensors(folder.path("a"),
                   {{"a", DType::f8_e4m3, {rows, columns}, fill_from(codes.data())},
                    entry("a_scale_inv", {6, 8}, 0.1f)});
  const SafetensorsFile file(folder.path("a"));
  std::vector<float> to(static_cast<std::size_t>(rows * stride));
  const auto view = View<float, 2>(to.data(), {rows, stride}).cols(1, columns);
  detail::read_to_backend(device, file.at("a"), view, &file.at("a_scale_inv"));
  CHECK(device.largest <= columns * 4);
  bool equal = true;
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) {
      const float scale = 0.1f + float(i / 128 * 8 + j / 128);
      equal =
          equal && view(i, j) == float(codes[static_cast<std::size_t>(i * columns + j)]) * scale;
    }
  CHECK(equal);
}
