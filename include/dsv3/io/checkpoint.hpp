// Weights of a model from and to checkpoints in the published format.
#pragma once

#include <dsv3/io/checkpoint_files.hpp>
#include <dsv3/io/config_json.hpp>
#include <dsv3/io/tensor_transfer.hpp>
#include <set>

namespace dsv3 {

namespace detail {

// Each size that a config.json gives otherwise than the model has it, or "". A model without MTP
// may be loaded from a checkpoint with it.
inline std::string size_differences(const ModelConfig& file, const ModelConfig& model) {
  std::string text;
  const auto compare = [&](const char* name, Index ModelConfig::*size) {
    if (file.*size != model.*size)
      text += (text.empty() ? "" : "; ") + std::string(name) + " (" + std::to_string(file.*size) +
              ") must equal the model's (" + std::to_string(model.*size) + ")";
  };
  compare("vocab_size", &ModelConfig::vocab_size);
  compare("hidden_size", &ModelConfig::hidden_size);
  compare("num_hidden_layers", &ModelConfig::num_hidden_layers);
  if (model.num_nextn_predict_layers > 0)
    compare("num_nextn_predict_layers", &ModelConfig::num_nextn_predict_layers);
  compare("first_k_dense_replace", &ModelConfig::first_k_dense_replace);
  compare("moe_layer_freq", &ModelConfig::moe_layer_freq);
  compare("num_attention_heads", &ModelConfig::num_attention_heads);
  compare("q_lora_rank", &ModelConfig::q_lora_rank);
  compare("kv_lora_rank", &ModelConfig::kv_lora_rank);
  compare("qk_nope_head_dim", &ModelConfig::qk_nope_head_dim);
  compare("qk_rope_head_dim", &ModelConfig::qk_rope_head_dim);
  compare("v_head_dim", &ModelConfig::v_head_dim);
  if (model.first_k_dense_replace > 0 || model.moe_layer_freq > 1)
    compare("intermediate_size", &ModelConfig::intermediate_size);
  if (!model.has_moe()) return text;
  compare("moe_intermediate_size", &ModelConfig::moe_intermediate_size);
  compare("n_routed_experts", &ModelConfig::n_routed_experts);
  compare("n_shared_experts", &ModelConfig::n_shared_experts);
  return text;
}

// The block that a tensor belongs to, -1 where it belongs to none.
inline Index layer_of(std::string_view name) {
  constexpr std::string_view begin = "model.layers.";
  if (name.substr(0, begin.size()) != begin) return -1;
  Index layer = 0;
  std::size_t i = begin.size();
  for (; i < name.size() && name[i] >= '0' && name[i] <= '9' && layer < 1'000'000; ++i)
    layer = layer * 10 + (name[i] - '0');
  return i > begin.size() && i < name.size() && name[i] == '.' ? layer : -1;
}

// What a tensor is that the model does not have under its name.
struct ExtraTensor {
  bool ignored = false;
  std::string equal_to;  // not empty: the file's repetition of this tensor
};

inline ExtraTensor extra_tensor(const std::string& name, const ModelConfig& c) {
  const auto ends_with = [&](std::string_view end) {
    return name.size() >= end.size() &&
           name.compare(name.size() - end.size(), end.size(), end) == 0;
  };
  if (ends_with(".rotary_emb.inv_freq")) return {true, ""};
  const Index layer = layer_of(name), mtp = c.num_nextn_predict_layers;
  if (layer < c.num_hidden_layers) return {};
  if (mtp == 0) return {true, ""};
  if (layer >= c.num_hidden_layers + mtp) return {};
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  if (name == prefix + "embed_tokens.weight") return {false, "model.embed_tokens.weight"};
  if (name == prefix + "shared_head.head.weight") return {false, "lm_head.weight"};
  return {};
}

// Throws unless the checkpoint holds exactly the model's tensors.
template <class Model>
void check_weights(Model& model, const CheckpointFiles& files) {
  const std::string where = "load_weights: " + in_quotes(files.path()) + ": ";
  const auto fail = [&](const std::string& text) { throw std::invalid_argument(where + text); };
  const ModelConfig& config = model.config();
  const std::string config_path = files.path() + "/config.json";
  if (std::filesystem::is_regular_file(config_path)) {
    const std::string text = size_differences(load_config(config_path), config);
    if (!text.empty()) fail("config.json: " + text);
  }
  for (const auto& [name, tensor] : files.tensors())
    if (dtype_bytes(tensor->dtype) == 1 && !is_integer(tensor->dtype) &&
        !extra_tensor(name, config).ignored)
      fail("tensor " + in_quotes(name) + ": FP8 weights (" + dtype_name(tensor->dtype) +
           ") are unsupported");
  std::set<std::string, std::less<>> known;
  model.for_each_tensor([&](std::string_view name, auto view) {
    known.emplace(name);
    const SafetensorsTensor* tensor = files.find(name);
    if (!tensor) return fail("missing tensor " + in_quotes(name));
    const std::vector<Index> shape = shape_of(view);
    if (tensor->shape != shape)
      fail("tensor " + in_quotes(name) + ": shape (" +
           shape_text(tensor->shape.data(), tensor->shape.size()) + ") must equal the model's (" +
           shape_text(shape.data(), shape.size()) + ")");
    if (is_integer(tensor->dtype))
      fail("tensor " + in_quotes(name) + ": dtype (" + dtype_name(tensor->dtype) +
           ") must be a real type");
  });
  for (const auto& [name, tensor] : files.tensors()) {
    if (known.count(name)) continue;
    const ExtraTensor extra = extra_tensor(name, config);
    if (extra.ignored) continue;
    if (extra.equal_to.empty()) fail("unknown tensor " + in_quotes(name));
    const SafetensorsTensor* main = files.find(extra.equal_to);
    if (!main || main->dtype != tensor->dtype || main->shape != tensor->shape ||
        std::memcmp(main->data, tensor->data, static_cast<std::size_t>(main->bytes)) != 0)
      fail("tensor " + in_quotes(name) + " must equal " + in_quotes(extra.equal_to) +
           ": the model shares it");
  }
}

}  // namespace detail

/// Fills a model's weights from a checkpoint: a safetensors file, or a folder with one or with
/// shards and an index (and a config.json, whose sizes must then be the model's). Everything is
/// checked before the first weight changes. A model without MTP skips MTP's tensors; MTP's copies
/// of the embedding and the head must equal the main ones; rotary_emb.inv_freq is ignored.
///
/// Types    F64, F32, F16 and BF16, converted to the masters' type. FP8 weights are an error.
/// Errors   std::invalid_argument "load_weights: 'path': ...": a missing tensor, a wrong shape, an
///          unknown tensor, FP8; what CheckpointFiles and load_config throw. The model is
///          unchanged.
/// Source   spec 9.1, 9.2.
template <class Model>
void load_weights(Model& model, const std::string& path) {
  const CheckpointFiles files(path);
  detail::check_weights(model, files);
  model.for_each_tensor([&](std::string_view name, auto view) {
    detail::read_to_backend(model.backend(), *files.find(name), view);
  });
  model.refresh_operands();
}

/// Writes a folder with config.json and model.safetensors through AtomicFolder. dtype is that of
/// the weights: F64, F32 or BF16 (rounded to nearest). A gate's bias is never narrower than F32:
/// its steps of 1e-3 would vanish in BF16.
///
/// Errors   std::invalid_argument for another dtype; what AtomicFolder throws.
template <class Model>
void save_weights(Model& model, const std::string& folder, DType dtype = DType::f32,
                  IfExists if_exists = IfExists::replace) {
  if (dtype != DType::f64 && dtype != DType::f32 && dtype != DType::bf16)
    throw std::invalid_argument(std::string("save_weights: dtype (") + dtype_name(dtype) +
                                ") must be F64, F32 or BF16");
  std::vector<SafetensorsEntry> entries;
  auto& backend = model.backend();
  model.for_each_tensor([&](std::string_view name, auto view) {
    SafetensorsEntry entry{std::string(name), dtype, detail::shape_of(view), nullptr};
    constexpr std::string_view bias = "e_score_correction_bias";
    const bool is_bias =
        name.size() >= bias.size() && name.substr(name.size() - bias.size()) == bias;
    if (is_bias && dtype == DType::bf16) entry.dtype = DType::f32;
    if (entry.dtype == DType::f64) entry.fill = detail::fill_from_backend<double>(backend, view);
    if (entry.dtype == DType::f32) entry.fill = detail::fill_from_backend<float>(backend, view);
    if (entry.dtype == DType::bf16) entry.fill = detail::fill_from_backend<bf16>(backend, view);
    entries.push_back(std::move(entry));
  });
  AtomicFolder target(folder, if_exists);
  save_config(target.file("config.json"), model.config());
  // Other software wants to be told that the tensors are laid out as PyTorch has them.
  save_safetensors(target.file("model.safetensors"), std::move(entries), {{"format", "pt"}});
  target.commit();
}

}  // namespace dsv3
