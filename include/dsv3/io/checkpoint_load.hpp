// Weights of a model from checkpoints in the published format.
#pragma once

#include <dsv3/core/precision.hpp>
#include <dsv3/infer/inference_model.hpp>
#include <dsv3/io/checkpoint_check.hpp>
#include <dsv3/io/checkpoint_fill.hpp>

namespace dsv3 {

namespace detail {

// Puts the scales of an FP8 weight, as they are, into an operand of such codes.
template <class Backend, class C>
void load_scales(Backend& backend, const SafetensorsTensor& scales, const Quantized<C>& operand) {
  const View<float, 2> dense(operand.scales.data,
                             {operand.scales.extents[0], operand.scales.extents[1]});
  read_to_backend(backend, scales, dense);
}

// The same for codes and scales.
template <class Backend, class C>
void load_codes(Backend& backend, const SafetensorsTensor& tensor, const SafetensorsTensor& scales,
                const Quantized<C>& operand) {
  if constexpr (FillsInPlace<Backend>)
    copy_in_place(backend, tensor.data, tensor.bytes, operand.codes.data);
  else
    read_to_backend(backend, tensor, operand.codes);
  load_scales(backend, scales, operand);
}

// One tensor after the other through a buffer, then all operands from their masters, but for those
// whose codes are in the file.
template <class Model>
void load_through_buffer(Model& model, const CheckpointFiles& files) {
  using P = typename Model::Precision;
  model.for_each_tensor([&](std::string_view name, auto view) {
    const SafetensorsTensor& tensor = *files.find(name);
    read_to_backend(model.backend(), tensor, view, scales_of(files, name));
    advise(tensor.data, tensor.bytes, MADV_DONTNEED);
  });
  model.refresh_operands();
  if constexpr (holds_checkpoint_codes<P>())
    for_each_tensor<P>(
        [&](const std::string& name, const auto& operand) {
          if constexpr (requires { operand.codes; })
            if (const SafetensorsTensor& tensor = *files.find(name); tensor.dtype == DType::f8_e4m3)
              load_codes(model.backend(), tensor, *scales_of(files, name), operand);
        },
        model.writable_operands());
}

// In one pass over the files: each tensor becomes its master and its operand.
template <class Model>
void load_in_place(Model& model, const CheckpointFiles& files) {
  using P = typename Model::Precision;
  auto& backend = model.backend();
  for_each_tensor<P>(
      [&](const std::string& name, const auto& master, const auto& operand) {
        const SafetensorsTensor& tensor = *files.find(name);
        const SafetensorsTensor* scales = scales_of(files, name);
        advise(tensor.data, tensor.bytes, MADV_WILLNEED);
        if constexpr (requires { operand.codes; }) {
          fill_in_place(backend, tensor, scales, master, decltype(master.cols(0, 0)){});
          if (holds_checkpoint_codes<P>() && tensor.dtype == DType::f8_e4m3)
            load_codes(backend, tensor, *scales, operand);
          else
            model.refresh_operand(master, operand);
        } else {
          fill_in_place(backend, tensor, scales, master, operand);
        }
        advise(tensor.data, tensor.bytes, MADV_DONTNEED);
      },
      model.masters(), model.writable_operands());
  model.for_each_bias([&](const std::string& name, const auto& bias) {
    read_to_backend(backend, *files.find(name), bias);
  });
}

// A tensor into a weight that has no master.
template <class P, class Backend, class W, int R>
void load_operand(Backend& backend, const SafetensorsTensor& tensor,
                  const SafetensorsTensor* scales, const View<W, R>& operand) {
  if constexpr (FillsInPlace<Backend>)
    fill_in_place(backend, tensor, scales, operand, View<W, R>());
  else
    read_to_backend(backend, tensor, operand, scales);
}

// The same for codes: the file's own, or those of its values, a band of rows at a time.
template <class P, class Backend, class C>
void load_operand(Backend& backend, const SafetensorsTensor& tensor,
                  const SafetensorsTensor* scales, const QuantizedWeight<C>& operand) {
  if (holds_checkpoint_codes<P>() && tensor.dtype == DType::f8_e4m3) {
    load_codes(backend, tensor, *scales, operand);
    return;
  }
  using M = typename P::master;
  constexpr Index elements = Index{1} << 22;
  const Index rows = operand.extent(0), columns = operand.extent(1), group = operand.group_rows;
  const Index groups = std::max<Index>(1, elements / std::max<Index>(1, group * columns));
  const Index most = std::min(rows, groups * group);
  Buffer<Backend> memory(backend, Arena::bytes<M>(most * columns));
  for (Index first = 0; first < rows; first += most) {
    const Index count = std::min(most, rows - first);
    const View<M, 2> band(static_cast<M*>(memory.data()), {count, columns});
    if constexpr (FillsInPlace<Backend>) {
      fill_in_place(backend, tensor, scales, band, View<M, 2>(), first * columns);
    } else {
      std::vector<M> values(static_cast<std::size_t>(band.size()));
      read_scaled(tensor, scales, first * columns, values.data(), band.size());
      copy_to_backend(backend, band.data, values.data(), band.size() * Index{sizeof(M)});
    }
    quantize_weights(backend, as_const(band), operand.rows(first, count),
                     Projection<P>::rule(Route::dense));
    synchronize(backend);
  }
}

// The same for arranged weights. What is stored as it is multiplied goes from the file into its
// order at once.
template <class P, class Backend, class M>
void load_operand(Backend& backend, const SafetensorsTensor& tensor,
                  const SafetensorsTensor* scales, const Arranged<M>& operand) {
  const auto elements = elements_of(operand);
  using E = std::remove_cvref_t<decltype(*elements.data)>;
  const Index columns = elements.extent(1);
  const auto copy = [&](Index first, Index count, E* buffer) {
    const Index row = columns * Index{sizeof(E)};
    std::memcpy(buffer, tensor.data + first * row, static_cast<std::size_t>(count * row));
    return reinterpret_cast<const std::byte*>(buffer);
  };
  if constexpr (requires { operand.matrix.codes; }) {
    if (holds_checkpoint_codes<P>() && tensor.dtype == DType::f8_e4m3) {
      arrange(backend, elements, copy);
      load_scales(backend, *scales, operand.matrix);
    } else {
      load_operand<P>(backend, tensor, scales, operand.matrix);
      arrange(backend, elements);
    }
  } else if (tensor.dtype == dtype_of<E>()) {
    arrange(backend, elements, copy);
  } else {
    arrange(backend, elements, [&](Index first, Index count, E* buffer) {
      read_scaled(tensor, scales, first * columns, buffer, count * columns);
      return reinterpret_cast<const std::byte*>(buffer);
    });
  }
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
  if constexpr (detail::FillsInPlace<std::remove_cvref_t<decltype(model.backend())>>)
    detail::load_in_place(model, files);
  else
    detail::load_through_buffer(model, files);
}

/// The same for a model without masters: each weight becomes an operand at once, so that beside the
/// model there is no more than a few MiB. Codes of a file stay as they are where the policy
/// multiplies such codes.
template <class P, class Backend, const ModelConfig& c>
void load_weights(InferenceModel<P, Backend, c>& model, const std::string& path) {
  const CheckpointFiles files(path);
  detail::check_weights(model, files);
  auto& backend = model.backend();
  for_each_tensor<typename InferenceModel<P, Backend, c>::Precision>(
      [&](const std::string& name, const auto& operand) {
        const SafetensorsTensor& tensor = *files.find(name);
        detail::advise(tensor.data, tensor.bytes, MADV_WILLNEED);
        detail::load_operand<P>(backend, tensor, detail::scales_of(files, name), operand);
        detail::advise(tensor.data, tensor.bytes, MADV_DONTNEED);
      },
      model.writable_operands());
  model.for_each_bias([&](const std::string& name, const auto& bias) {
    detail::read_to_backend(backend, *files.find(name), bias);
  });
}

}  // namespace dsv3
