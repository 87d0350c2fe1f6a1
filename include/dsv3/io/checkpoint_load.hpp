// Weights of a model from checkpoints in the published format.
#pragma once

#include <dsv3/core/precision.hpp>
#include <dsv3/io/checkpoint_check.hpp>
#include <dsv3/io/tensor_transfer.hpp>

namespace dsv3 {

namespace detail {

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

}  // namespace dsv3
