// Writing tensors as one safetensors file or as shards with an index.
#pragma once

#include <cstdio>
#include <dsv3/io/safetensors_writer.hpp>

namespace dsv3 {

namespace detail {

inline Index bytes_of(const SafetensorsEntry& entry) {
  const Index unit = dtype_bytes(entry.dtype);
  return element_count(entry.shape, unit).value_or(0) * unit;
}

// "model-00001-of-000163.safetensors", as the release names them (spec 9.4).
inline std::string shard_name(std::size_t number, std::size_t count) {
  char name[80];
  std::snprintf(name, sizeof name, "model-%05zu-of-%06zu.safetensors", number, count);
  return name;
}

// Fills files one after the other, in the order of the entries, with at most shard_bytes of data
// each; a tensor that is larger has one for itself.
inline std::vector<std::vector<SafetensorsEntry>> split_into_shards(
    std::vector<SafetensorsEntry> entries, Index shard_bytes) {
  std::vector<std::vector<SafetensorsEntry>> shards(1);
  Index filled = 0;
  for (SafetensorsEntry& entry : entries) {
    const Index bytes = bytes_of(entry);
    if (!shards.back().empty() && bytes > shard_bytes - filled) {
      shards.emplace_back();
      filled = 0;
    }
    filled = bytes > shard_bytes ? shard_bytes : filled + bytes;
    shards.back().push_back(std::move(entry));
  }
  return shards;
}

// Writes the entries into a folder: model.safetensors where one file holds them, else shards and
// model.safetensors.index.json.
inline void save_shards(const AtomicFolder& folder, std::vector<SafetensorsEntry> entries,
                        Index shard_bytes, std::map<std::string, std::string> metadata) {
  metadata.emplace("format", "pt");  // other software wants to be told: laid out as in PyTorch
  auto shards = split_into_shards(std::move(entries), shard_bytes);
  if (shards.size() == 1) {
    save_safetensors(folder.file("model.safetensors"), std::move(shards[0]), metadata);
    return;
  }
  Index total = 0;
  Json map;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(i + 1, shards.size());
    for (const SafetensorsEntry& entry : shards[i]) {
      total += bytes_of(entry);
      map[entry.name] = name;
    }
    save_safetensors(folder.file(name), std::move(shards[i]), metadata);
    shards[i].clear();
  }
  AtomicFile index(folder.file("model.safetensors.index.json"));
  index.write(Json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n");
  index.commit();
}

}  // namespace detail

}  // namespace dsv3
