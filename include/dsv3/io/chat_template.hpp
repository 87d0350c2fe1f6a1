// ChatTemplate: a conversation as the prompt that DeepSeek-V3 was trained on.
#pragma once

#include <dsv3/io/tokenizer.hpp>

namespace dsv3 {

struct ChatMessage {
  std::string role;  ///< system, user or assistant
  std::string content;
};

/// The added tokens that stand between messages: those of DeepSeek-V3 and its successors.
struct ChatMarkers {
  std::string bos = "<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>";
  std::string eos = "<\uFF5Cend\u2581of\u2581sentence\uFF5C>";
  std::string user = "<\uFF5CUser\uFF5C>";
  std::string assistant = "<\uFF5CAssistant\uFF5C>";
};

struct ChatOptions {
  /// The prompt ends where the assistant is to speak.
  bool generation_prompt = true;
  /// Whether added tokens are recognised in what the messages say, as Hugging Face does: then a
  /// message may pretend to be several.
  bool added_tokens_in_content = false;
};

/// Prompts from messages:
///
///     bos system { user content | assistant content eos } [assistant]
///
/// where `system` is the content of all system messages, wherever they stand, with an empty line
/// between them. Tools are not supported. The tokenizer must live as long.
///
/// Errors   std::invalid_argument: the tokenizer lacks one of the markers; a role is another.
/// Source   chat_template in DeepSeek-V3's tokenizer_config.json.
class ChatTemplate {
 public:
  explicit ChatTemplate(const Tokenizer& tokenizer, ChatMarkers markers = {})
      : tokenizer_(&tokenizer), markers_(std::move(markers)) {
    bos_ = id_of(markers_.bos);
    eos_ = id_of(markers_.eos);
    user_ = id_of(markers_.user);
    assistant_ = id_of(markers_.assistant);
  }

  std::int32_t bos() const { return bos_; }
  std::int32_t eos() const { return eos_; }

  /// The prompt as text.
  std::string text(std::span<const ChatMessage> messages, const ChatOptions& options = {}) const {
    std::string text;
    walk(
        messages, options, [&](std::int32_t id) { text += tokenizer_->bytes(id); },
        [&](const std::string& content) { text += content; });
    return text;
  }

  /// The prompt as ids. Errors: also what Tokenizer::encode throws.
  std::vector<std::int32_t> ids(std::span<const ChatMessage> messages,
                                const ChatOptions& options = {}) const {
    std::vector<std::int32_t> ids;
    walk(
        messages, options, [&](std::int32_t id) { ids.push_back(id); },
        [&](const std::string& content) {
          const auto more =
              tokenizer_->encode(content, {.added_tokens = options.added_tokens_in_content});
          ids.insert(ids.end(), more.begin(), more.end());
        });
    return ids;
  }

 private:
  std::int32_t id_of(const std::string& marker) const {
    if (const auto id = tokenizer_->find(marker)) return *id;
    throw std::invalid_argument("ChatTemplate: the tokenizer has no added token " +
                                detail::in_quotes(marker));
  }

  void walk(std::span<const ChatMessage> messages, const ChatOptions& options, auto marker,
            auto content) const {
    std::string system;
    bool first = true;
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const ChatMessage& message = messages[i];
      if (message.role == "system")
        system += (std::exchange(first, false) ? "" : "\n\n") + message.content;
      else if (message.role != "user" && message.role != "assistant")
        throw std::invalid_argument("ChatTemplate: role of message " + std::to_string(i) + " (" +
                                    detail::in_quotes(message.role) +
                                    ") must be system, user or assistant");
    }
    marker(bos_);
    content(system);
    for (const ChatMessage& message : messages) {
      if (message.role == "system") continue;
      const bool user = message.role == "user";
      marker(user ? user_ : assistant_);
      content(message.content);
      if (!user) marker(eos_);
    }
    if (options.generation_prompt) marker(assistant_);
  }

  const Tokenizer* tokenizer_;
  ChatMarkers markers_;
  std::int32_t bos_ = 0, eos_ = 0, user_ = 0, assistant_ = 0;
};

}  // namespace dsv3
