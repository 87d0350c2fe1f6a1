// CheckpointIndex: which file of a sharded checkpoint holds which tensor.
#pragma once

#include <dsv3/io/checkpoint_layout.hpp>
#include <dsv3/io/json.hpp>
#include <dsv3/io/mapped_file.hpp>
#include <unordered_set>

namespace dsv3 {

/// A model.safetensors.index.json. Nothing but this file is opened. A name of a file must be a
/// plain one, so that nothing outside the folder is named; symbolic links in the folder are
/// followed, as the folders of download caches consist of them.
///
/// Errors   std::invalid_argument "CheckpointIndex: 'path': ...": not JSON, a duplicate key, a
///          value of the wrong kind, a file that is not in the same folder; what MappedFile throws.
/// Source   spec 9.4. File names are taken as they are: their pattern differs between releases.
class CheckpointIndex {
 public:
  struct Tensor {
    std::string name;
    std::size_t file;  // index into files()
  };

  explicit CheckpointIndex(const std::string& path) : path_(path) {
    const MappedFile text(path);
    if (text.size() > std::size_t{1} << 26)
      fail("bytes (" + std::to_string(text.size()) + ") must be at most 67108864");
    const detail::Json json = detail::parse_json(
        {static_cast<const char*>(static_cast<const void*>(text.data())), text.size()},
        "CheckpointIndex: " + detail::in_quotes(path));
    if (!json.is_object()) fail(std::string("must hold an object, found ") + detail::kind_of(json));
    const auto map = json.find("weight_map");
    if (map == json.end()) fail("missing key 'weight_map'");
    if (!map->is_object())
      fail(std::string("weight_map must be an object, found ") + detail::kind_of(*map));
    std::map<std::string_view, std::size_t> numbers;
    for (const auto& [name, file] : map->items()) {
      const std::string where = "weight_map " + detail::in_quotes(name);
      if (!file.is_string()) fail(where + " must be a string, found " + detail::kind_of(file));
      const auto& shard = file.get_ref<const std::string&>();
      if (shard.empty() || shard == "." || shard == ".." ||
          shard.find_first_of(std::string("/\0", 2)) != std::string::npos)
        fail(where + ": " + detail::in_quotes(shard) +
             " must be the name of a file in the same folder");
      numbers.emplace(shard, 0);
    }
    for (auto& [file, number] : numbers) {
      number = files_.size();
      files_.emplace_back(file);
    }
    for (const auto& [name, file] : map->items())
      tensors_.push_back({name, numbers.at(file.get_ref<const std::string&>())});
  }

  const std::string& path() const { return path_; }

  /// In the order of their names.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const std::vector<std::string>& files() const { return files_; }

  /// True where there is a tensor of this name.
  bool has(std::string_view name) const {
    const auto at = std::lower_bound(
        tensors_.begin(), tensors_.end(), name,
        [](const Tensor& tensor, std::string_view wanted) { return tensor.name < wanted; });
    return at != tensors_.end() && at->name == name;
  }

 private:
  [[noreturn]] void fail(const std::string& text) const {
    throw std::invalid_argument("CheckpointIndex: " + detail::in_quotes(path_) + ": " + text);
  }

  std::string path_;
  std::vector<Tensor> tensors_;
  std::vector<std::string> files_;
};

/// Throws unless the index names exactly the tensors of a checkpoint of this model, before any
/// shard is opened. Scales, and MTP's copies of the embedding and the head, may be there or not;
/// MTP's tensors are ignored where the config has no MTP, rotary_emb.inv_freq always.
///
/// Errors   std::invalid_argument "check_index: 'path': ...": a missing or an unknown tensor.
inline void check_index(const CheckpointIndex& index, const ModelConfig& config) {
  const std::string where = "check_index: " + detail::in_quotes(index.path()) + ": ";
  const std::vector<TensorLayout> layout = checkpoint_layout(config, DType::f32);
  std::unordered_set<std::string_view> known;
  for (const TensorLayout& tensor : layout) {
    known.insert(tensor.name);
    if (!index.has(tensor.name) && detail::extra_tensor(tensor.name, config).equal_to.empty())
      throw std::invalid_argument(where + "missing tensor " + detail::in_quotes(tensor.name));
  }
  for (const auto& [name, file] : index.tensors()) {
    if (known.count(name)) continue;
    std::string_view weight = name;
    if (weight.ends_with(detail::scales_suffix)) {
      weight.remove_suffix(detail::scales_suffix.size());
      if (known.count(weight) && index.has(weight)) continue;
    }
    if (!detail::extra_tensor(weight, config).ignored)
      throw std::invalid_argument(where + "unknown tensor " + detail::in_quotes(name) + " in " +
                                  detail::in_quotes(index.files()[file]));
  }
}

}  // namespace dsv3
