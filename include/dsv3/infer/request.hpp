// What a caller asks of a Generator, and what comes back.
#pragma once

#include <dsv3/infer/sampling.hpp>
#include <functional>
#include <string>
#include <utility>

namespace dsv3 {

/// Why a sequence ended.
enum class Finish {
  running,      ///< it has not
  max_tokens,   ///< as many tokens as were asked for
  stop_token,   ///< it is the last of the tokens
  stop_string,  ///< the text ends before it
  cancelled
};

inline const char* to_string(Finish finish) {
  switch (finish) {
    case Finish::running:
      return "running";
    case Finish::max_tokens:
      return "max_tokens";
    case Finish::stop_token:
      return "stop_token";
    case Finish::stop_string:
      return "stop_string";
    case Finish::cancelled:
      return "cancelled";
  }
  return "";
}

/// A token as it is streamed.
struct GeneratedToken {
  Index request;  ///< what Generator::add returned
  std::int32_t token;
  double log_probability;  ///< of the model itself, in nats, before any sampling option
  std::string text;        ///< what became certain with it, in whole characters; needs token_text
  Finish finish;           ///< running, or why this is the last
};

/// One sequence to generate.
struct GenerationRequest {
  std::vector<std::int32_t> prompt;  ///< at least one token
  Index max_tokens = 16;             ///< at most so many new ones
  SamplingOptions sampling;
  std::vector<std::int32_t> stop_tokens;  ///< beside the model's eos_token_id
  bool ignore_eos = false;
  std::vector<std::string> stop_strings;  ///< need token_text
  /// The bytes of a token, Tokenizer::token_bytes say; text and stop strings are built from them.
  std::function<std::string(std::int32_t)> token_text;
  /// Called for every token as soon as it is certain.
  std::function<void(const GeneratedToken&)> on_token;

  /// Errors   std::invalid_argument naming what and both values.
  void validate(Index vocab_size) const {
    const char* caller = "Generator::add";
    sampling.validate();
    check_at_most(caller, "one", 1, "tokens of the prompt", static_cast<Index>(prompt.size()));
    check_at_most(caller, "one", 1, "max_tokens of the request", max_tokens);
    for (std::size_t i = 0; i < prompt.size(); ++i)
      if (prompt[i] < 0 || prompt[i] >= vocab_size)
        throw std::invalid_argument("Generator::add: token " + std::to_string(i) +
                                    " of the prompt (" + std::to_string(prompt[i]) +
                                    ") must be at least 0 and below vocab_size (" +
                                    std::to_string(vocab_size) + ")");
    if (stop_strings.empty()) return;
    if (!token_text) throw std::invalid_argument("Generator::add: stop_strings need token_text");
    for (const std::string& stop : stop_strings)
      if (stop.empty())
        throw std::invalid_argument("Generator::add: a stop string must not be empty");
  }
};

/// A sequence as it stands.
struct GenerationResult {
  std::vector<std::int32_t> tokens;       ///< new ones only
  std::vector<double> log_probabilities;  ///< of each
  std::string text;                       ///< with token_text: without the stop string
  Finish finish = Finish::running;
};

/// Text that ends where one of some strings begins. What may yet become one is held back, and so is
/// a character of UTF-8 whose last bytes have not come.
class StopText {
 public:
  StopText() = default;
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// Adds bytes and returns those that are certain to stay, in whole characters; sets `stopped`
  /// where a stop string is complete, and drops it and what follows.
  std::string add(const std::string& bytes, bool& stopped) {
    held_ += bytes;
    std::size_t end = std::string::npos;
    for (const std::string& stop : stops_) end = std::min(end, held_.find(stop));
    stopped = end != std::string::npos;
    if (stopped) {
      std::string certain = held_.substr(0, end);
      held_.clear();
      return certain;
    }
    std::size_t keep = begun_character(held_);
    // Or more: the longest end of the text that begins a stop string.
    for (const std::string& stop : stops_)
      for (std::size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n)
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
    std::string certain = held_.substr(0, held_.size() - keep);
    held_.erase(0, certain.size());
    return certain;
  }

  /// What was held back, when no more bytes come.
  std::string rest() { return std::exchange(held_, {}); }

 private:
  // Bytes at the end of the text that begin a character and do not end it.
  static std::size_t begun_character(const std::string& text) {
    for (std::size_t n = 1; n <= std::min<std::size_t>(3, text.size()); ++n) {
      const auto byte = static_cast<unsigned char>(text[text.size() - n]);
      if (byte < 0x80) return 0;
      if (byte < 0xC0) continue;  // a later byte of the character
      const std::size_t bytes = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
      return n < bytes ? n : 0;
    }
    return 0;
  }

  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace dsv3
