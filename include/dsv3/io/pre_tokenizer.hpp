// PreTokenizer: where a text is cut into the words that byte pair encoding works on.
#pragma once

#include <dsv3/io/expression.hpp>
#include <vector>

namespace dsv3::detail {

// A sequence of expressions. Each cuts every piece that the ones before it have left into its
// matches and what lies between them; it sees nothing outside of the piece.
class PreTokenizer {
 public:
  static constexpr std::size_t most_expressions = 64;

  PreTokenizer() = default;
  // Errors   what Expression throws.
  explicit PreTokenizer(const std::vector<std::string>& expressions) {
    if (expressions.size() > most_expressions)
      throw std::invalid_argument("expressions (" + std::to_string(expressions.size()) +
                                  ") must be at most " + std::to_string(most_expressions));
    for (const std::string& expression : expressions) expressions_.emplace_back(expression);
  }

  // Calls word(piece) for each piece of the text, which is well-formed UTF-8, in order.
  // Errors   std::runtime_error where an expression meets the limits of `search`.
  template <class Word>
  void split(ExpressionSearch& search, std::string_view text, Word word) const {
    split(search, text, 0, word);
  }

 private:
  template <class Word>
  void split(ExpressionSearch& search, std::string_view text, std::size_t level, Word& word) const {
    if (text.empty()) return;
    if (level == expressions_.size()) return word(text);
    std::size_t done = 0;
    while (const auto match = expressions_[level].find(search, text, done)) {
      split(search, text.substr(done, match->begin - done), level + 1, word);
      split(search, text.substr(match->begin, match->end - match->begin), level + 1, word);
      done = match->end;
      if (done == text.size()) return;
    }
    split(search, text.substr(done), level + 1, word);
  }

  std::vector<Expression> expressions_;
};

}  // namespace dsv3::detail
