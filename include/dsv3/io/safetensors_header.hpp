// One tensor of a safetensors file, and the strict reading of the file's header.
#pragma once

#include <algorithm>
#include <dsv3/core/check.hpp>
#include <dsv3/io/dtype.hpp>
#include <dsv3/io/json.hpp>
#include <map>
#include <vector>

namespace dsv3 {

namespace detail {

// The number of elements, or nothing where `unit` times the product of the extents, zeros left out,
// does not fit into Index.
inline std::optional<Index> element_count(const std::vector<Index>& shape, Index unit) {
  Index product = unit, count = 1;
  for (const Index n : shape) {
    if (n != 0 && __builtin_mul_overflow(product, n, &product)) return std::nullopt;
    count *= n;
  }
  return count;
}

inline std::string shape_text(const Index* extents, std::size_t rank) {
  std::string text = "[";
  for (std::size_t d = 0; d < rank; ++d) text += (d ? ", " : "") + std::to_string(extents[d]);
  return text + "]";
}

}  // namespace detail

/// One tensor of a file: what its header says, and where its bytes lie, which need not be aligned.
struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<Index> shape;
  const std::byte* data = nullptr;
  Index bytes = 0;

  /// The number of elements.
  Index size() const { return bytes / dtype_bytes(dtype); }

  /// Converts elements [first, first + n), in row-major order, to host memory.
  /// Errors   std::invalid_argument where the range leaves the tensor or the type cannot become
  ///          To (see convert_elements).
  template <class To>
  void read(Index first, To* to, Index n) const {
    if (first < 0 || n < 0 || first > size() - n)
      fail("elements [" + std::to_string(first) + ", " + std::to_string(first + n) +
           ") must lie in [0, " + std::to_string(size()) + ")");
    try {
      convert_elements(dtype, data + first * dtype_bytes(dtype), to, n);
    } catch (const std::invalid_argument& error) {
      fail(error.what());
    }
  }

  /// Converts the whole tensor into a view of host memory with exactly its shape.
  template <class To, int R>
  void read(View<To, R> to) const {
    check_shape(to.extents, R);
    if constexpr (R == 1) {
      read(0, to.data, size());
    } else if (to.dense()) {
      read(0, to.data, size());
    } else {
      read_rows(to, 0);
    }
  }

  /// The whole tensor as a vector, in row-major order.
  template <class To>
  std::vector<To> values() const {
    std::vector<To> to(static_cast<std::size_t>(size()));
    read(0, to.data(), size());
    return to;
  }

  /// Throws std::invalid_argument unless the shape is this.
  void check_shape(const Index* extents, std::size_t rank) const {
    if (!std::equal(shape.begin(), shape.end(), extents, extents + rank))
      fail("shape (" + detail::shape_text(shape.data(), shape.size()) + ") must equal (" +
           detail::shape_text(extents, rank) + ")");
  }

 private:
  [[noreturn]] void fail(const std::string& text) const {
    throw std::invalid_argument("SafetensorsTensor::read: " + detail::in_quotes(name) + ": " +
                                text);
  }

  template <class To, int R>
  void read_rows(View<To, R> to, Index first) const {
    if constexpr (R == 1) {
      read(first, to.data, to.size());
    } else {
      for (Index i = 0; i < to.extent(0); ++i) read_rows(to[i], first + i * to[i].size());
    }
  }
};

namespace detail {

// Receives a header from nlohmann's SAX parser. Every value has one place where it may stand, so
// nesting is bounded, and memory by the header's length.
class SafetensorsHeader : public JsonHandler {
 public:
  static constexpr std::size_t most_metadata = 100'000;

  explicit SafetensorsHeader(std::string place) : JsonHandler{std::move(place)} {}

  std::vector<SafetensorsTensor> tensors;
  std::vector<std::array<Index, 2>> offsets;  // of each tensor
  std::map<std::string, std::string> metadata;

  bool null() { wrong_kind("null"); }
  bool boolean(bool) { wrong_kind("a boolean"); }
  bool number_float(double, const std::string&) { wrong_kind("a real number"); }
  bool number_integer(std::int64_t value) {
    return number(value >= 0 ? static_cast<std::uint64_t>(value) : ~std::uint64_t{0},
                  std::to_string(value));
  }
  bool number_unsigned(std::uint64_t value) { return number(value, std::to_string(value)); }

