// CheckpointFiles: the tensors of a published checkpoint, whether one file or many shards.
#pragma once

#include <dsv3/io/safetensors.hpp>
#include <filesystem>

namespace dsv3 {

/// The tensors of a checkpoint by name. `path` is a safetensors file, or a folder with a
/// model.safetensors.index.json and its shards, or with a model.safetensors. The files must not
/// change while the object lives.
///
/// Errors   std::invalid_argument "CheckpointFiles: 'path': ...": no checkpoint there; an index
///          that is malformed, names a file outside the folder, or disagrees with the shards; what
///          SafetensorsFile throws.
/// Source   spec 9.4. File names are taken from the index: their pattern differs between releases.
class CheckpointFiles {
 public:
  explicit CheckpointFiles(const std::string& path) : path_(path) {
    namespace fs = std::filesystem;
    detail::check_path("CheckpointFiles", path);
    const std::string index = path + "/model.safetensors.index.json";
    const std::string single = path + "/model.safetensors";
    if (!fs::exists(path)) fail(path, "no such file or folder");
    if (!fs::is_directory(path)) {
      files_.emplace_back(path);
    } else if (fs::exists(index)) {
      open_shards(index);
      return;
    } else if (fs::exists(single)) {
      files_.emplace_back(single);
    } else {
      fail(path, "holds neither model.safetensors nor model.safetensors.index.json");
    }
    for (const SafetensorsTensor& tensor : files_.front().tensors())
      tensors_[tensor.name] = &tensor;
  }

  const std::string& path() const { return path_; }

  /// In the order of their names.
  const std::map<std::string, const SafetensorsTensor*, std::less<>>& tensors() const {
    return tensors_;
  }

  /// The tensor of this name, or null.
  const SafetensorsTensor* find(std::string_view name) const {
    const auto at = tensors_.find(name);
    return at == tensors_.end() ? nullptr : at->second;
  }

 private:
  [[noreturn]] static void fail(const std::string& path, const std::string& text) {
    throw std::invalid_argument("CheckpointFiles: " + detail::in_quotes(path) + ": " + text);
  }

  void open_shards(const std::string& index) {
    const MappedFile text(index);
    if (text.size() > std::size_t{1} << 26)
      fail(index, "bytes (" + std::to_string(text.size()) + ") must be at most 67108864");
    const detail::Json json = detail::parse_json(
        {static_cast<const char*>(static_cast<const void*>(text.data())), text.size()},
        "CheckpointFiles: " + detail::in_quotes(index));
    if (!json.is_object()) fail(index, std::string("must hold an object, found ") + kind_of(json));
    const auto map = json.find("weight_map");
    if (map == json.end()) fail(index, "missing key 'weight_map'");
    if (!map->is_object())
      fail(index, std::string("weight_map must be an object, found ") + kind_of(*map));
    std::map<std::string, std::size_t> shards;
    for (const auto& [name, file] : map->items()) {
      if (!file.is_string())
        fail(index,
             "weight_map " + detail::in_quotes(name) + " must be a string, found " + kind_of(file));
      const auto& shard = file.get_ref<const std::string&>();
      if (shard.empty() || shard == "." || shard == ".." ||
          shard.find_first_of(std::string("/\0", 2)) != std::string::npos)
        fail(index, "weight_map " + detail::in_quotes(name) + ": " + detail::in_quotes(shard) +
                        " must be the name of a file in the same folder");
      shards.emplace(shard, 0);
    }
    files_.reserve(shards.size());
    for (auto& [shard, number] : shards) {
      number = files_.size();
      files_.emplace_back(path_ + "/" + shard);
    }
    for (const auto& [name, file] : map->items()) {
      const auto& shard = file.get_ref<const std::string&>();
      const SafetensorsTensor* tensor = files_[shards[shard]].find(name);
      if (!tensor)
        fail(index, "tensor " + detail::in_quotes(name) + " is not in " + detail::in_quotes(shard));
      tensors_[name] = tensor;
    }
    for (const SafetensorsFile& file : files_)
      for (const SafetensorsTensor& tensor : file.tensors()) {
        const auto at = tensors_.find(tensor.name);
        if (at == tensors_.end() || at->second != &tensor)
          fail(file.path(), "tensor " + detail::in_quotes(tensor.name) +
                                " is not what the index has for this file");
      }
  }
  static const char* kind_of(const detail::Json& value) { return detail::kind_of(value); }

  std::string path_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, const SafetensorsTensor*, std::less<>> tensors_;
};

}  // namespace dsv3
