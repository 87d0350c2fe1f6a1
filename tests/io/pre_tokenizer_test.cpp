#include <doctest/doctest.h>

#include <dsv3/io/pre_tokenizer.hpp>

using namespace dsv3;
using namespace dsv3::detail;

namespace {

// The pieces with bars between them.
std::string cut(const std::vector<std::string>& expressions, const std::string& text) {
  ExpressionSearch search(100'000);
  std::string pieces;
  PreTokenizer(expressions).split(search, text, [&](std::string_view piece) {
    pieces += (pieces.empty() ? "" : "|") + std::string(piece);
  });
  return pieces;
}

std::string error_of(const std::string& expression) {
  try {
    Expression compiled(expression);
  } catch (const std::invalid_argument& error) {
    const std::string where = "expression " + in_quotes(expression) + ": ";
    REQUIRE(std::string(error.what()).substr(0, where.size()) == where);
    return std::string(error.what()).substr(where.size());
  }
  return "accepted";
}

}  // namespace

TEST_CASE("PreTokenizer cuts a text into matches and what lies between") {
  CHECK(cut({"b+"}, "abbcb") == "a|bb|c|b");
  CHECK(cut({"b+"}, "bb") == "bb");
  CHECK(cut({"b+"}, "ac") == "ac");
  CHECK(cut({"b+"}, "") == "");
  CHECK(cut({}, "ab") == "ab");
}

TEST_CASE("An expression sees nothing outside of the piece that earlier ones left") {
  CHECK(cut({"[0-9]", "[a-z]+(?!0)"}, "ab0") == "ab|0");
  CHECK(cut({"[a-z]+(?!0)"}, "ab0") == "a|b0");
  CHECK(cut({"[0-9]", "(?<=0)a"}, "0ab") == "0|ab");
  CHECK(cut({"x", "(?<=0)a"}, "0ab") == "0|a|b");  // inside of a piece it looks back
  CHECK(cut({"[0-9]+", "[0-4]"}, "a35b") == "a|3|5|b");
}

TEST_CASE("White space, digits and categories are Unicode's, whatever PCRE2 was built with") {
  // All of White_Space; U+180E and U+200B are none.
  const std::string white =
      "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
      "\u200a\u2028\u2029\u202f\u205f\u3000";
  CHECK(cut({"\\s+"}, "a" + white + "b") == "a|" + white + "|b");
  CHECK(cut({"[x\\s]+"}, "a" + white + "b") == "a|" + white + "|b");
  CHECK(cut({"\\S+"}, "a\u180e\u200b b") == "a\u180e\u200b| |b");
  CHECK(cut({"[^\\s]+"}, "a\u180e\u200b b") == "a\u180e\u200b| |b");
  CHECK(cut({"\\d"}, "1\u0967\u00bd") == "1|\u0967|\u00bd");  // Nd, Nd, No
  CHECK(cut({"\\D+"}, "a\u00bd1") == "a\u00bd|1");
  CHECK(cut({"\\p{Lu}"}, "a\u00c9b") == "a|\u00c9|b");
  CHECK(cut({"\\P{L}"}, "a\u00c9-") == "a\u00c9|-");
}

TEST_CASE("Escapes and codes mean what they say") {
  CHECK(cut({"\\r\\n\\t"}, "a\r\n\tb") == "a|\r\n\t|b");
  CHECK(cut({"\\u00e9|\\x{20AC}"}, "a\u00e9b\u20acc") == "a|\u00e9|b|\u20ac|c");
  CHECK(cut({"[\\u4e00-\\u9fa5]+"}, "a\u6df1\u5ea6b") == "a|\u6df1\u5ea6|b");
  CHECK(cut({"\\.\\-\\]\\["}, "a.-][b") == "a|.-][|b");
  CHECK(cut({"[!\\-\\]\\\\^{}#]+"}, "a!-]\\^{}#b") == "a|!-]\\^{}#|b");
  CHECK(cut({"a{2}|b{1,2}|c{2,}"}, "aaabbbcccc") == "aa|a|bb|b|cccc");
  CHECK(cut({"a+?|(?:bc)|(?>d)|(e)"}, "aabcde") == "a|a|bc|d|e");
  CHECK(cut({"a."}, "a\nab") == "a\n|ab");
}

TEST_CASE("What Oniguruma and PCRE2 read differently is refused") {
  for (const char c : std::string("whHbBAzZGKRXNOQEkgvfae0123456789"))
    CHECK(error_of("\\" + std::string(1, c)) ==
          "escape '\\" + std::string(1, c) + "' is unsupported");
  CHECK(error_of("\\x41") == "escape '\\x' is unsupported");
  CHECK(error_of("a\\") == "ends in a '\\'");
  CHECK(error_of("\\u12") == "escape '\\u12' is unsupported");
  CHECK(error_of("\\x{12") == "escape '\\x{12' is unsupported");
  CHECK(error_of("\\x{}") == "escape '\\x{}' is unsupported");
  CHECK(error_of("\\p{Han}") == "property '\\p{Han}' is unsupported");
  CHECK(error_of("\\p{^L}") == "property '\\p{^L}' is unsupported");
  CHECK(error_of("\\pL") == "property '\\pL' is unsupported");
  CHECK(error_of("\\p{}") == "property '\\p{}' is unsupported");
  CHECK(error_of("^a") == "anchor '^' is unsupported");
  CHECK(error_of("a$") == "anchor '$' is unsupported");
  CHECK(error_of("[a[b]]") == "inside a class '[' is unsupported");
  CHECK(error_of("[a&&b]") == "inside a class '&&' is unsupported");
  CHECK(error_of("[a\\S]") == "inside a class '\\S' is unsupported");
  CHECK(error_of("[]a]") == "']' at the beginning of '[...]' is unsupported");
  CHECK(error_of("[^]a]") == "']' at the beginning of '[...]' is unsupported");
  CHECK(error_of("[a-\\s]") == "'-' beside '\\s' is unsupported");
  CHECK(error_of("[\\s-z]") == "'-' beside '\\s' is unsupported");
  CHECK(error_of("[\\p{L}-z]") == "'-' beside '\\p' is unsupported");
  CHECK(error_of("[\\s-]") == "accepted");
  CHECK(error_of("[a\\-\\s]") == "accepted");
  CHECK(error_of("(?i:a)") == "group '(?i' is unsupported");
  CHECK(error_of("(?<n>a)") == "group '(?<' is unsupported");
  CHECK(error_of("(*UTF)a") == "group '(*' is unsupported");
  CHECK(error_of("a{,2}") == "repetition '{,2' is unsupported");
  CHECK(error_of("a{2}?") == "repetition '{2}?' is unsupported");
  CHECK(error_of("a{2,3}+") == "repetition '{2,3}+' is unsupported");
  CHECK(error_of("a{b}") == "repetition '{b}' is unsupported");
  CHECK(error_of("a{2,3}?") == "accepted");
}

TEST_CASE("Expressions that cannot cut a text are refused") {
  CHECK(error_of("a*") == "must not match the empty text");
  CHECK(error_of("") == "must not match the empty text");
  CHECK(error_of("a|") == "must not match the empty text");
  CHECK(error_of("(a") == "missing closing parenthesis");
  CHECK(error_of("\\x{110000}") == "character code point value in \\x{} or \\o{} is too large");
  CHECK(error_of("(((a{500}){500}){500}){500}") == "regular expression is too large");
  CHECK(error_of(std::string(16385, 'a')) == "bytes (16385) must be at most 16384");
  CHECK_THROWS_WITH_AS(PreTokenizer(std::vector<std::string>(65, "a")),
                       "expressions (65) must be at most 64", std::invalid_argument);
}

TEST_CASE("An expression that steps back too often is an error, not a wait") {
  ExpressionSearch search(1000);
  const Expression evil("(?:a|a)+b");
  CHECK(evil.find(search, "xaab", 0)->begin == 1);
  // With a "b" behind: without one, no search is begun.
  CHECK_THROWS_WITH_AS(evil.find(search, std::string(40, 'a') + "cb", 0), "match limit exceeded",
                       std::runtime_error);
}
