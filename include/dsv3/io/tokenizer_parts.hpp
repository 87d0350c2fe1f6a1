// The parts of a tokenizer.json that say how it works: what is supported is read, all else refused.
#pragma once

#include <dsv3/io/added_tokens.hpp>
#include <dsv3/io/json.hpp>
#include <initializer_list>
#include <limits>
#include <vector>

namespace dsv3::detail {

// An object of the file, with its name for messages. Null is as if a key were absent.
class TokenizerPart {
 public:
  TokenizerPart(const Json& json, std::string name, const JsonHandler& errors)
      : json_(json), name_(std::move(name)), errors_(errors) {
    if (!json.is_object()) fail(" must be an object, found " + std::string(kind_of(json)));
  }

  // "name" and the text, as an error; the file itself has no name.
  [[noreturn]] void fail(const std::string& text) const {
    errors_.fail(name_.empty() ? text.substr(text.find_first_not_of(":. ")) : name_ + text);
  }

  const Json* find(const char* key) const {
    const auto at = json_.find(key);
    return at == json_.end() || at->is_null() ? nullptr : &*at;
  }
  std::string string(const char* key) const {
    const Json* value = find(key);
    if (!value) fail(": missing key '" + std::string(key) + "'");
    if (!value->is_string())
      fail("." + std::string(key) + " must be a string, found " + kind_of(*value));
    return value->get<std::string>();
  }
  bool flag(const char* key, bool otherwise) const {
    const Json* value = find(key);
    if (!value) return otherwise;
    if (!value->is_boolean())
      fail("." + std::string(key) + " must be a boolean, found " + kind_of(*value));
    return value->get<bool>();
  }
  const Json& array(const char* key) const {
    const Json* value = find(key);
    if (!value) fail(": missing key '" + std::string(key) + "'");
    if (!value->is_array())
      fail("." + std::string(key) + " must be an array, found " + kind_of(*value));
    return *value;
  }
  TokenizerPart part(const char* key) const {
    const Json* value = find(key);
    if (!value) fail(": missing key '" + std::string(key) + "'");
    return {*value, name_.empty() ? key : name_ + "." + key, errors_};
  }
  TokenizerPart element(const char* key, std::size_t i) const {
    return {array(key)[i], name_ + (name_.empty() ? "" : ".") + key + "[" + std::to_string(i) + "]",
            errors_};
  }

  void only_keys(std::initializer_list<const char*> known) const {
    for (const auto& [key, value] : json_.items())
      if (std::find(known.begin(), known.end(), key) == known.end())
        fail(": unknown key " + in_quotes(key));
  }
  [[noreturn]] void unsupported(const char* key) const {
    fail("." + std::string(key) + " (" + in_quotes(json_.at(key).dump()) + ") is unsupported");
  }
  // A part that would change results and that this tokenizer does not take.
  void refuse(const char* key) const {
    if (find(key)) unsupported(key);
  }

