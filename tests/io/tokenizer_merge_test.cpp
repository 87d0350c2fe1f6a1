#include <doctest/doctest.h>

#include <dsv3/io/tokenizer.hpp>

#include "tokenizer_file.hpp"

using namespace dsv3;

namespace {

using Ids = std::vector<std::int32_t>;

std::uint32_t next(std::uint32_t& state) { return (state = state * 1664525u + 1013904223u) >> 16; }

// Random merges of an alphabet of three letters: each of two tokens that are there already.
TokenizerFileMaker random_merges(std::uint32_t& state, std::size_t n) {
  TokenizerFileMaker m;
  std::vector<std::string> tokens = {"a", "b", "c"};
  for (std::size_t tries = 0; m.merges.size() < n && tries < 100 * n; ++tries) {
    const std::string left = tokens[next(state) % tokens.size()];
    const std::string right = tokens[next(state) % tokens.size()];
    const std::string both = left + right;
    // A text has one token, though several pairs may give it.
    const auto known = std::find(tokens.begin(), tokens.end(), both);
    if (both.size() > 12 || known != tokens.end()) continue;
    m.merges.push_back({left, right});
    tokens.push_back(both);
  }
  return m;
}

// The definition: look for the pair of lowest rank, the leftmost of equals, and begin again.
Ids merge_by_scanning(const TokenizerFileMaker& m, const std::string& word) {
  std::vector<std::string> parts;
  for (const char c : word) parts.emplace_back(1, c);
  while (true) {
    std::size_t best = m.merges.size(), at = 0;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i)
      for (std::size_t rank = 0; rank < best; ++rank)
        if (m.merges[rank].first == parts[i] && m.merges[rank].second == parts[i + 1])
          best = rank, at = i;
    if (best == m.merges.size()) break;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  Ids ids;
  for (const std::string& part : parts) {
    std::int32_t id = static_cast<unsigned char>(part[0]);
    for (std::size_t i = 0; part.size() > 1 && i < m.merges.size(); ++i)
      if (m.merges[i].first + m.merges[i].second == part) id = static_cast<std::int32_t>(256 + i);
    ids.push_back(id);
  }
  return ids;
}

}  // namespace

TEST_CASE("The heap of merges gives what scanning for the lowest rank gives") {
  std::uint32_t state = 7;
  std::size_t merged = 0;
  for (int vocabulary = 0; vocabulary < 20; ++vocabulary) {
    const TokenizerFileMaker m = random_merges(state, 5 + next(state) % 60);
    const Tokenizer t = Tokenizer::from_json(m.text(), "here");
    for (int i = 0; i < 50; ++i) {
      std::string word(1 + next(state) % 60, 'a');
      for (char& c : word) c = static_cast<char>('a' + next(state) % 3);
      const Ids ids = t.encode(word);
      CHECK(ids == merge_by_scanning(m, word));
      merged += word.size() - ids.size();
    }
  }
  CHECK(merged > 5000);  // it was not for nothing
}

TEST_CASE("Pairs that give the same token merge by their own ranks") {
  TokenizerFileMaker m;
  m.merges = {{"a", "b"}, {"b", "c"}, {"a", "bc"}};  // 256, 257, 258: abc
  auto json = m.json();
  json["model"]["merges"].push_back({"ab", "c"});  // another way to abc
  const Tokenizer t = Tokenizer::from_json(json.dump(), "here");
  CHECK(t.encode("abc") == Ids{258});
  CHECK(t.encode("bcabc") == Ids{257, 258});
}

// A quadratic loop would need hours for these.
TEST_CASE("Words of a megabyte are merged") {
  const std::size_t n = std::size_t{1} << 20;
  TokenizerFileMaker m;
  std::string power = "a";  // 256 + k is a^(2^(k + 1))
  for (int k = 0; k < 10; ++k) m.merges.push_back({power, power}), power += power;
  m.merges.push_back({"b", "c"});
  const Tokenizer t = Tokenizer::from_json(m.text(), "here");
  CHECK(t.encode(std::string(n, 'a')) == Ids(n >> 10, 265));
  CHECK(t.encode(std::string(n, 'd')) == Ids(n, 'd'));
  std::string pairs;
  while (pairs.size() < n) pairs += "bc";
  CHECK(t.encode(pairs) == Ids(n / 2, 266));
  // One that each merge lengthens from the left, a token a time.
  TokenizerFileMaker chain;
  for (std::string left = "a"; left.size() < 200; left += 'b') chain.merges.push_back({left, "b"});
  Ids wanted = {256 + 198};
  wanted.resize(n - 199, 'b');
  CHECK(Tokenizer::from_json(chain.text(), "here").encode("a" + std::string(n - 1, 'b')) == wanted);
}

TEST_CASE("Runs of a megabyte without words pass the published expressions") {
  TokenizerFileMaker m;
  m.expressions = {R"(\p{N}{1,3})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
                   R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^)"
                   "\r\n"
                   R"(\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[)"
                   "\r\n"
                   R"(]*|\s*[)"
                   "\r\n"
                   R"(]+|\s+(?!\S)|\s+)"};
  const Tokenizer t = Tokenizer::from_json(m.text(), "here");
  for (const char* part :
       {" ", "\n", "\t ", "!", "9", "\xE6\xB7\xB1", "\xE0\xA4\xA8", " \n", "a "}) {
    std::string text;
    while (text.size() < std::size_t{1} << 20) text += part;
    CHECK(t.decode(t.encode(text)) == text);
    CHECK(t.decode(t.encode(text + "x")) == text + "x");
  }
}
