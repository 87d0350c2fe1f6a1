// ConfigReader: the members of a JSON object, each with a clear error.
#pragma once

#include <dsv3/io/json.hpp>
#include <initializer_list>
#include <limits>
#include <optional>

namespace dsv3::detail {

// Reads the members of one JSON object. Null is as if the key were absent, except where said.
class ConfigReader {
 public:
  ConfigReader(const Json& object, std::string where, std::string prefix = "")
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {}

  [[noreturn]] void fail(const std::string& text) const {
    throw std::invalid_argument(where_ + ": " + text);
  }
  std::string name(const char* key) const { return prefix_ + key; }

  // The value, or null where the key is absent or null.
  const Json* find(const char* key) const {
    const auto at = object_.find(key);
    return at == object_.end() || at->is_null() ? nullptr : &*at;
  }
  bool has(const char* key) const { return object_.contains(key); }

  Index integer(const char* key) const {
    const Json* value = find(key);
    if (!has(key)) fail("missing key '" + name(key) + "'");
    if (!value) wrong_kind(key, "an integer", *object_.find(key));
    return integer(key, *value);
  }
  Index integer(const char* key, Index otherwise) const {
    const Json* value = find(key);
    return value ? integer(key, *value) : otherwise;
  }
  double real(const char* key) const {
    if (!find(key)) fail("missing key '" + name(key) + "'");
    return real(key, 0);
  }
  double real(const char* key, double otherwise) const {
    const Json* value = find(key);
    if (!value) return otherwise;
    if (!value->is_number()) wrong_kind(key, "a number", *value);
    return value->get<double>();
  }
  bool boolean(const char* key, bool otherwise) const {
    const Json* value = find(key);
    if (!value) return otherwise;
    if (!value->is_boolean()) wrong_kind(key, "a boolean", *value);
    return value->get<bool>();
  }
  std::string string(const char* key, const char* otherwise) const {
    const Json* value = find(key);
    if (!value) return otherwise;
    if (!value->is_string()) wrong_kind(key, "a string", *value);
    return value->get<std::string>();
  }
  // The value that goes with the string.
  template <class E>
  E choice(const char* key, std::initializer_list<std::pair<const char*, E>> choices,
           const char* otherwise) const {
    const std::string text = string(key, otherwise);
    std::string known;
    for (const auto& [word, value] : choices) {
      if (text == word) return value;
      known += (known.empty() ? "" : ", ") + std::string(word);
    }
    fail(name(key) + " (" + in_quotes(text) + ") is unsupported; known: " + known);
  }
  // The reader of an object, or nothing where the key is absent or null.
  std::optional<ConfigReader> object(const char* key) const {
    const Json* value = find(key);
    if (!value) return std::nullopt;
    if (!value->is_object()) wrong_kind(key, "an object", *value);
    return ConfigReader(*value, where_, name(key) + ".");
  }
  // What the library does not implement.
  void refuse(bool condition, const char* key, const std::string& value) const {
    if (condition) fail(name(key) + " (" + value + ") is unsupported");
  }

 private:
  Index integer(const char* key, const Json& value) const {
    if (!value.is_number_integer()) wrong_kind(key, "an integer", value);
    if (value.is_number_unsigned() &&
        value.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()})
      fail(name(key) + " (" + value.dump() + ") is too large");
    return value.get<Index>();
  }
  [[noreturn]] void wrong_kind(const char* key, const char* wanted, const Json& found) const {
    fail(name(key) + " must be " + wanted + ", found " + kind_of(found));
  }

  const Json& object_;
  std::string where_, prefix_;
};

}  // namespace dsv3::detail
