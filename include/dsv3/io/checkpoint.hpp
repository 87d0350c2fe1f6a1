// Weights of a model from and to checkpoints in the published format.
#pragma once

#include <dsv3/core/precision.hpp>
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
  TensorNames known;
  model.for_each_tensor([&](std::string_view name, auto view) {
    known.emplace(name);
    const SafetensorsTensor* tensor = files.find(name);
    if (!tensor) return fail("missing tensor " + in_quotes(name));
    const std::vector<Index> shape = shape_of(view);
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

// True for the policies whose projections hold what an FP8 checkpoint holds.
template <class P>
constexpr bool holds_checkpoint_codes() {
  if constexpr (QuantizedPolicy<P>)
    return std::is_same_v<typename P::code, e4m3> && P::block == scale_block;
  else
    return false;
}

// Puts the codes and scales of FP8 weights, as they are, in the place of those that
// refresh_operands() has made.
template <class Model>
void load_codes(Model& model, const CheckpointFiles& files) {
  using P = typename Model::Precision;
  if constexpr (holds_checkpoint_codes<P>())
    for_each_tensor<P>(
        [&](const std::string& name, const auto& operand) {
          if constexpr (requires { operand.codes; }) {
            const SafetensorsTensor& tensor = *files.find(name);
            if (tensor.dtype != DType::f8_e4m3) return;
            const auto& scales = operand.scales;
            const View<float, 2> dense(scales.data, {scales.extents[0], scales.extents[1]});
            read_to_backend(model.backend(), tensor, operand.codes);
            read_to_backend(model.backend(), *scales_of(files, name), dense);
          }
        },
        model.writable_operands());
}

}  // namespace detail

/// Fills a model's weights from a checkpoint: a safetensors file, or a folder with one or with
/// shards and an index (and a config.json, whose sizes must then be the model's). Everything is
/// checked before the first weight changes. A model without MTP skips MTP's tensors; MTP's copies
/// of the embedding and the head must equal the main ones; rotary_emb.inv_freq is ignored.
///
/// Types    F64, F32, F16 and BF16, converted to the masters' type. F8_E4M3 with F32 scales of
///          blocks of 128 x 128 in NAME_scale_inv: a master is code times scale. In an FP8 policy
///          with such blocks the projections multiply the file's own codes and scales until the
///          next refresh_operands().
/// Errors   std::invalid_argument "load_weights: 'path': ...": a missing tensor, a wrong shape, an
///          unknown tensor, an FP8 weight without its scales, scales without their weight; what
///          CheckpointFiles and load_config throw. The model is unchanged.
/// Source   spec 9.1 to 9.3.
template <class Model>
void load_weights(Model& model, const std::string& path) {
  const CheckpointFiles files(path);
  detail::check_weights(model, files);
  model.for_each_tensor([&](std::string_view name, auto view) {
    detail::read_to_backend(model.backend(), *files.find(name), view,
                            detail::scales_of(files, name));
  });
  model.refresh_operands();
  detail::load_codes(model, files);
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
