// The alphabet of byte-level vocabularies: each byte has a printable character, so that tokens can
// stand in a JSON file.
#pragma once

#include <array>
#include <dsv3/io/utf8.hpp>

namespace dsv3::detail {

// Whether a byte is its own character: the printable ones of Latin-1, but for the soft hyphen.
constexpr bool is_own_character(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
}

// The byte of each character below U+0144, or -1. The 68 bytes that are not their own character
// have U+0100, U+0101, ... in their order: the space is U+0120.
// Source   Radford et al. 2019 (GPT-2), encoder.py, bytes_to_unicode.
inline constexpr auto byte_of_character = [] {
  std::array<std::int16_t, 0x144> bytes{};
  for (auto& byte : bytes) byte = -1;
  std::size_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte)
    bytes[is_own_character(byte) ? byte : next++] = static_cast<std::int16_t>(byte);
  return bytes;
}();

// Writes the bytes that the characters of a well-formed text stand for to `to`, which has room for
// text.size(), and returns how many; or returns npos where a character stands for no byte.
inline std::size_t bytes_of_characters(std::string_view text, char* to) {
  std::size_t n = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t bytes = utf8_step(text.substr(at)).bytes;
    const std::uint32_t code = code_point(text.substr(at), bytes);
    if (code >= byte_of_character.size() || byte_of_character[code] < 0)
      return std::string_view::npos;
    to[n++] = static_cast<char>(byte_of_character[code]);
    at += bytes;
  }
  return n;
}

}  // namespace dsv3::detail
