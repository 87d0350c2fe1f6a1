// TokenizerJson: the parts of a tokenizer.json, its vocabulary and merges in compact form.
#pragma once

#include <dsv3/io/json.hpp>
#include <limits>
#include <optional>

namespace dsv3::detail {

// Receives a tokenizer.json from nlohmann's SAX parser. A tree of the vocabulary would take some
// hundred bytes a token: here a token or merge takes 12 bytes beside its text.
class TokenizerJson : public JsonHandler {
 public:
  static constexpr std::size_t most_bytes = std::size_t{1} << 26;
  static constexpr std::size_t most_tokens = std::size_t{1} << 20, most_merges = most_tokens;
  static constexpr std::size_t most_other_values = 100'000;

  struct Token {
    std::uint32_t begin, bytes;
    std::int32_t id;
  };
  // Left and right stand one behind the other: together they are the text of the result.
  struct Merge {
    std::uint32_t begin, left_bytes, right_bytes;
  };

  // Errors   std::invalid_argument "where: ...".
  TokenizerJson(std::string_view text, const std::string& place)
      : JsonHandler{place}, tree_(place, most_other_values) {
    if (text.size() > most_bytes)
      fail("bytes (" + std::to_string(text.size()) + ") must be at most " +
           std::to_string(most_bytes));
    texts_.reserve(text.size());
    parse_json(text, *this);
    if (!tree_.root.is_object())
      fail(std::string("must hold an object, found ") + kind_of(tree_.root));
    if (tree_.root.contains("model") && !tree_.root["model"].is_object())
      fail(std::string("model must be an object, found ") + kind_of(tree_.root["model"]));
    if (!vocabulary_seen_) fail("missing key 'model.vocab'");
    if (!merges_seen_) fail("missing key 'model.merges'");
  }

  // Everything else; vocabulary and merges are null.
  const Json& rest() const { return tree_.root; }

  const std::vector<Token>& tokens() const { return tokens_; }
  const std::vector<Merge>& merges() const { return merges_; }

  std::string_view text(const Token& token) const { return part(token.begin, token.bytes); }
  std::string_view left(const Merge& merge) const { return part(merge.begin, merge.left_bytes); }
  std::string_view right(const Merge& merge) const {
    return part(merge.begin + merge.left_bytes, merge.right_bytes);
  }
  std::string_view both(const Merge& merge) const {
    return part(merge.begin, merge.left_bytes + merge.right_bytes);
  }

