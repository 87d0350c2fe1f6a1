// AddedTokens: tokens that are found in the text as they stand, before it is split into words.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <dsv3/io/utf8.hpp>
#include <optional>
#include <vector>

namespace dsv3::detail {

// An entry of added_tokens in a tokenizer.json.
struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool special = false;      // left out by a decoding that skips special tokens
  bool normalized = false;   // searched for after all that are not
  bool takes_left = false;   // lstrip: white space before it is part of it
  bool takes_right = false;  // rstrip
};

// Unicode's White_Space.
constexpr bool is_white_space(std::uint32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

// Finds the leftmost of some tokens, the longest of those that begin at one place.
class AddedTokens {
 public:
  static constexpr std::size_t most_bytes = 256;  // of a token: bounds the search at one place

  AddedTokens() = default;
  explicit AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
    std::sort(tokens_.begin(), tokens_.end(),
              [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
    for (const AddedToken& token : tokens_)
      begins_[static_cast<unsigned char>(token.content.front())] = true;
  }

  const std::vector<AddedToken>& tokens() const { return tokens_; }

  // The token with this content, or null.
  const AddedToken* find(std::string_view content) const {
    const auto at = std::lower_bound(
        tokens_.begin(), tokens_.end(), content,
        [](const AddedToken& token, std::string_view text) { return token.content < text; });
    return at != tokens_.end() && at->content == content ? &*at : nullptr;
  }

  // Calls between(part) for each part of the text, which is well formed, without a token, and
  // token(id) for each token, in their order.
  template <class Between, class Token>
  void split(std::string_view text, Between between, Token token) const {
    if (tokens_.empty()) {
      if (!text.empty()) between(text);
      return;
    }
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size();) {
      const AddedToken* found =
          begins_[static_cast<unsigned char>(text[at])] ? longest(text.substr(at)) : nullptr;
      if (!found) {
        ++at;
        continue;
      }
      std::size_t begin = at;
      at += found->content.size();
      if (found->takes_left) begin = before_white_space(text, done, begin);
      if (found->takes_right) at = after_white_space(text, at);
      if (begin > done) between(text.substr(done, begin - done));
      token(found->id);
      done = at;
    }
    if (done < text.size()) between(text.substr(done));
  }

 private:
  // The longest token with which the text begins, or null. Those that share their first n bytes
  // with it are neighbours; what these share beyond is compared at once.
  const AddedToken* longest(std::string_view text) const {
    auto low = tokens_.begin(), high = tokens_.end();
    const AddedToken* found = nullptr;
    for (std::size_t n = 0; low != high;) {
      const std::string_view first = low->content, last = (high - 1)->content;
      std::size_t shared = n;
      while (shared < first.size() && first[shared] == last[shared]) ++shared;
      if (text.substr(n, shared - n) != first.substr(n, shared - n)) break;
      n = shared;
      if (first.size() == n) found = &*low++;
      if (n == text.size()) break;
      const auto byte = [n](const AddedToken& token) {
        return static_cast<unsigned char>(token.content[n]);
      };
      const auto wanted = static_cast<unsigned char>(text[n]);
      low =
          std::partition_point(low, high, [&](const auto& token) { return byte(token) < wanted; });
      high =
          std::partition_point(low, high, [&](const auto& token) { return byte(token) == wanted; });
    }
    return found;
  }

  static std::size_t before_white_space(std::string_view text, std::size_t from, std::size_t at) {
    while (at > from) {
      std::size_t begin = at - 1;
      while ((static_cast<unsigned char>(text[begin]) & 0xC0u) == 0x80u) --begin;
      if (!is_white_space(code_point(text.substr(begin), at - begin))) break;
      at = begin;
    }
    return at;
  }

  static std::size_t after_white_space(std::string_view text, std::size_t at) {
    while (at < text.size()) {
      const std::size_t bytes = utf8_step(text.substr(at)).bytes;
      if (!is_white_space(code_point(text.substr(at), bytes))) break;
      at += bytes;
    }
    return at;
  }

  std::vector<AddedToken> tokens_;  // by content
  std::array<bool, 256> begins_{};
};

}  // namespace dsv3::detail
