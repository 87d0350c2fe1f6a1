// StreamDecoder: text of ids that come one by one, in whole characters.
#pragma once

#include <dsv3/io/tokenizer.hpp>

namespace dsv3 {

/// Decodes ids as they are generated. A character whose bytes are spread over several tokens comes
/// with the last of them. All that push() and finish() return is, one behind the other, what
/// Tokenizer::decode gives with Malformed::replace. The tokenizer must live as long.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  /// The text that is whole by now, which may be empty.
  /// Errors   std::invalid_argument where the id is none; nothing has changed then.
  std::string push(std::int32_t id) {
    const std::string_view bytes = tokenizer_->bytes(id);
    std::string text;
    if (skip_special_ && tokenizer_->is_special(id)) return text;
    held_ += bytes;
    held_.erase(0, detail::append_replaced(text, held_, false));
    return text;
  }

  /// U+FFFD where a character has begun and not ended, else nothing. Then begins anew.
  std::string finish() {
    std::string text;
    detail::append_replaced(text, held_);
    held_.clear();
    return text;
  }

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;  // at most 3 bytes: the beginning of a character
};

}  // namespace dsv3
