#include <doctest/doctest.h>

#include <dsv3/io/tokenizer.hpp>

#include "folder.hpp"
#include "tokenizer_file.hpp"

using namespace dsv3;

namespace {

using Json = nlohmann::json;

Json good() {
  TokenizerFileMaker m;
  m.merges = {{"t", "h"}, {"th", "e"}};
  m.add("<s>", {{"special", true}});
  return m.json();
}

// What is wrong with a file, after "here: ".
std::string error_of(const std::string& text) {
  try {
    Tokenizer::from_json(text, "here");
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    REQUIRE(message.substr(0, 6) == "here: ");
    return message.substr(6);
  }
  return "accepted";
}

// The same of the good file with one value, at a JSON pointer, replaced.
std::string error_with(const std::string& pointer, const Json& value) {
  Json json = good();
  json[Json::json_pointer(pointer)] = value;
  return error_of(json.dump());
}
std::string error_without(const std::string& parent, const std::string& key) {
  Json json = good();
  json[Json::json_pointer(parent)].erase(key);
  return error_of(json.dump());
}

}  // namespace

TEST_CASE("A tokenizer.json that is no JSON of its kind is refused") {
  REQUIRE(error_of(good().dump()) == "accepted");
  CHECK(error_of("") == "not valid JSON at byte 1");
  CHECK(error_of("{") == "not valid JSON at byte 2");
  CHECK(error_of("[]") == "must hold an object, found an array");
  CHECK(error_of("7") == "must hold an object, found an integer");
  CHECK(error_of("{}") == "missing key 'model.vocab'");
  CHECK(error_of(R"({"model":7})") == "model must be an object, found an integer");
  CHECK(error_of(R"({"model":{"vocab":{}}})") == "missing key 'model.merges'");
  CHECK(error_of(R"({"model":{"vocab":[]}})") == "model.vocab must be an object, found an array");
  CHECK(error_of(R"({"model":{"vocab":null}})") == "model.vocab must be an object, found null");
  CHECK(error_of(R"({"model":{"merges":{}}})") == "model.merges must be an array, found an object");
  CHECK(error_of(R"({"model":{"merges":"a b"}})") ==
        "model.merges must be an array, found a string");
  CHECK(error_of(R"({"model":{"vocab":{},"vocab":{}}})") == "duplicate key 'vocab'");
  CHECK(error_of(R"({"model":{"vocab":{}},"model":{}})") == "duplicate key 'model'");
  CHECK(error_of("{\"model\":{\"vocab\":{\"\xFF\":1}}}") == "not valid JSON at byte 21");
  CHECK(error_of(R"({"model":{"vocab":{"\ud800":1}}})").substr(0, 26) ==
        "not valid JSON at byte 27");
  CHECK(error_of("{\"a\":" + std::string(100'000, '[')) == "nested deeper than 32 levels");
  std::string many = "[0";
  for (int i = 0; i < 100'000; ++i) many += ",0";
  CHECK(error_of("{\"a\":" + many + "]}") == "values must be at most 100000");
  CHECK(error_of("\"" + std::string((std::size_t{1} << 24) + 1, 'a') + "\"") ==
        "string at byte 2 must have at most 16777216 bytes");
  CHECK(error_of("{\"a\": " + std::string(4097, '9')) ==
        "number at byte 7 must have at most 4096 bytes");
  CHECK(error_of("{\"a\": " + std::string(5000, ' ')) == "not valid JSON at byte 5007");
  CHECK(error_of(std::string((std::size_t{1} << 26) + 1, ' ')) ==
        "bytes (67108865) must be at most 67108864");
}

TEST_CASE("A vocabulary that cannot be one is refused") {
  const auto vocabulary = [](const std::string& inside) {
    return error_of(R"({"model":{"vocab":{)" + inside + "}}}");
  };
  CHECK(vocabulary(R"("a":"b")") == "model.vocab: id of 'a' must be an integer, found a string");
  CHECK(vocabulary(R"("a":1.5)") ==
        "model.vocab: id of 'a' must be an integer, found a real number");
  CHECK(vocabulary(R"("a":[1])") == "model.vocab: id of 'a' must be an integer, found an array");
  CHECK(vocabulary(R"("a":{})") == "model.vocab: id of 'a' must be an integer, found an object");
  CHECK(vocabulary(R"("a":-1)") == "model.vocab: id of 'a' (-1) must be from 0 to 2147483647");
  CHECK(vocabulary(R"("a":2147483648)") ==
        "model.vocab: id of 'a' (2147483648) must be from 0 to 2147483647");
  std::string text = good().dump();
  text.replace(text.find("\"vocab\":{"), 9, "\"vocab\":{\"the\":7,");
  CHECK(error_of(text) == "model.vocab: duplicate token 'the'");
  CHECK(error_with("/model/vocab/zz", 256) == "tokens 'th' and 'zz' have the same id (256)");
  CHECK(error_with("/model/vocab/zz", 9999) ==
        "token 'zz': id (9999) must be below the number of tokens (260): ids have no holes");
  CHECK(error_without("/model/vocab", "q") ==
        "token '<s>': id (258) must be below the number of tokens (258): ids have no holes");
  CHECK(error_with("/added_tokens/0/id", 257) == "tokens 'the' and '<s>' have the same id (257)");
  CHECK(error_with("/added_tokens/0/content", "the") ==
        "added token 'the': id (258) must equal that in model.vocab (257)");
  Json no_q = good();
  no_q["model"]["vocab"].erase("q");
  no_q["model"]["vocab"]["qq"] = int{'q'};
  CHECK(error_of(no_q.dump()) == "model.vocab: no token for byte 113");
  Json no_ff = good();  // which is in no UTF-8
  no_ff["model"]["vocab"].erase(TokenizerFileMaker::characters("\xFF"));
  no_ff["model"]["vocab"]["qq"] = 255;
  CHECK(error_of(no_ff.dump()) == "accepted");
  std::string many;
  for (int i = 0; i <= 1 << 20; ++i) many += (i ? ",\"" : "\"") + std::to_string(i) + "\":1";
  CHECK(vocabulary(many) == "model.vocab: tokens must be at most 1048576");
}

TEST_CASE("Merges that cannot be done are refused") {
  const auto with = [](const char* merges) {
    return error_with("/model/merges", Json::parse(merges));
  };
  CHECK(with(R"([["t","h"],7])") ==
        "model.merges[1] must be a string or an array, found an integer");
  CHECK(with(R"([{}])") == "model.merges[0] must be a string or an array, found an object");
  CHECK(with(R"([["t"]])") == "model.merges[0] must hold 2 strings, found 1 or none");
  CHECK(with(R"([[]])") == "model.merges[0] must hold 2 strings, found 1 or none");
  CHECK(with(R"([["t","h","e"]])") == "model.merges[0] must hold 2 strings, found more");
  CHECK(with(R"([["t",7]])") == "model.merges[0] must hold 2 strings, found an integer");
  CHECK(with(R"([[["t"],"h"]])") == "model.merges[0] must hold 2 strings, found an array");
  CHECK(with(R"(["th"])") == "model.merges[0] ('th') must hold one space");
  CHECK(with(R"(["t h e"])") == "model.merges[0] ('t h e') must hold one space");
  CHECK(with(R"([["t","h"],["zz","e"]])") == "model.merges[1]: 'zz' is not in model.vocab");
  CHECK(with(R"([["t","zz"]])") == "model.merges[0]: 'zz' is not in model.vocab");
  CHECK(with(R"([["t","q"]])") == "model.merges[0]: 'tq' is not in model.vocab");
  CHECK(with(R"([["t","h"],"t h"])") == "model.merges[1]: duplicate merge of 't' and 'h'");
  CHECK(with("[]") == "accepted");
  Json many = Json::array();
  for (int i = 0; i <= 1 << 20; ++i) many.push_back("t h");
  CHECK(error_with("/model/merges", many) == "model.merges: merges must be at most 1048576");
}

TEST_CASE("Parts of a file that are not supported are named") {
  CHECK(error_with("/version", "2.0") == "version ('\"2.0\"') is unsupported");
  CHECK(error_with("/extra", 1) == "unknown key 'extra'");
  CHECK(error_with("/truncation", {{"max_length", 5}}) ==
        "truncation ('{\"max_length\":5}') is unsupported");
  CHECK(error_with("/padding", {{"pad_id", 5}}) == "padding ('{\"pad_id\":5}') is unsupported");
  CHECK(error_with("/normalizer", {{"type", "NFC"}}) ==
        "normalizer.type ('\"NFC\"') is unsupported");
  const Json nothing = {{"type", "Sequence"}, {"normalizers", Json::array()}};
  CHECK(error_with("/normalizer", nothing) == "accepted");
  CHECK(error_with("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}}) ==
        "normalizer.normalizers ('[{\"type\":\"NFC\"}]') is unsupported");
  CHECK(error_with("/post_processor", {{"type", "TemplateProcessing"}}) ==
        "post_processor.type ('\"TemplateProcessing\"') is unsupported");
  CHECK(error_with("/post_processor", {{"type", "ByteLevel"}, {"add_prefix_space", true}}) ==
        "accepted");
  CHECK(error_with("/decoder", {{"type", "Metaspace"}}) ==
        "decoder.type ('\"Metaspace\"') is unsupported");
  CHECK(error_without("", "decoder") == "missing key 'decoder'");
  CHECK(error_with("/decoder", 5) == "decoder must be an object, found an integer");
  CHECK(error_with("/model/type", "Unigram") == "model.type ('\"Unigram\"') is unsupported");
  CHECK(error_without("/model", "type") == "model: missing key 'type'");
  CHECK(error_with("/model/dropout", 0.1) == "model.dropout ('0.1') is unsupported");
  CHECK(error_with("/model/byte_fallback", true) == "model.byte_fallback ('true') is unsupported");
  CHECK(error_with("/model/end_of_word_suffix", "</w>") ==
        "model.end_of_word_suffix ('\"</w>\"') is unsupported");
  CHECK(error_with("/model/continuing_subword_prefix", "##") ==
        "model.continuing_subword_prefix ('\"##\"') is unsupported");
  CHECK(error_with("/model/end_of_word_suffix", "") == "accepted");
  CHECK(error_with("/model/unk_token", "<unk>") == "accepted");  // every byte has a token
  CHECK(error_with("/model/ignore_merges", 1) ==
        "model.ignore_merges must be a boolean, found an integer");
  CHECK(error_with("/model/new_key", 1) == "model: unknown key 'new_key'");
}

TEST_CASE("Added tokens that cannot be are refused") {
  const std::string at = "/added_tokens/0";
  CHECK(error_with("/added_tokens", 5) == "added_tokens must be an array, found an integer");
  CHECK(error_with(at, 5) == "added_tokens[0] must be an object, found an integer");
  CHECK(error_with(at + "/single_word", true) ==
        "added_tokens[0].single_word ('true') is unsupported");
  CHECK(error_with(at + "/special", "yes") ==
        "added_tokens[0].special must be a boolean, found a string");
  CHECK(error_with(at + "/id", -1) == "added_tokens[0].id must be an integer from 0 to 2147483647");
  CHECK(error_without(at, "id") == "added_tokens[0].id must be an integer from 0 to 2147483647");
  CHECK(error_without(at, "content") == "added_tokens[0]: missing key 'content'");
  CHECK(error_with(at + "/content", "") ==
        "added_tokens[0].content: bytes (0) must be from 1 to 256");
  CHECK(error_with(at + "/content", std::string(257, 'a')) ==
        "added_tokens[0].content: bytes (257) must be from 1 to 256");
  CHECK(error_with(at + "/colour", 1) == "added_tokens[0]: unknown key 'colour'");
  Json twice = good();
  twice["added_tokens"].push_back(twice["added_tokens"][0]);
  CHECK(error_of(twice.dump()) == "added_tokens: duplicate token '<s>'");
}

TEST_CASE("Pre-tokenizers that are not supported are named") {
  const auto with = [](const char* json) {
    return error_with("/pre_tokenizer", Json::parse(json));
  };
  const auto sequence = [&](const std::string& first) {
    return with((R"({"type":"Sequence","pretokenizers":[)" + first +
                 R"(,{"type":"ByteLevel","add_prefix_space":false}]})")
                    .c_str());
  };
  CHECK(error_without("", "pre_tokenizer") == "missing key 'pre_tokenizer'");
  CHECK(with(R"({"type":"Whitespace"})") == "pre_tokenizer.type ('\"Whitespace\"') is unsupported");
  CHECK(with(R"({"type":"ByteLevel"})") ==
        "pre_tokenizer.add_prefix_space must be given: true, its default, is unsupported");
  CHECK(with(R"({"type":"ByteLevel","add_prefix_space":true})") ==
        "pre_tokenizer.add_prefix_space ('true') is unsupported");
  CHECK(with(R"({"type":"Digits"})") == "pre_tokenizer must end in ByteLevel");
  CHECK(sequence(R"({"type":"ByteLevel","add_prefix_space":false})") ==
        "pre_tokenizer.pretokenizers[1] ('ByteLevel') after ByteLevel is unsupported");
  CHECK(sequence(R"({"type":"Split","pattern":{"String":"a"},"behavior":"Removed"})") ==
        "pre_tokenizer.pretokenizers[0].behavior ('\"Removed\"') is unsupported");
  CHECK(sequence(R"({"type":"Split","pattern":{"Glob":"a"},"behavior":"Isolated"})") ==
        "pre_tokenizer.pretokenizers[0].pattern: unknown key 'Glob'");
  CHECK(sequence(R"({"type":"Split","pattern":{"Regex":"a("},"behavior":"Isolated"})") ==
        "pre_tokenizer: expression 'a(': missing closing parenthesis");
  CHECK(sequence(R"({"type":"Split","pattern":{"Regex":"\\w"},"behavior":"Isolated"})") ==
        "pre_tokenizer: expression '\\w': escape '\\w' is unsupported");
  CHECK(sequence(R"({"type":"Digits","individual_digits":true})") == "accepted");
}

TEST_CASE("Tokenizer names the file that it cannot read") {
  TestFolder folder;
  CHECK_THROWS_WITH_AS(Tokenizer(""), "Tokenizer: path must not be empty", std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      Tokenizer(folder.path("none")),
      ("MappedFile: open '" + folder.path("none") + "': No such file or directory").c_str(),
      std::runtime_error);
  CHECK_THROWS_WITH_AS(
      Tokenizer(folder.at.string()),
      ("MappedFile: open '" + folder.path("tokenizer.json") + "': No such file or directory")
          .c_str(),
      std::runtime_error);
  const std::string empty = folder.write("empty", "");
  CHECK_THROWS_WITH_AS(Tokenizer{empty},
                       ("Tokenizer: '" + empty + "': not valid JSON at byte 1").c_str(),
                       std::invalid_argument);
}
