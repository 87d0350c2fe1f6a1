// A user's program with a tokenizer: it links PCRE2 through dsv3::tokenizer.
#include <cstdio>
#include <dsv3/io/tokenizer.hpp>
#include <string>

int main() {
  try {
    dsv3::Tokenizer tokenizer("/nowhere");
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
  }
  const dsv3::detail::PreTokenizer words({"b+"});
  dsv3::detail::ExpressionSearch search(1000);
  std::string cut;
  words.split(search, "abbc", [&](std::string_view word) { cut += std::string(word) + "|"; });
  return cut == "a|bb|c|" ? 0 : 1;
}