 private:
  const Json& json_;
  std::string name_;
  const JsonHandler& errors_;
};

inline std::vector<AddedToken> read_added_tokens(const TokenizerPart& root) {
  std::vector<AddedToken> tokens;
  if (!root.find("added_tokens")) return tokens;
  for (std::size_t i = 0; i < root.array("added_tokens").size(); ++i) {
    const TokenizerPart part = root.element("added_tokens", i);
    part.only_keys({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    if (part.flag("single_word", false)) part.unsupported("single_word");
    const Json* id = part.find("id");
    if (!id || !id->is_number_unsigned() ||
        id->get<std::uint64_t>() > std::numeric_limits<std::int32_t>::max())
      part.fail(".id must be an integer from 0 to 2147483647");
    const bool special = part.flag("special", false);
    AddedToken token{part.string("content"),
                     id->get<std::int32_t>(),
                     special,
                     part.flag("normalized", !special),
                     part.flag("lstrip", false),
                     part.flag("rstrip", false)};
    if (token.content.empty() || token.content.size() > AddedTokens::most_bytes)
      part.fail(".content: bytes (" + std::to_string(token.content.size()) +
                ") must be from 1 to " + std::to_string(AddedTokens::most_bytes));
    tokens.push_back(std::move(token));
  }
  std::vector<std::string_view> contents;
  for (const AddedToken& token : tokens) contents.push_back(token.content);
  std::sort(contents.begin(), contents.end());
  const auto twice = std::adjacent_find(contents.begin(), contents.end());
  if (twice != contents.end()) root.fail("added_tokens: duplicate token " + in_quotes(*twice));
  return tokens;
}

// Whether merges are ignored for words that are tokens.
inline bool read_model(const TokenizerPart& model) {
  model.only_keys({"type", "dropout", "unk_token", "continuing_subword_prefix",
                   "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab",
                   "merges"});
  if (model.string("type") != "BPE") model.unsupported("type");
  model.refuse("dropout");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (model.find(key) && !model.string(key).empty()) model.unsupported(key);
  // unk_token and fuse_unk are for what has no token: here every byte has one.
  if (model.find("unk_token")) model.string("unk_token");
  model.flag("fuse_unk", false);
  if (model.flag("byte_fallback", false)) model.unsupported("byte_fallback");
  return model.flag("ignore_merges", false);
}

// The expression that a Split has, or that a text becomes to be found as it stands.
inline std::string read_pattern(const TokenizerPart& pattern) {
  pattern.only_keys({"Regex", "String"});
  if (pattern.find("Regex")) return pattern.string("Regex");
  std::string expression;
  for (const char c : pattern.string("String")) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!letter && static_cast<unsigned char>(c) < 0x80) expression += '\\';
    expression += c;
  }
  return expression;
}

// Appends the expressions of a pre-tokenizer, at whose matches a text is split in turn. The last
// pre-tokenizer is ByteLevel: `bytes` says that it was there.
inline void read_pre_tokenizer(const TokenizerPart& part, std::vector<std::string>& expressions,
                               bool& bytes) {
  const std::string type = part.string("type");
  if (bytes) part.fail(" (" + in_quotes(type) + ") after ByteLevel is unsupported");
  if (type == "Sequence") {
    part.only_keys({"type", "pretokenizers"});
    for (std::size_t i = 0; i < part.array("pretokenizers").size(); ++i)
      read_pre_tokenizer(part.element("pretokenizers", i), expressions, bytes);
  } else if (type == "Split") {
    part.only_keys({"type", "pattern", "behavior", "invert"});
    if (part.string("behavior") != "Isolated") part.unsupported("behavior");
    part.flag("invert", false);  // matches and what lies between are pieces either way
    expressions.push_back(read_pattern(part.part("pattern")));
  } else if (type == "Digits") {
    part.only_keys({"type", "individual_digits"});
    expressions.push_back(part.flag("individual_digits", false) ? "\\p{N}" : "\\p{N}+");
  } else if (type == "ByteLevel") {
    part.only_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    if (!part.find("add_prefix_space"))
      part.fail(".add_prefix_space must be given: true, its default, is unsupported");
    if (part.flag("add_prefix_space", true)) part.unsupported("add_prefix_space");
    part.flag("trim_offsets", true);   // of places in the text, which encode() does not give
    if (part.flag("use_regex", true))  // Radford et al. 2019 (GPT-2), encoder.py
      expressions.push_back(
          R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)");
    bytes = true;
  } else {
    part.unsupported("type");
  }
}

// Refuses parts that would change ids or texts and that this tokenizer does not take.
inline void check_other_parts(const TokenizerPart& root) {
  root.only_keys({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                  "post_processor", "decoder", "model"});
  if (root.find("version") && root.string("version") != "1.0") root.unsupported("version");
  root.refuse("truncation");
  root.refuse("padding");
  if (root.find("normalizer")) {
    const TokenizerPart normalizer = root.part("normalizer");
    if (normalizer.string("type") != "Sequence") normalizer.unsupported("type");
    normalizer.only_keys({"type", "normalizers"});
    if (!normalizer.array("normalizers").empty()) normalizer.unsupported("normalizers");
  }
  const auto byte_level = [](const TokenizerPart& part) {
    if (part.string("type") != "ByteLevel") part.unsupported("type");
    // As a post-processor it moves places in the text, as a decoder it has no options that matter.
    part.only_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    for (const char* key : {"add_prefix_space", "trim_offsets", "use_regex"}) part.flag(key, true);
  };
  if (root.find("post_processor")) byte_level(root.part("post_processor"));
  byte_level(root.part("decoder"));
}

}  // namespace dsv3::detail
