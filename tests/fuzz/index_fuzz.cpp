// The input is a model.safetensors.index.json beside two good shards.
#include <dsv3/io/checkpoint_files.hpp>

#include "fuzz.hpp"

namespace {

// Two tensors of one byte each.
std::string shard(const std::string& first, const std::string& second) {
  const auto entry = [](const std::string& name, const char* offsets) {
    return "\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":" + offsets + "}";
  };
  const std::string header = "{" + entry(first, "[0,1]") + "," + entry(second, "[1,2]") + "}";
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  return file + header + "xy";
}

}  // namespace

int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  static const fuzz::Folder folder;
  static const bool written = [&] {
    folder.write("a", shard("x", "y"));
    folder.write("b", shard("z", "w"));
    return true;
  }();
  fuzz::require(written, "no shards");
  folder.write("model.safetensors.index.json", fuzz::text(data, size));
  fuzz::run(fuzz::text(data, size), [&] {
    const dsv3::CheckpointFiles files(folder.path());
    fuzz::require(files.tensors().size() % 2 == 0, "half of a shard is taken");
    for (const auto& [name, tensor] : files.tensors())
      fuzz::require(tensor->name == name && *tensor->data >= std::byte{'x'},
                    "a tensor is not what its shard holds");
  });
  return 0;
}
