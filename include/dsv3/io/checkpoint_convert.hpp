// Checkpoints from one storage type to another, tensor by tensor, without a model.
#pragma once

#include <dsv3/io/checkpoint_check.hpp>
#include <dsv3/io/companions.hpp>
#include <dsv3/io/quantized_tensor.hpp>
#include <dsv3/io/shards.hpp>
#include <dsv3/io/tensor_transfer.hpp>

namespace dsv3 {

/// How a checkpoint is converted.
struct ConvertOptions {
  DType dtype = DType::bf16;          ///< F8_E4M3, BF16, F32 or F64: see checkpoint_layout
  Index shard_bytes = 5'000'000'000;  ///< of data in one file, at most
  IfExists if_exists = IfExists::refuse;
  /// Called after each piece with the bytes that are written and those that will be.
  std::function<void(Index done, Index total)> progress = {};
};

namespace detail {

// As read_scaled, and lets go of the pages.
template <class T>
void read_once(const SafetensorsTensor& tensor, const SafetensorsTensor* scales, Index first, T* to,
               Index n) {
  read_scaled(tensor, scales, first, to, n);
  const Index unit = dtype_bytes(tensor.dtype);
  advise(tensor.data + first * unit, n * unit, MADV_DONTNEED);
}

// A `fill` with the values of a tensor as To, computed in Wide and rounded once.
template <class Wide, class To>
auto fill_converted(const SafetensorsTensor& tensor, const SafetensorsTensor* scales) {
  return [&tensor, scales](std::byte* to, Index offset, Index bytes) {
    constexpr auto unit = static_cast<Index>(sizeof(To));
    std::vector<Wide> wide(static_cast<std::size_t>(std::min(bytes / unit, transfer_elements)));
    std::vector<To> narrow(wide.size());
    for (Index done = 0; done < bytes / unit; done += transfer_elements) {
      const Index n = std::min(bytes / unit - done, transfer_elements);
      read_once(tensor, scales, offset / unit + done, wide.data(), n);
      for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i)
        if constexpr (std::is_same_v<Wide, double> && std::is_same_v<To, bf16>)
          narrow[i] = bf16_nearest(wide[i]);
        else
          narrow[i] = To(wide[i]);
      std::memcpy(to + done * unit, narrow.data(), static_cast<std::size_t>(n * unit));
    }
  };
}

// Calls add(entry) for what becomes of a tensor that is no scales.
inline void add_converted(const SafetensorsTensor& tensor, const SafetensorsTensor* scales,
                          DType dtype, const std::shared_ptr<QuantizedBand>& memory, auto&& add) {
  SafetensorsEntry entry{tensor.name, dtype, tensor.shape, nullptr};
  if (dtype == tensor.dtype) {  // as it is, with its scales
    entry.fill = fill_from(tensor.data);
    add(std::move(entry));
    if (dtype == DType::f8_e4m3)
      add(SafetensorsEntry{scales->name, scales->dtype, scales->shape, fill_from(scales->data)});
    return;
  }
  if (dtype == DType::f8_e4m3)
    return add_quantized(
        tensor.name, tensor.shape,
        [&tensor](Index first, float* to, Index n) { read_once(tensor, nullptr, first, to, n); },
        memory, add);
  // The product of a code and a scale is exact in double, as is every stored type.
  if (dtype == DType::f64) entry.fill = fill_converted<double, double>(tensor, scales);
  if (dtype == DType::f32) entry.fill = fill_converted<double, float>(tensor, scales);
  if (dtype == DType::bf16) entry.fill = fill_converted<double, bf16>(tensor, scales);
  add(std::move(entry));
}

// What the converted checkpoint holds, in the order of a release.
inline std::vector<SafetensorsEntry> converted_entries(const CheckpointFiles& files,
                                                       const ModelConfig& config, DType storage) {
  std::vector<SafetensorsEntry> entries;
  const auto add = [&](SafetensorsEntry entry) { entries.push_back(std::move(entry)); };
  const auto memory = std::make_shared<QuantizedBand>();
  for (const auto& [name, tensor] : files.tensors()) {
    if (tensor->dtype == DType::f8_e4m3 && !scales_of(files, name))
      throw std::invalid_argument("convert_checkpoint: " + in_quotes(files.path()) + ": tensor " +
                                  in_quotes(name) + " is F8_E4M3 and has no scales");
    if (name.ends_with(scales_suffix)) {
      const auto* weight =
          files.find(std::string_view(name).substr(0, name.size() - scales_suffix.size()));
      if (weight && weight->dtype == DType::f8_e4m3) continue;  // goes with its weight
    }
    const bool keep = is_integer(tensor->dtype) || name.ends_with(".rotary_emb.inv_freq");
    add_converted(*tensor, scales_of(files, name),
                  keep ? tensor->dtype : stored_dtype(name, storage), memory, add);
  }
  sort_for_release(entries, config);
  return entries;
}

// Counts what is written through the entries.
inline void report_progress(std::vector<SafetensorsEntry>& entries,
                            const std::function<void(Index, Index)>& progress) {
  struct Count {
    std::function<void(Index, Index)> progress;
    Index done, total;
  };
  const auto count = std::make_shared<Count>(Count{progress, 0, 0});
  for (SafetensorsEntry& entry : entries) {
    count->total += bytes_of(entry);
    entry.fill = [fill = std::move(entry.fill), count](std::byte* to, Index offset, Index bytes) {
      fill(to, offset, bytes);
      count->done += bytes;
      count->progress(count->done, count->total);
    };
  }
}

inline std::string converted_config(std::string_view text, DType storage) {
  auto json = nlohmann::ordered_json::parse(text);
  set_storage(json, storage);
  return json.dump(2) + "\n";
}

}  // namespace detail

