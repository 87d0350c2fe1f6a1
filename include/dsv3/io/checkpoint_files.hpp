// CheckpointFiles: the tensors of a published checkpoint, whether one file or many shards.
#pragma once

#include <dsv3/io/checkpoint_index.hpp>
#include <dsv3/io/safetensors.hpp>
#include <filesystem>

namespace dsv3 {

/// The tensors of a checkpoint by name. `path` is a safetensors file, or a folder with a
/// model.safetensors.index.json and its shards, or with a model.safetensors. The files must not
/// change while the object lives.
///
/// Errors   std::invalid_argument "CheckpointFiles: 'path': ...": no checkpoint there; an index
///          that names a missing file or disagrees with the shards; what CheckpointIndex and
///          SafetensorsFile throw.
/// Source   spec 9.4.
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
      open_shards(CheckpointIndex(index));
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

  void open_shards(const CheckpointIndex& index) {
    for (const std::string& shard : index.files())  // all of them, before the first is opened
      if (!std::filesystem::exists(path_ + "/" + shard))
        fail(index.path(), "file " + detail::in_quotes(shard) + " is missing");
    files_.reserve(index.files().size());
    for (const std::string& shard : index.files()) files_.emplace_back(path_ + "/" + shard);
    for (const auto& [name, file] : index.tensors()) {
      const SafetensorsTensor* tensor = files_[file].find(name);
      if (!tensor)
        fail(index.path(), "tensor " + detail::in_quotes(name) + " is not in " +
                               detail::in_quotes(index.files()[file]));
      tensors_.emplace_hint(tensors_.end(), name, tensor);
    }
    for (const SafetensorsFile& file : files_)
      for (const SafetensorsTensor& tensor : file.tensors()) {
        const auto at = tensors_.find(tensor.name);
        if (at == tensors_.end() || at->second != &tensor)
          fail(file.path(), "tensor " + detail::in_quotes(tensor.name) +
                                " is not what the index has for this file");
      }
  }

  std::string path_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, const SafetensorsTensor*, std::less<>> tensors_;
};

}  // namespace dsv3
