#include <doctest/doctest.h>

#include <dsv3/io/stream_decoder.hpp>

#include "tokenizer_file.hpp"

using namespace dsv3;

namespace {

using Ids = std::vector<std::int32_t>;

// "\x9F\x98" 256, of the middle of a character; " a" 257, "<s>" 258.
Tokenizer make() {
  TokenizerFileMaker m;
  m.merges = {{"\x9F", "\x98"}, {" ", "a"}};
  m.add("<s>", {{"special", true}});
  return Tokenizer::from_json(m.text(), "here");
}

}  // namespace

TEST_CASE("StreamDecoder holds a character back until it is whole") {
  const Tokenizer t = make();
  StreamDecoder stream(t);
  CHECK(stream.push('h') == "h");
  CHECK(stream.push(257) == " a");
  CHECK(stream.push(0xF0) == "");
  CHECK(stream.push(256) == "");  // F0 9F 98
  CHECK(stream.push(0x80) == "\xF0\x9F\x98\x80");
  CHECK(stream.push(0xC3) == "");
  CHECK(stream.push(0xA9) == "\xC3\xA9");
  CHECK(stream.finish() == "");
}

TEST_CASE("StreamDecoder gives U+FFFD for what is no character, as soon as that is known") {
  const Tokenizer t = make();
  const std::string bad = "\xEF\xBF\xBD";
  StreamDecoder stream(t);
  CHECK(stream.push(0xFF) == bad);
  CHECK(stream.push(0xE2) == "");
  CHECK(stream.push(0x82) == "");
  CHECK(stream.push('x') == bad + "x");
  CHECK(stream.push(0xF0) == "");
  CHECK(stream.push(0xF0) == bad);  // the second one may still begin a character
  CHECK(stream.push(256) == "");
  CHECK(stream.finish() == bad);
  CHECK(stream.finish() == "");
  CHECK(stream.push('a') == "a");
}

TEST_CASE("StreamDecoder leaves special tokens out by option") {
  const Tokenizer t = make();
  StreamDecoder with(t), without(t, true);
  for (StreamDecoder* stream : {&with, &without}) CHECK(stream->push(0xC3) == "");
  CHECK(with.push(258) == "\xEF\xBF\xBD<s>");
  CHECK(without.push(258) == "");
  CHECK(without.push(0xA9) == "\xC3\xA9");
}

TEST_CASE("StreamDecoder refuses an id that is none and keeps what it holds") {
  const Tokenizer t = make();
  StreamDecoder stream(t, true);
  stream.push(0xC3);
  CHECK_THROWS_WITH_AS(stream.push(259), "Tokenizer::bytes: id (259) must be from 0 to 258",
                       std::invalid_argument);
  CHECK(stream.push(0xA9) == "\xC3\xA9");
}

TEST_CASE("A stream is what decoding with replacement gives, and each part is UTF-8") {
  const Tokenizer t = make();
  std::uint32_t state = 3;
  const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 16; };
  const std::int32_t likely[] = {0xF0, 0x9F, 0x98, 0x80, 0xE2, 0x82, 0xAC, 0xC3, 'a', 256, 257};
  for (int i = 0; i < 300; ++i) {
    Ids ids(1 + next() % 40);
    for (std::int32_t& id : ids)
      id =
          next() % 4 ? likely[next() % std::size(likely)] : static_cast<std::int32_t>(next() % 259);
    StreamDecoder stream(t);
    std::string all;
    for (const std::int32_t id : ids) {
      const std::string part = stream.push(id);
      CHECK(detail::first_malformed(part) == part.npos);
      all += part;
    }
    all += stream.finish();
    CHECK(all == t.decode(ids, {.malformed = Malformed::replace}));
  }
}
