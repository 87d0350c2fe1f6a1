// The tensors that a release folder holds, from a ModelConfig alone.
#pragma once

#include <dsv3/io/checkpoint_names.hpp>
#include <dsv3/io/safetensors_header.hpp>
#include <dsv3/nn/transformer.hpp>

namespace dsv3 {

/// A tensor of a checkpoint without its data.
struct TensorLayout {
  std::string name;
  DType dtype = DType::bf16;
  std::vector<Index> shape;

  Index size() const {
    Index n = 1;
    for (const Index extent : shape) n *= extent;
    return n;
  }
  Index bytes() const { return size() * dtype_bytes(dtype); }
};

namespace detail {

inline std::vector<Index> scales_shape(const std::vector<Index>& weight) {
  return {groups_of(weight[0], scale_block), groups_of(weight[1], scale_block)};
}

// True for the policies whose projections hold what an FP8 checkpoint holds.
template <class P>
constexpr bool holds_checkpoint_codes() {
  if constexpr (QuantizedPolicy<P>)
    return std::is_same_v<typename P::code, e4m3> && P::block == scale_block;
  else
    return false;
}

// In the order of a release; those of one block stay as they are.
inline void sort_for_release(auto& tensors, const ModelConfig& c) {
  std::stable_sort(tensors.begin(), tensors.end(), [&](const auto& a, const auto& b) {
    return release_place(a.name, c) < release_place(b.name, c);
  });
}

}  // namespace detail

/// Every tensor of a release folder of this model, in the release's order: MTP's blocks after the
/// main ones with their copies of the embedding and the head, the scales of FP8 weights behind
/// them. storage says how: F8_E4M3 (projections in FP8, the rest in BF16), BF16, F32 or F64; a
/// gate's bias is F32 or F64.
///
/// Errors   std::invalid_argument for another storage; what validate throws.
/// Source   spec 9.1.
inline std::vector<TensorLayout> checkpoint_layout(const ModelConfig& config, DType storage) {
  if (storage != DType::f8_e4m3 && storage != DType::bf16 && storage != DType::f32 &&
      storage != DType::f64)
    throw std::invalid_argument(std::string("checkpoint_layout: storage (") + dtype_name(storage) +
                                ") must be F8_E4M3, BF16, F32 or F64");
  validate(config);
  std::vector<TensorLayout> all;
  const auto add = [&](const std::string& name, std::vector<Index> shape) {
    all.push_back({name, detail::stored_dtype(name, storage), std::move(shape)});
    if (all.back().dtype == DType::f8_e4m3)
      all.push_back(
          {detail::scales_name(name), DType::f32, detail::scales_shape(all.back().shape)});
  };
  Arena counting;
  const auto tensors = ModelTensors<Fp32, float>::make(config, counting);
  for_each_tensor<Fp32>(
      [&](const std::string& name, const auto& view) { add(name, detail::shape_of(view)); },
      tensors);
  const Index layers = config.num_hidden_layers + config.num_nextn_predict_layers;
  for (Index l = 0; l < layers && config.has_bias(); ++l)
    if (config.is_moe(l))
      add("model.layers." + std::to_string(l) + ".mlp.gate.e_score_correction_bias",
          {config.n_routed_experts});
  detail::for_each_repeated(config, [&](const std::string& name, const char*) {
    add(name, {config.vocab_size, config.hidden_size});
  });
  detail::sort_for_release(all, config);
  return all;
}

}  // namespace dsv3
