// Strict JSON: what every reader of JSON files shares. Hostile input costs memory in proportion to
// its length, and no recursion.
#pragma once

#include <dsv3/core/view.hpp>
#include <dsv3/io/posix.hpp>
#include <nlohmann/json.hpp>
#include <vector>

namespace dsv3::detail {

using Json = nlohmann::json;

// Handlers of nlohmann's SAX interface derive from it. `where` begins every message.
struct JsonHandler {
  std::string where;

  [[noreturn]] void fail(const std::string& text) const {
    throw std::invalid_argument(where + ": " + text);
  }
  bool parse_error(std::size_t position, const std::string&, const auto& error) const {
    const bool range = error.id == 406;  // nlohmann's number for a real beyond double
    fail((range ? "number out of range at byte " : "not valid JSON at byte ") +
         std::to_string(position));
  }
  bool binary(Json::binary_t&) const { fail("binary"); }  // never called for text
};

// nlohmann keeps the text of a string or number twice, so its length is bounded.
inline constexpr std::size_t most_json_string = std::size_t{1} << 24, most_json_number = 4096;

// Throws where a string, or what is none and has neither punctuation nor blanks, is longer.
template <class Handler>
void check_json_lengths(std::string_view text, const Handler& handler) {
  bool in_string = false;
  std::size_t begin = 0, most = most_json_number;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (c == '"') {
      in_string = !in_string;
      most = in_string ? most_json_string : most_json_number;
      begin = at + 1;
    } else if (!in_string && std::string_view(",:[]{} \t\r\n").find(c) != std::string_view::npos) {
      begin = at + 1;
    } else {
      if (at - begin >= most)
        handler.fail((in_string ? "string at byte " : "number at byte ") +
                     std::to_string(begin + 1) + " must have at most " + std::to_string(most) +
                     " bytes");
      if (in_string && c == '\\') ++at;
    }
  }
}

// Sends the text's parts to the handler, which throws what it does not like.
template <class Handler>
void parse_json(std::string_view text, Handler& handler) {
  check_json_lengths(text, handler);
  // nlohmann would take a zero byte for the end.
  const auto zero = text.find('\0');
  if (zero != std::string_view::npos)
    handler.fail("not valid JSON at byte " + std::to_string(zero + 1));
  Json::sax_parse(text.begin(), text.end(), &handler);
}

// Builds a tree, without duplicate keys and deep nesting. A value costs up to 200 bytes, however
// short its text is, so that they are counted.
class JsonTree : public JsonHandler {
 public:
  JsonTree(std::string place, std::size_t most_values)
      : JsonHandler{std::move(place)}, most_values_(most_values) {}

  Json root;

  bool null() { return add(nullptr), true; }
  bool boolean(bool value) { return add(value), true; }
  bool number_integer(std::int64_t value) { return add(value), true; }
  bool number_unsigned(std::uint64_t value) { return add(value), true; }
  bool number_float(double value, const std::string&) { return add(value), true; }
  bool string(std::string& value) { return add(std::move(value)), true; }
  bool start_object(std::size_t) { return open(Json::object()); }
  bool start_array(std::size_t) { return open(Json::array()); }
  bool key(std::string& name) {
    if (open_.back()->contains(name)) fail("duplicate key " + in_quotes(name));
    key_ = std::move(name);
    return true;
  }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

 private:
  Json* add(Json value) {
    if (++values_ > most_values_) fail("values must be at most " + std::to_string(most_values_));
    if (open_.empty()) {
      root = std::move(value);
      return &root;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    Json& member = parent[key_];
    member = std::move(value);
    return &member;
  }
  bool open(Json value) {
    if (open_.size() == 32) fail("nested deeper than 32 levels");
    open_.push_back(add(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::size_t most_values_, values_ = 0;
  std::vector<Json*> open_;
  std::string key_;
};

// The text as a tree. Errors: std::invalid_argument "where: ...".
inline Json parse_json(std::string_view text, const std::string& where) {
  JsonTree tree(where, 200'000 + text.size() / 100);
  parse_json(text, tree);
  return std::move(tree.root);
}

// What a message calls the kind of a value.
inline const char* kind_of(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::number_float:
      return "a real number";
    default:
      return "an integer";
  }
}

}  // namespace dsv3::detail