  // The interface of nlohmann's parser.
  bool null() {
    return scalar("null", [&] { tree_.null(); });
  }
  bool boolean(bool value) {
    return scalar("a boolean", [&] { tree_.boolean(value); });
  }
  bool number_float(double value, const std::string& text) {
    return scalar("a real number", [&] { tree_.number_float(value, text); });
  }
  bool number_integer(std::int64_t value) {
    return number(value, [&] { tree_.number_integer(value); });
  }
  bool number_unsigned(std::uint64_t value) {
    return number(value, [&] { tree_.number_unsigned(value); });
  }
  bool string(std::string& value) {
    if (at_ == At::pair && strings_ < 2) {
      (strings_ == 0 ? merges_.back().left_bytes : merges_.back().right_bytes) = store(value);
      ++strings_;
      return true;
    }
    if (at_ == At::merges) {
      add_merge();
      const std::size_t space = value.find(' ');
      if (space == std::string::npos || value.find(' ', space + 1) != std::string::npos)
        fail(merge_name() + " (" + in_quotes(value) + ") must hold one space");
      merges_.back().left_bytes = store(std::string_view(value).substr(0, space));
      merges_.back().right_bytes = store(std::string_view(value).substr(space + 1));
      return true;
    }
    return scalar("a string", [&] { tree_.string(value); });
  }
  bool start_object(std::size_t n) {
    if (at_ != At::rest || next_ == At::merges) wrong_kind("an object");
    if (next_ == At::vocabulary) {
      vocabulary_seen_ = true;
      at_ = std::exchange(next_, At::rest);
      return tree_.null();
    }
    ++depth_;
    return tree_.start_object(n);
  }
  bool start_array(std::size_t n) {
    if (at_ == At::merges) {
      add_merge();
      at_ = At::pair;
      strings_ = 0;
      return true;
    }
    if (at_ != At::rest || next_ == At::vocabulary) wrong_kind("an array");
    if (next_ == At::merges) {
      merges_seen_ = true;
      at_ = std::exchange(next_, At::rest);
      return tree_.null();
    }
    ++depth_;
    return tree_.start_array(n);
  }
  bool key(std::string& name) {
    if (at_ == At::vocabulary) {
      if (tokens_.size() == most_tokens)
        fail("model.vocab: tokens must be at most " + std::to_string(most_tokens));
      tokens_.push_back({static_cast<std::uint32_t>(texts_.size()), 0, 0});
      tokens_.back().bytes = store(name);
      return true;
    }
    if (depth_ == 1) in_model_ = name == "model";
    if (depth_ == 2 && in_model_ && name == "vocab") next_ = At::vocabulary;
    if (depth_ == 2 && in_model_ && name == "merges") next_ = At::merges;
    return tree_.key(name);
  }
  bool end_object() {
    if (std::exchange(at_, At::rest) == At::vocabulary) return true;
    --depth_;
    return tree_.end_object();
  }
  bool end_array() {
    if (at_ == At::pair) {
      if (strings_ != 2) fail(merge_name() + " must hold 2 strings, found 1 or none");
      at_ = At::merges;
      return true;
    }
    if (std::exchange(at_, At::rest) == At::merges) return true;
    --depth_;
    return tree_.end_array();
  }

 private:
  enum class At { rest, vocabulary, merges, pair };

  std::string_view part(std::size_t begin, std::size_t bytes) const {
    return std::string_view(texts_).substr(begin, bytes);
  }
  std::uint32_t store(std::string_view text) {
    texts_ += text;
    return static_cast<std::uint32_t>(text.size());
  }
  void add_merge() {
    if (merges_.size() == most_merges)
      fail("model.merges: merges must be at most " + std::to_string(most_merges));
    merges_.push_back({static_cast<std::uint32_t>(texts_.size()), 0, 0});
  }
  std::string merge_name() const {
    return "model.merges[" + std::to_string(merges_.size() - 1) + "]";
  }

  [[noreturn]] void wrong_kind(const char* found) const {
    if (at_ == At::vocabulary)
      fail("model.vocab: id of " + in_quotes(text(tokens_.back())) + " must be an integer, found " +
           found);
    if (at_ == At::merges)
      fail("model.merges[" + std::to_string(merges_.size()) +
           "] must be a string or an array, found " + found);
    if (at_ == At::pair)
      fail(merge_name() + " must hold 2 strings, found " + (strings_ == 2 ? "more" : found));
    fail(next_ == At::vocabulary ? std::string("model.vocab must be an object, found ") + found
                                 : std::string("model.merges must be an array, found ") + found);
  }

  // A value that may stand nowhere but in the rest.
  bool scalar(const char* found, auto add) {
    if (at_ != At::rest || next_ != At::rest) wrong_kind(found);
    add();
    return true;
  }
  bool number(auto value, auto add) {
    if (at_ != At::vocabulary) return scalar("an integer", add);
    if (std::cmp_less(value, 0) ||
        std::cmp_greater(value, std::numeric_limits<std::int32_t>::max()))
      fail("model.vocab: id of " + in_quotes(text(tokens_.back())) + " (" + std::to_string(value) +
           ") must be from 0 to 2147483647");
    tokens_.back().id = static_cast<std::int32_t>(value);
    return true;
  }

  JsonTree tree_;
  std::string texts_;
  std::vector<Token> tokens_;
  std::vector<Merge> merges_;
  At at_ = At::rest, next_ = At::rest;  // next_: what the value of the last key is
  int depth_ = 0, strings_ = 0;
  bool in_model_ = false, vocabulary_seen_ = false, merges_seen_ = false;
};

}  // namespace dsv3::detail
