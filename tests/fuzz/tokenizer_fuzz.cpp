// The input is a tokenizer.json and, behind a zero byte, a text: the file is refused, or the ids of
// the text give it back, at once and as a stream.
#include <dsv3/io/chat_template.hpp>
#include <dsv3/io/stream_decoder.hpp>

#include "fuzz.hpp"

int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace dsv3;
  const std::string_view input = fuzz::text(data, size);
  const std::size_t zero = std::min(input.find('\0'), input.size());
  fuzz::run(input, [&] {
    const Tokenizer tokenizer = Tokenizer::from_json(input.substr(0, zero), "input");
    const std::string_view given = input.substr(std::min(zero + 1, input.size()));
    std::string text;
    detail::append_replaced(text, given);
    if (text != given) {
      try {
        tokenizer.encode(given);
        fuzz::fail("a text that is no UTF-8 has ids");
      } catch (const std::invalid_argument&) {
      }
    }
    for (const bool added : {false, true}) {
      const auto ids =
          tokenizer.encode(given, {.added_tokens = added, .malformed = Malformed::replace});
      const std::string decoded = tokenizer.decode(ids);
      StreamDecoder stream(tokenizer);
      std::string streamed;
      for (const std::int32_t id : ids) streamed += stream.push(id);
      streamed += stream.finish();
      fuzz::require(streamed == decoded, "a stream is another text");
      // Added tokens with lstrip or rstrip take white space with them.
      const bool strips = input.find("strip") != input.npos;
      if (!added || !strips) fuzz::require(decoded == text, "ids give another text");
    }
    try {
      const std::vector<ChatMessage> messages = {{"system", text}, {"user", text}};
      ChatTemplate(tokenizer).ids(messages);
    } catch (const std::invalid_argument&) {
    }
  });
  return 0;
}
