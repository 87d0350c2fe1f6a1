// The byte vocabulary as a tokenizer.json, so that a model trained on bytes is used like any other.
#pragma once

#include <dsv3/io/byte_alphabet.hpp>
#include <dsv3/io/text_data.hpp>
#include <nlohmann/json.hpp>
#include <string>

namespace dsv3 {

/// A tokenizer.json in which token n < 256 is byte n and 256 is the end of a document: the ids of
/// TextData's byte format.
inline std::string byte_tokenizer_json() {
  const auto utf8 = [](std::uint32_t code) {  // of a code point below U+0800
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    return std::string{static_cast<char>(0xC0 | (code >> 6)),
                       static_cast<char>(0x80 | (code & 0x3F))};
  };
  nlohmann::ordered_json vocabulary = nlohmann::ordered_json::object();
  for (std::uint32_t code = 0; code < detail::byte_of_character.size(); ++code)
    if (const int byte = detail::byte_of_character[code]; byte >= 0) vocabulary[utf8(code)] = byte;
  const nlohmann::ordered_json byte_level = {{"type", "ByteLevel"},
                                             {"add_prefix_space", false},
                                             {"trim_offsets", true},
                                             {"use_regex", false}};
  const nlohmann::ordered_json end = {{"id", ByteVocabulary::end_of_document},
                                      {"content", "<|end of document|>"},
                                      {"single_word", false},
                                      {"lstrip", false},
                                      {"rstrip", false},
                                      {"normalized", false},
                                      {"special", true}};
  const nlohmann::ordered_json model = {{"type", "BPE"},
                                        {"dropout", nullptr},
                                        {"unk_token", nullptr},
                                        {"continuing_subword_prefix", nullptr},
                                        {"end_of_word_suffix", nullptr},
                                        {"fuse_unk", false},
                                        {"byte_fallback", false},
                                        {"vocab", vocabulary},
                                        {"merges", nlohmann::ordered_json::array()}};
  const nlohmann::ordered_json file = {
      {"version", "1.0"},          {"truncation", nullptr}, {"padding", nullptr},
      {"added_tokens", {end}},     {"normalizer", nullptr}, {"pre_tokenizer", byte_level},
      {"post_processor", nullptr}, {"decoder", byte_level}, {"model", model}};
  return file.dump(1) + '\n';
}

}  // namespace dsv3
