// Weights of a model to checkpoints in the published format.
#pragma once

#include <dsv3/core/precision.hpp>
#include <dsv3/io/companions.hpp>
#include <dsv3/io/config_json.hpp>
#include <dsv3/io/quantized_tensor.hpp>
#include <dsv3/io/shards.hpp>
#include <dsv3/io/tensor_transfer.hpp>
#include <unordered_map>

namespace dsv3 {

/// How a checkpoint is written.
struct SaveOptions {
  DType dtype = DType::bf16;          ///< F8_E4M3, BF16, F32 or F64: see checkpoint_layout
  Index shard_bytes = 5'000'000'000;  ///< of data in one file, at most
  IfExists if_exists = IfExists::replace;
  std::map<std::string, std::string> metadata = {};  ///< of each file, beside "format"
  std::string companions = "";  ///< a folder whose tokenizer and like files are copied; "": none
  std::map<std::string, std::string> texts = {};  ///< further files: name and content
  bool repeat_shared = true;  ///< MTP's copies of the embedding and the head, as releases have
};

namespace detail {

// Calls add(entry) for a tensor of the model and, where it becomes FP8, for its scales.
template <class Backend, class T, int R>
void add_tensor(Backend& backend, const std::string& name, const View<T, R>& view, DType dtype,
                const std::shared_ptr<QuantizedBand>& memory, auto&& add) {
  SafetensorsEntry entry{name, dtype, shape_of(view), nullptr};
  if (dtype == DType::f64) entry.fill = fill_from_backend<double>(backend, view);
  if (dtype == DType::f32) entry.fill = fill_from_backend<float>(backend, view);
  if (dtype == DType::bf16) entry.fill = fill_from_backend<bf16>(backend, view);
  if (dtype != DType::f8_e4m3) return add(std::move(entry));
  const auto read = [fill = fill_from_backend<float>(backend, view)](Index first, float* to,
                                                                     Index n) {
    constexpr auto unit = static_cast<Index>(sizeof(float));
    fill(static_cast<std::byte*>(static_cast<void*>(to)), first * unit, n * unit);
  };
  add_quantized(name, entry.shape, read, memory, add);
}

// Where the model multiplies codes of this format, they are what is written, not those that its
// masters would give: what was loaded from an FP8 checkpoint comes back byte for byte.
template <class Model>
void write_own_codes(Model& model, std::vector<SafetensorsEntry>& entries) {
  using P = typename Model::Precision;
  if constexpr (holds_checkpoint_codes<P>()) {
    std::unordered_map<std::string_view, SafetensorsEntry*> by_name;
    for (SafetensorsEntry& entry : entries) by_name[entry.name] = &entry;
    for_each_tensor<P>(
        [&](const std::string& name, const auto& operand) {
          if constexpr (requires { operand.codes; }) {
            auto& backend = model.backend();
            const auto& scales = operand.scales;
            const View<const float, 2> dense(scales.data, {scales.extents[0], scales.extents[1]});
            by_name.at(name)->fill = fill_from_backend<e4m3>(backend, operand.codes);
            by_name.at(scales_name(name))->fill = fill_from_backend<float>(backend, dense);
          }
        },
        model.operands());
  }
}

// Every tensor of the checkpoint, in the order of a release.
template <class Model>
std::vector<SafetensorsEntry> checkpoint_entries(Model& model, const SaveOptions& options) {
  std::vector<SafetensorsEntry> entries;
  const auto add = [&](SafetensorsEntry entry) { entries.push_back(std::move(entry)); };
  const auto memory = std::make_shared<QuantizedBand>();
  model.for_each_tensor([&](const std::string& name, auto view) {
    add_tensor(model.backend(), name, view, stored_dtype(name, options.dtype), memory, add);
  });
  if (options.dtype == DType::f8_e4m3) write_own_codes(model, entries);
  if (options.repeat_shared)
    for_each_repeated(model.config(), [&](const std::string& name, std::string_view of) {
      const auto original = std::find_if(entries.begin(), entries.end(),
                                         [&](const auto& entry) { return entry.name == of; });
      SafetensorsEntry copy = *original;
      copy.name = name;
      add(std::move(copy));
    });
  sort_for_release(entries, model.config());
  return entries;
}

}  // namespace detail

/// Writes a folder as releases are laid out: config.json and model.safetensors, or, where the data
/// exceeds shard_bytes, model-00001-of-000002.safetensors and so on with an index. In FP8 the
/// projections are codes with their scales (a model whose policy multiplies such codes writes its
/// own), the rest is BF16; a gate's bias is never narrower than F32. The whole folder appears at
/// once, through AtomicFolder; memory beside the model is a few MiB.
///
/// Types    Rounded to nearest once from the masters. FP8: scale = amax / 448 of each block of
///          128 x 128, as an Fp8 model quantises.
/// Errors   std::invalid_argument "save_checkpoint: ...", or from companions_of, before anything is
///          written; what AtomicFolder and AtomicFile throw. What was at `folder` stays.
/// Source   spec 9.1 to 9.5.
template <class Model>
void save_checkpoint(Model& model, const std::string& folder, const SaveOptions& options = {}) {
  const DType dtype = options.dtype;
  if (dtype != DType::f8_e4m3 && dtype != DType::bf16 && dtype != DType::f32 && dtype != DType::f64)
    throw std::invalid_argument(std::string("save_checkpoint: dtype (") + dtype_name(dtype) +
                                ") must be F8_E4M3, BF16, F32 or F64");
  check_at_most("save_checkpoint", "least shard_bytes", 1, "shard_bytes", options.shard_bytes);
  if (!options.companions.empty()) companions_of(options.companions);
  auto entries = detail::checkpoint_entries(model, options);
  AtomicFolder target(folder, options.if_exists);
  save_config(target.file("config.json"), model.config(), dtype);
  if (!options.companions.empty()) copy_companions(options.companions, target);
  for (const auto& [name, content] : options.texts) {
    AtomicFile file(target.file(name));
    file.write(content);
    file.commit();
  }
  detail::save_shards(target, std::move(entries), options.shard_bytes, options.metadata);
  target.commit();
}

/// Writes a folder with config.json and one model.safetensors, in which each tensor stands once:
/// save_checkpoint without shards and without MTP's copies of the embedding and the head.
///
/// Errors   as save_checkpoint.
template <class Model>
void save_weights(Model& model, const std::string& folder, DType dtype = DType::f32,
                  IfExists if_exists = IfExists::replace) {
  save_checkpoint(model, folder,
                  {.dtype = dtype,
                   .shard_bytes = std::numeric_limits<Index>::max(),
                   .if_exists = if_exists,
                   .repeat_shared = false});
}

}  // namespace dsv3
