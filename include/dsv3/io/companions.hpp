// The files of a checkpoint folder beside its weights and its config.json.
#pragma once

#include <algorithm>
#include <dsv3/io/atomic_file.hpp>
#include <dsv3/io/mapped_file.hpp>
#include <vector>

namespace dsv3 {

/// True for the files that go with a checkpoint whatever its weights are stored in: tokenizer,
/// special tokens, generation settings, chat template, code and licence.
inline bool is_companion(std::string_view name) {
  for (const std::string_view exact :
       {"generation_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
        "merges.txt", "tiktoken.model"})
    if (name == exact) return true;
  return name.starts_with("tokenizer") || name.starts_with("chat_template") ||
         name.starts_with("LICENSE") || name.ends_with(".py");
}

/// The names of those files in a folder, sorted. Symbolic links to files count as files.
/// Errors   std::invalid_argument "companions_of: 'path' is no folder".
inline std::vector<std::string> companions_of(const std::string& folder) {
  detail::check_path("companions_of", folder);
  if (!std::filesystem::is_directory(folder))
    throw std::invalid_argument("companions_of: " + detail::in_quotes(folder) + " is no folder");
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::string name = entry.path().filename().string();
    if (entry.is_regular_file() && is_companion(name)) names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// Copies those files. Errors: what companions_of, MappedFile and AtomicFile throw.
inline void copy_companions(const std::string& from, const AtomicFolder& to) {
  for (const std::string& name : companions_of(from)) {
    const MappedFile file(from + "/" + name);
    AtomicFile copy(to.file(name));
    copy.write(file.data(), static_cast<Index>(file.size()));
    copy.commit();
  }
}

}  // namespace dsv3
