// Small byte-level tokenizers, made in the test: token b is byte b, token 256 + i what merge i
// gives.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

struct TokenizerFileMaker {
  using Json = nlohmann::json;

  std::vector<std::pair<std::string, std::string>> merges;  // as bytes
  std::vector<std::string> expressions = {"[a-z]+|[0-9]+"};
  Json added = Json::array();
  bool ignore_merges = false, merges_as_strings = false;

  /// The characters that stand for bytes in the file.
  static std::string characters(const std::string& bytes) {
    std::string text;
    for (const char c : bytes) {
      const auto byte = static_cast<unsigned char>(c);
      unsigned code = byte, next = 0x100;
      for (unsigned b = 0; b <= byte; ++b) {
        const bool own = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
        if (!own) code = next++;
        if (own) code = b;
      }
      if (code < 0x80) {
        text += static_cast<char>(code);
      } else {
        text += static_cast<char>(0xC0 | code >> 6);
        text += static_cast<char>(0x80 | (code & 0x3F));
      }
    }
    return text;
  }

  /// Adds a token behind all that merges make.
  TokenizerFileMaker& add(const std::string& content, Json flags = Json::object()) {
    flags["id"] = 256 + merges.size() + added.size();
    flags["content"] = content;
    added.push_back(std::move(flags));
    return *this;
  }

  Json json() const {
    Json vocabulary = Json::object(), list = Json::array(), splits = Json::array();
    for (int b = 0; b < 256; ++b) vocabulary[characters(std::string(1, static_cast<char>(b)))] = b;
    for (const auto& [left, right] : merges) {
      vocabulary[characters(left + right)] = 256 + list.size();
      if (merges_as_strings)
        list.push_back(characters(left) + " " + characters(right));
      else
        list.push_back({characters(left), characters(right)});
    }
    for (const std::string& expression : expressions)
      splits.push_back({{"type", "Split"},
                        {"pattern", {{"Regex", expression}}},
                        {"behavior", "Isolated"},
                        {"invert", false}});
    splits.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
    return {{"version", "1.0"},
            {"added_tokens", added},
            {"normalizer", nullptr},
            {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", splits}}},
            {"post_processor", nullptr},
            {"decoder", {{"type", "ByteLevel"}}},
            {"model",
             {{"type", "BPE"},
              {"ignore_merges", ignore_merges},
              {"vocab", vocabulary},
              {"merges", list}}}};
  }

  std::string text() const { return json().dump(); }
};

/// FNV-1a, 64 bits, of ids as little-endian 32-bit numbers.
inline std::uint64_t hash_of(const std::vector<std::int32_t>& ids) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const std::int32_t id : ids)
    for (int shift = 0; shift < 32; shift += 8)
      hash = (hash ^ (static_cast<std::uint32_t>(id) >> shift & 0xFFu)) * 0x100000001B3u;
  return hash;
}
