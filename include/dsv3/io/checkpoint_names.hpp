// What the names of a checkpoint's tensors say about them.
#pragma once

#include <dsv3/config.hpp>
#include <dsv3/io/dtype.hpp>

namespace dsv3::detail {

// FP8 weights of checkpoints have one scale for each block of so many rows and columns.
inline constexpr Index scale_block = 128;
inline constexpr std::string_view scales_suffix = "_scale_inv";

inline std::string scales_name(std::string_view weight) {
  return std::string(weight).append(scales_suffix);
}

inline constexpr const char* embedding_name = "model.embed_tokens.weight";
inline constexpr const char* head_name = "lm_head.weight";

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

// True for the linear layers of attention, MLPs and experts: what a release stores in FP8. The
// projection of MTP's concatenation is not among them (spec 7.5).
inline bool is_projection(std::string_view name) {
  return (name.ends_with("_proj.weight") && !name.ends_with(".eh_proj.weight")) ||
         name.ends_with(".kv_a_proj_with_mqa.weight");
}

inline bool is_gate_bias(std::string_view name) {
  return name.ends_with(".e_score_correction_bias");
}

// The type of a tensor in a checkpoint of this storage: F8_E4M3 for projections beside BF16 for the
// rest, or all of one type; a gate's bias is never narrower than F32, in which its steps of 1e-3
// do not vanish.
inline DType stored_dtype(std::string_view name, DType storage) {
  if (is_gate_bias(name)) return storage == DType::f64 ? DType::f64 : DType::f32;
  return storage == DType::f8_e4m3 && !is_projection(name) ? DType::bf16 : storage;
}

// Where a tensor comes in a release: embedding, blocks, final norm and head, MTP's blocks.
inline Index release_place(std::string_view name, const ModelConfig& c) {
  const Index layer = layer_of(name);
  if (layer >= 0) return layer < c.num_hidden_layers ? 1 + layer : 2 + layer;
  return name == embedding_name ? 0 : 1 + c.num_hidden_layers;
}

// Calls f(name of the copy, name of what it repeats): MTP's copies of the embedding and the head.
inline void for_each_repeated(const ModelConfig& c, auto&& f) {
  for (Index k = 0; k < c.num_nextn_predict_layers; ++k) {
    const std::string layer = "model.layers." + std::to_string(c.num_hidden_layers + k) + ".";
    f(layer + "embed_tokens.weight", embedding_name);
    f(layer + "shared_head.head.weight", head_name);
  }
}

// What a tensor is that the model does not have under its name.
struct ExtraTensor {
  bool ignored = false;
  std::string equal_to;  // not empty: the file's repetition of this tensor
};

inline ExtraTensor extra_tensor(std::string_view name, const ModelConfig& c) {
  if (name.ends_with(".rotary_emb.inv_freq")) return {true, ""};
  const Index layer = layer_of(name), mtp = c.num_nextn_predict_layers;
  if (layer < c.num_hidden_layers) return {};
  if (mtp == 0) return {true, ""};
  if (layer >= c.num_hidden_layers + mtp) return {};
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  if (name == prefix + "embed_tokens.weight") return {false, embedding_name};
  if (name == prefix + "shared_head.head.weight") return {false, head_name};
  return {};
}

}  // namespace dsv3::detail