  bool string(std::string& value) {
    if (at_ == At::metadata) {
      metadata[key_] = std::move(value);
    } else if (at_ == At::tensor && key_ == "dtype") {
      const std::optional<DType> dtype = parse_dtype(value);
      if (!dtype) fail(place() + ": unknown dtype " + in_quotes(value));
      tensors.back().dtype = *dtype;
    } else {
      wrong_kind("a string");
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (at_ == At::start) {
      at_ = At::top;
    } else if (at_ == At::top && key_ == "__metadata__") {
      at_ = At::metadata;
    } else if (at_ == At::top) {
      at_ = At::tensor;
      tensors.emplace_back().name = key_;
      offsets.emplace_back();
      dtype_seen_ = shape_seen_ = offsets_seen_ = false;
    } else {
      wrong_kind("an object");
    }
    return true;
  }

  bool key(std::string& name) {
    if (at_ == At::top && name == "__metadata__") {
      if (std::exchange(metadata_seen_, true)) fail("duplicate key '__metadata__'");
    } else if (at_ == At::metadata) {
      if (metadata.count(name)) fail("__metadata__: duplicate key " + in_quotes(name));
      if (metadata.size() == most_metadata)
        fail("__metadata__: entries must be at most " + std::to_string(most_metadata));
    } else if (at_ == At::tensor) {
      bool* const seen = name == "dtype"          ? &dtype_seen_
                         : name == "shape"        ? &shape_seen_
                         : name == "data_offsets" ? &offsets_seen_
                                                  : nullptr;
      if (!seen) fail(place() + ": unknown key " + in_quotes(name));
      if (std::exchange(*seen, true)) fail(place() + ": duplicate key " + in_quotes(name));
    }
    key_ = std::move(name);
    return true;
  }

  bool end_object() {
    if (at_ == At::tensor) {
      if (!dtype_seen_) fail(place() + ": missing key 'dtype'");
      if (!shape_seen_) fail(place() + ": missing key 'shape'");
      if (!offsets_seen_) fail(place() + ": missing key 'data_offsets'");
      finish_tensor();
    }
    at_ = At::top;
    return true;
  }

  bool start_array(std::size_t) {
    if (at_ != At::tensor || key_ == "dtype") wrong_kind("an array");
    at_ = key_ == "shape" ? At::shape : At::offsets;
    count_ = 0;
    return true;
  }

  bool end_array() {
    if (at_ == At::offsets && count_ != 2) wrong_offset_count();
    at_ = At::tensor;
    return true;
  }

 private:
  enum class At { start, top, metadata, tensor, shape, offsets };

  // The value now read, for messages.
  std::string place() const {
    switch (at_) {
      case At::start:
        return "header";
      case At::top:
        return key_ == "__metadata__" ? key_ : "tensor " + in_quotes(key_);
      case At::metadata:
        return "__metadata__ " + in_quotes(key_);
      default:
        return "tensor " + in_quotes(tensors.back().name);
    }
  }

  [[noreturn]] void wrong_kind(const char* found) const {
    const char* wanted = "an object";
    std::string what = place();
    if (at_ == At::metadata) wanted = "a string";
    if (at_ == At::tensor) {
      wanted = key_ == "dtype" ? "a string" : "an array";
      what += ": " + key_;
    }
    if (at_ == At::shape || at_ == At::offsets) {
      wanted = "an integer";
      what += ": " + key_ + "[" + std::to_string(count_) + "]";
    }
    fail(what + " must be " + wanted + ", found " + found);
  }

  [[noreturn]] void wrong_offset_count() const {
    fail(place() + ": data_offsets must hold 2 numbers, found " +
         (count_ < 2 ? std::to_string(count_) : "more"));
  }

  bool number(std::uint64_t value, const std::string& text) {
    if (at_ != At::shape && at_ != At::offsets) wrong_kind("an integer");
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
    if (value > most)
      fail(place() + ": " + key_ + "[" + std::to_string(count_) + "] (" + text +
           ") must be from 0 to " + std::to_string(most));
    if (at_ == At::offsets) {
      if (count_ == 2) wrong_offset_count();
      offsets.back()[count_] = static_cast<Index>(value);
    } else {
      if (count_ == 32) fail(place() + ": shape must have at most 32 dimensions");
      tensors.back().shape.push_back(static_cast<Index>(value));
    }
    ++count_;
    return true;
  }

  void finish_tensor() {
    SafetensorsTensor& tensor = tensors.back();
    const auto [begin, end] = offsets.back();
    const Index unit = dtype_bytes(tensor.dtype);
    const std::optional<Index> count = element_count(tensor.shape, unit);
    const std::string shape = shape_text(tensor.shape.data(), tensor.shape.size());
    if (!count) fail(place() + ": shape (" + shape + ") has too many elements");
    if (begin > end)
      fail(place() + ": begin (" + std::to_string(begin) + ") must be at most end (" +
           std::to_string(end) + ")");
    if (end - begin != *count * unit)
      fail(place() + ": bytes (" + std::to_string(end - begin) + ") must equal those of shape " +
           shape + " of " + dtype_name(tensor.dtype) + " (" + std::to_string(*count * unit) + ")");
    tensor.bytes = end - begin;
  }

  At at_ = At::start;
  std::string key_;
  std::size_t count_ = 0;
  bool metadata_seen_ = false, dtype_seen_ = false, shape_seen_ = false, offsets_seen_ = false;
};

}  // namespace detail

}  // namespace dsv3
