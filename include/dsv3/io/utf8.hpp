// UTF-8: what is well formed, and U+FFFD for what is not.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace dsv3::detail {

// The beginning of a text: one character, or bytes that are none.
struct Utf8Step {
  enum Kind {
    whole,      // a character
    malformed,  // no character begins with these bytes
    cut         // the text ends inside of what may be a character
  } kind = whole;
  std::size_t bytes = 0;  // where none: the longest beginning of a character, at least 1
};

// Of a text that is not empty.
// Source   Unicode 15, table 3-7 (well-formed sequences: no surrogates, no overlong forms, nothing
//          above U+10FFFF) and "maximal subparts" of section 3.9.
inline Utf8Step utf8_step(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Utf8Step::whole, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Step::malformed, 1};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Step::cut, i};
    if (byte(i) < low || byte(i) > high) return {Utf8Step::malformed, i};
    low = 0x80, high = 0xBF;
  }
  return {Utf8Step::whole, length};
}

// The character of `bytes` bytes at the beginning of the text, which is well formed.
inline std::uint32_t code_point(std::string_view text, std::size_t bytes) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  if (bytes == 1) return byte(0);
  std::uint32_t code = byte(0) & (0x7Fu >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) code = code << 6 | (byte(i) & 0x3Fu);
  return code;
}

// Where the first byte stands that begins no whole character, or npos.
inline std::size_t first_malformed(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    std::uint64_t eight;
    if (text.size() - at >= 8) {
      std::memcpy(&eight, text.data() + at, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        at += 8;
        continue;
      }
    }
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind != Utf8Step::whole) return at;
    at += step.bytes;
  }
  return std::string_view::npos;
}

inline constexpr std::string_view replacement_character = "\xEF\xBF\xBD";  // U+FFFD

// Appends the text, with U+FFFD for each maximal part that is no character. Where `last` is false,
// a character that the text cuts off is left out. Returns the bytes that were read.
inline std::size_t append_replaced(std::string& out, std::string_view text, bool last = true) {
  std::size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind == Utf8Step::cut && !last) break;
    out += step.kind == Utf8Step::whole ? text.substr(at, step.bytes) : replacement_character;
    at += step.bytes;
  }
  return at;
}

}  // namespace dsv3::detail
