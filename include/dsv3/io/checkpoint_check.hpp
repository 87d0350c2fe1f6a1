// What is wrong with a checkpoint for a model, before the first weight changes.
#pragma once

#include <dsv3/io/checkpoint_files.hpp>
#include <dsv3/io/config_json.hpp>
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

// The tensor with the scales of an FP8 weight, or null.
inline const SafetensorsTensor* scales_of(const CheckpointFiles& files, std::string_view weight) {
  return files.find(scales_name(weight));
}

// What is wrong with the type of a weight, or with its scales where it is FP8; or "".
inline std::string type_error(const SafetensorsTensor& tensor, const SafetensorsTensor* scales) {
  const std::string name = in_quotes(tensor.name), dtype = dtype_name(tensor.dtype);
  if (is_integer(tensor.dtype))
    return "tensor " + name + ": dtype (" + dtype + ") must be a real type";
  if (dtype_bytes(tensor.dtype) > 1) return "";
  if (tensor.dtype != DType::f8_e4m3)
    return "tensor " + name + ": dtype (" + dtype + ") of an FP8 weight must be F8_E4M3";
  if (tensor.shape.size() != 2)
    return "tensor " + name + ": dimensions (" + std::to_string(tensor.shape.size()) +
           ") of an FP8 weight must be 2";
  const std::string own = in_quotes(scales_name(tensor.name));
  if (!scales) return "missing tensor " + own + ": " + name + " is " + dtype;
  const std::vector<Index> blocks = scales_shape(tensor.shape);
  if (scales->shape != blocks)
    return "tensor " + own + ": shape (" + shape_text(scales->shape.data(), scales->shape.size()) +
           ") must equal the blocks of 128 x 128 of " + name + " (" + shape_text(blocks.data(), 2) +
           ")";
  if (scales->dtype != DType::f32)
    return "tensor " + own + ": dtype (" + dtype_name(scales->dtype) + ") must be F32";
  return "";
}

using TensorNames = std::set<std::string, std::less<>>;

// What is wrong with a tensor that is not among the model's own, or "".
inline std::string extra_error(const SafetensorsTensor& tensor, const CheckpointFiles& files,
                               const ModelConfig& config, const TensorNames& known) {
  const bool is_scales = tensor.name.ends_with(scales_suffix);
  const std::string suffix(is_scales ? scales_suffix : "");
  const std::string weight = tensor.name.substr(0, tensor.name.size() - suffix.size());
  const std::string name = "tensor " + in_quotes(tensor.name);
  const ExtraTensor extra = extra_tensor(weight, config);
  if (extra.ignored) return "";
  if (is_scales) {
    const SafetensorsTensor* scaled = files.find(weight);
    if (!scaled) return name + " scales " + in_quotes(weight) + ", which is missing";
    if (scaled->dtype != DType::f8_e4m3)
      return name + " scales " + in_quotes(weight) + ", whose dtype (" + dtype_name(scaled->dtype) +
             ") must be F8_E4M3";
    if (known.count(weight)) return "";
  }
  if (extra.equal_to.empty()) return "unknown " + name;
  const std::string equal_to = extra.equal_to + suffix;
  const SafetensorsTensor* main = files.find(equal_to);
  if (!main || main->dtype != tensor.dtype || main->shape != tensor.shape ||
      std::memcmp(main->data, tensor.data, static_cast<std::size_t>(main->bytes)) != 0)
    return name + " must equal " + in_quotes(equal_to) + ": the model shares it";
  return is_scales ? "" : type_error(tensor, scales_of(files, tensor.name));
}

// Throws unless the checkpoint holds exactly the tensors of a model: those for which
// for_each_shape(f) calls f(name, shape), and what extra_error allows beside them. `where` begins
// every message.
inline void check_tensors(const std::string& where, const ModelConfig& config,
                          const CheckpointFiles& files, auto&& for_each_shape) {
  const auto fail = [&](const std::string& text) { throw std::invalid_argument(where + text); };
  TensorNames known;
  for_each_shape([&](std::string_view name, const std::vector<Index>& shape) {
    known.emplace(name);
    const SafetensorsTensor* tensor = files.find(name);
    if (!tensor) return fail("missing tensor " + in_quotes(name));
    if (tensor->shape != shape)
      fail("tensor " + in_quotes(name) + ": shape (" +
           shape_text(tensor->shape.data(), tensor->shape.size()) + ") must equal the model's (" +
           shape_text(shape.data(), shape.size()) + ")");
    const std::string text = type_error(*tensor, scales_of(files, name));
    if (!text.empty()) fail(text);
  });
  for (const auto& [name, tensor] : files.tensors()) {
    if (known.count(name)) continue;
    const std::string text = extra_error(*tensor, files, config, known);
    if (!text.empty()) fail(text);
  }
}

// Throws unless the checkpoint is one of the model, whose sizes a config.json beside it must give.
template <class Model>
void check_weights(Model& model, const CheckpointFiles& files) {
  const std::string where = "load_weights: " + in_quotes(files.path()) + ": ";
  const std::string config_path = files.path() + "/config.json";
  if (std::filesystem::is_regular_file(config_path)) {
    const std::string text = size_differences(load_config(config_path), model.config());
    if (!text.empty()) throw std::invalid_argument(where + "config.json: " + text);
  }
  check_tensors(where, model.config(), files, [&](auto&& f) {
    model.for_each_tensor([&](std::string_view name, auto view) { f(name, shape_of(view)); });
  });
}

}  // namespace detail
}  // namespace dsv3
