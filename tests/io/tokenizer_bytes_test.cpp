#include <dsv3/io/byte_tokenizer.hpp>
#include <dsv3/io/tokenizer.hpp>

#include <doctest/doctest.h>

using namespace dsv3;

TEST_CASE("The byte vocabulary is a tokenizer whose ids are TextData's") {
  const Tokenizer tokenizer = Tokenizer::from_json(byte_tokenizer_json(), "bytes");
  CHECK(tokenizer.size() == ByteVocabulary::size);
  CHECK(tokenizer.encode("A z\n\xC3\xA9") ==
        std::vector<std::int32_t>{'A', ' ', 'z', '\n', 0xC3, 0xA9});
  CHECK(tokenizer.find("<|end of document|>") == ByteVocabulary::end_of_document);
  CHECK(tokenizer.is_special(ByteVocabulary::end_of_document));
  for (std::int32_t byte = 0; byte < 256; ++byte)
    CHECK(tokenizer.bytes(byte) == std::string(1, static_cast<char>(byte)));
}