/// Writes the checkpoint folder `from` once more as `to`, with its weights stored as options say:
/// FP8 weights become code times scale, rounded once; others become FP8 by the recipe with which an
/// Fp8 model quantises (blocks of 128 x 128, scale = amax / 448), bit for bit; FP8 stays as it is
/// where FP8 is asked for. config.json is kept but for what says how weights are stored; tokenizer
/// and like files are copied. Memory is a few MiB, whatever the size; the folder appears at once.
///
/// Errors   std::invalid_argument "convert_checkpoint: 'from': ..." and what load_config,
///          CheckpointFiles and AtomicFolder throw, before anything is written: a bad option,
///          tensors that are not those of config.json, a target that exists.
/// Source   spec 9.3 and 9.4.
inline void convert_checkpoint(const std::string& from, const std::string& to,
                               const ConvertOptions& options) {
  check_at_most("convert_checkpoint", "least shard_bytes", 1, "shard_bytes", options.shard_bytes);
  const std::string config_path = from + "/config.json";
  const ModelConfig config = load_config(config_path);
  const auto layout = checkpoint_layout(config, options.dtype);  // refuses other types
  const CheckpointFiles files(from);
  detail::check_tensors("convert_checkpoint: " + detail::in_quotes(from) + ": ", config, files,
                        [&](auto&& f) {
                          for (const TensorLayout& tensor : layout)
                            if (!tensor.name.ends_with(detail::scales_suffix) &&
                                detail::extra_tensor(tensor.name, config).equal_to.empty())
                              f(tensor.name, tensor.shape);
                        });
  auto entries = detail::converted_entries(files, config, options.dtype);
  if (options.progress) detail::report_progress(entries, options.progress);
  const MappedFile text(config_path);
  AtomicFolder target(to, options.if_exists);
  copy_companions(from, target);
  AtomicFile config_file(target.file("config.json"));
  config_file.write(detail::converted_config(
      {static_cast<const char*>(static_cast<const void*>(text.data())), text.size()},
      options.dtype));
  config_file.commit();
  detail::save_shards(target, std::move(entries), options.shard_bytes, {});
  target.commit();
}

}  // namespace dsv3
