// Reading safetensors files, strictly.
#pragma once

#include <dsv3/io/mapped_file.hpp>
#include <dsv3/io/safetensors_header.hpp>

namespace dsv3 {

/// A safetensors file, mapped for reading. Everything the format requires is checked before the
/// object exists: sizes, the header's JSON, names, types, shapes, and that the tensors tile the
/// data without gap or overlap. The file must not change while the object lives.
///
/// Errors   std::invalid_argument "SafetensorsFile: 'path': what is wrong"; what MappedFile throws.
/// Source   safetensors README, safetensors/src/tensor.rs; spec 9.5.
class SafetensorsFile {
 public:
  static constexpr Index most_header_bytes = 100'000'000;

  explicit SafetensorsFile(const std::string& path) : path_(path), file_(path) {
    detail::SafetensorsHeader header("SafetensorsFile: " + detail::in_quotes(path));
    const auto size = static_cast<Index>(file_.size());
    if (size < 8) header.fail("file size (" + std::to_string(size) + ") must be at least 8");
    std::uint64_t length;
    std::memcpy(&length, file_.data(), 8);
    check_length(header, length, most_header_bytes, "limit");
    check_length(header, length, size - 8, "bytes that follow");
    const auto header_bytes = static_cast<Index>(length);
    const std::string_view text(
        static_cast<const char*>(static_cast<const void*>(file_.data())) + 8,
        static_cast<std::size_t>(header_bytes));
    if (text.empty() || text.front() != '{') header.fail("header must begin with '{'");
    detail::parse_json(text, header);
    place_tensors(header, file_.data() + 8 + header_bytes, size - 8 - header_bytes);
    metadata_ = std::move(header.metadata);
  }

  const std::string& path() const { return path_; }

  /// In the order of their bytes.
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }

  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The tensor of this name, or null.
  const SafetensorsTensor* find(std::string_view name) const {
    const auto found =
        std::lower_bound(by_name_.begin(), by_name_.end(), name,
                         [&](std::size_t i, std::string_view n) { return tensors_[i].name < n; });
    if (found == by_name_.end() || tensors_[*found].name != name) return nullptr;
    return &tensors_[*found];
  }

  /// The tensor of this name. Errors: std::invalid_argument where there is none.
  const SafetensorsTensor& at(std::string_view name) const {
    if (const SafetensorsTensor* tensor = find(name)) return *tensor;
    throw std::invalid_argument("SafetensorsFile: " + detail::in_quotes(path_) + ": no tensor " +
                                detail::in_quotes(name));
  }

 private:
  static void check_length(const detail::SafetensorsHeader& header, std::uint64_t length,
                           Index most, const char* name) {
    if (length > static_cast<std::uint64_t>(most))
      header.fail("header length (" + std::to_string(length) + ") must be at most the " + name +
                  " (" + std::to_string(most) + ")");
  }

  // Checks names and tiling, and fills tensors_ and by_name_.
  void place_tensors(detail::SafetensorsHeader& header, const std::byte* data, Index data_bytes) {
    const std::size_t n = header.tensors.size();
    std::vector<std::string_view> names;
    for (const SafetensorsTensor& tensor : header.tensors) names.push_back(tensor.name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) header.fail("duplicate tensor " + detail::in_quotes(*twice));
    std::vector<std::size_t> order(n);
    for (std::size_t i = 0; i < n; ++i) order[i] = i;
    // An empty tensor before the one that begins at the same place; then as the header has them.
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return header.offsets[a] < header.offsets[b];
    });
    Index end = 0;
    std::string before = "start of the data";
    tensors_.reserve(n);
    for (const std::size_t i : order) {
      SafetensorsTensor& tensor = header.tensors[i];
      const auto [begin, next] = header.offsets[i];
      if (begin != end)
        header.fail("tensor " + detail::in_quotes(tensor.name) + ": begin (" +
                    std::to_string(begin) + ") must equal the " + before + " (" +
                    std::to_string(end) + "): " + (begin < end ? "overlap" : "gap"));
      if (next > data_bytes)
        header.fail("tensor " + detail::in_quotes(tensor.name) + ": end (" + std::to_string(next) +
                    ") must be at most the data's bytes (" + std::to_string(data_bytes) + ")");
      tensor.data = data + begin;
      end = next;
      before = "end of " + detail::in_quotes(tensor.name);
      tensors_.push_back(std::move(tensor));
    }
    if (end != data_bytes)
      header.fail("data's bytes (" + std::to_string(data_bytes) + ") must equal the " + before +
                  " (" + std::to_string(end) + ")");
    by_name_.resize(n);
    for (std::size_t i = 0; i < n; ++i) by_name_[i] = i;
    std::sort(by_name_.begin(), by_name_.end(),
              [&](std::size_t a, std::size_t b) { return tensors_[a].name < tensors_[b].name; });
  }

  std::string path_;
  MappedFile file_;
  std::vector<SafetensorsTensor> tensors_;
  std::vector<std::size_t> by_name_;  // indices into tensors_
  std::map<std::string, std::string> metadata_;
};

}  // namespace dsv3
