// Writing safetensors files, atomically and without a second copy of the tensors.
#pragma once

#include <algorithm>
#include <dsv3/io/atomic_file.hpp>
#include <dsv3/io/safetensors.hpp>
#include <functional>

namespace dsv3 {

/// A tensor to be written. `fill(to, offset, bytes)` writes its bytes [offset, offset + bytes), in
/// row-major order, to host memory; it is called for ascending, adjacent ranges, each of whole
/// elements.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;
  std::vector<Index> shape;
  std::function<void(std::byte* to, Index offset, Index bytes)> fill;
};

/// A `fill` for dense host memory, which must stay until the file is written.
inline auto fill_from(const void* memory) {
  return [memory](std::byte* to, Index offset, Index bytes) {
    std::memcpy(to, static_cast<const std::byte*>(memory) + offset,
                static_cast<std::size_t>(bytes));
  };
}

namespace detail {

// Sorts the entries as the format wants them and returns the header with its length before it.
inline std::string safetensors_header(const std::string& path,
                                      std::vector<SafetensorsEntry>& entries,
                                      const std::map<std::string, std::string>& metadata) {
  const std::string where = "save_safetensors: " + in_quotes(path) + ": ";
  const auto fail = [&](const std::string& text) { throw std::invalid_argument(where + text); };
  const auto json = [&](const std::string& text) {
    try {
      return Json(text).dump();
    } catch (const Json::exception&) {
      throw std::invalid_argument(where + in_quotes(text) + " must be UTF-8");
    }
  };
  std::sort(entries.begin(), entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
            });
  std::vector<std::string_view> names;
  for (const SafetensorsEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) fail("duplicate tensor " + in_quotes(*twice));

  std::string header(8, '\0');
  header += '{';
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) header += json(key) + ":" + json(value) + ",";
    header.back() = '}';
    header += ',';
  }
  Index offset = 0;
  for (const SafetensorsEntry& entry : entries) {
    const std::string what = "tensor " + in_quotes(entry.name);
    if (entry.name == "__metadata__") fail(what + " has the name of the metadata");
    const std::optional<Index> count = element_count(entry.shape, dtype_bytes(entry.dtype));
    const bool negative = std::any_of(entry.shape.begin(), entry.shape.end(),
                                      [](Index extent) { return extent < 0; });
    Index end;
    if (negative || !count ||
        __builtin_add_overflow(offset, *count * dtype_bytes(entry.dtype), &end)) {
      fail(what + ": shape (" + shape_text(entry.shape.data(), entry.shape.size()) +
           ") must not be negative or too large");
    } else {
      header += json(entry.name) + ":{\"dtype\":\"" + dtype_name(entry.dtype) + "\",\"shape\":[";
      for (std::size_t d = 0; d < entry.shape.size(); ++d) {
        if (d > 0) header += ',';
        header += std::to_string(entry.shape[d]);
      }
      header += "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(end) + "]},";
      offset = end;
    }
  }
  if (header.back() == ',') header.pop_back();
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');  // so that the data is aligned to 8 bytes
  const std::uint64_t length = header.size() - 8;
  if (length > static_cast<std::uint64_t>(SafetensorsFile::most_header_bytes))
    fail("header length (" + std::to_string(length) + ") must be at most the limit (" +
         std::to_string(SafetensorsFile::most_header_bytes) + ")");
  std::memcpy(header.data(), &length, 8);
  return header;
}

}  // namespace detail

/// Writes the tensors to a file through AtomicFile, in the format's own order: by descending rank
/// of dtype, then by name. Equal entries give equal bytes. The extra memory is one buffer of 4 MiB.
///
/// Errors   std::invalid_argument "save_safetensors: 'path': ..." before anything is written; what
///          AtomicFile and `fill` throw. Either way what was at `path` stays.
/// Source   spec 9.5.
inline void save_safetensors(const std::string& path, std::vector<SafetensorsEntry> entries,
                             const std::map<std::string, std::string>& metadata = {}) {
  constexpr Index chunk = Index{4} << 20;
  const std::string header = detail::safetensors_header(path, entries, metadata);
  AtomicFile file(path);
  file.write(header);
  std::vector<std::byte> buffer;
  for (const SafetensorsEntry& entry : entries) {
    const Index unit = dtype_bytes(entry.dtype);
    const Index bytes = *detail::element_count(entry.shape, unit) * unit;
    for (Index offset = 0; offset < bytes; offset += chunk) {
      const Index n = std::min(chunk, bytes - offset);
      if (static_cast<Index>(buffer.size()) < n) buffer.resize(static_cast<std::size_t>(n));
      entry.fill(buffer.data(), offset, n);
      file.write(buffer.data(), n);
    }
  }
  file.commit();
}

}  // namespace dsv3
