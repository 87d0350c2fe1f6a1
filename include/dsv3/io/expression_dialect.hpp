// What an expression of a tokenizer.json means, written for PCRE2.
#pragma once

#include <dsv3/io/posix.hpp>
#include <string>
#include <string_view>

namespace dsv3::detail {

// The files are written for Oniguruma, whose dialect differs from PCRE2's in places: `\h` is a
// hexadecimal digit there and a blank here, `[[a]b]` a union there and a literal here. This takes
// the part that both read alike, spells out what depends on a library's options (`\s` is Unicode's
// White_Space, `\d` its decimal digits) and refuses all else.
//
// Errors   std::invalid_argument "what is wrong"; what PCRE2 refuses by itself is left to it.
// Source   Oniguruma, doc/RE; PCRE2, pcre2pattern(3); Unicode 15, PropList.txt (White_Space).
class ExpressionDialect {
 public:
  static std::string translate(std::string_view text) {
    ExpressionDialect dialect(text);
    while (dialect.at_ < text.size()) dialect.step();
    return std::move(dialect.out_);
  }

 private:
  static constexpr std::string_view white_space =
      R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f})"
      R"(\x{3000})";

  explicit ExpressionDialect(std::string_view text) : text_(text) {}

  [[noreturn]] static void unsupported(const std::string& what, std::string_view found) {
    throw std::invalid_argument(what + " " + in_quotes(found) + " is unsupported");
  }

  bool next_is(std::string_view part) const { return text_.substr(at_).starts_with(part); }
  void copy(std::size_t n) {
    out_ += text_.substr(at_, n);
    at_ += n;
  }

  void step() {
    const char c = text_[at_];
    if (c == '\\')
      escape();
    else if (in_class_)
      step_in_class();
    else if (c == '[')
      open_class();
    else if (c == '(')
      open_group();
    else if (c == '{')
      repeat();
    else if (c == '^' || c == '$')
      unsupported("anchor", text_.substr(at_, 1));
    else
      copy(1);
  }

  void open_class() {
    in_class_ = true;
    copy(next_is("[^") ? 2 : 1);
    if (next_is("]")) unsupported("']' at the beginning of", "[...]");
  }

  void step_in_class() {
    if (next_is("[")) unsupported("inside a class", "[");
    if (next_is("&&")) unsupported("inside a class", "&&");
    if (next_is("]")) in_class_ = false;
    copy(1);
  }

  void open_group() {
    if (next_is("(*")) unsupported("group", "(*");
    if (!next_is("(?")) return copy(1);
    for (const std::string_view known : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"})
      if (next_is(known)) return copy(known.size());
    unsupported("group", text_.substr(at_, 3));
  }

  // {n}, {n,} or {n,m}; `{n}?` and `{n,m}+` are read in two ways.
  void repeat() {
    std::size_t end = at_ + 1;
    const auto digits = [&] {
      const std::size_t begin = end;
      while (end < text_.size() && text_[end] >= '0' && text_[end] <= '9') ++end;
      return end > begin;
    };
    bool good = digits(), exact = true;
    if (good && end < text_.size() && text_[end] == ',') {
      exact = false;
      ++end;
      digits();
    }
    good = good && end < text_.size() && text_[end] == '}';
    const char after = end + 1 < text_.size() ? text_[end + 1] : ' ';
    if (!good || after == '+' || (exact && after == '?'))
      unsupported("repetition", text_.substr(at_, end + 2 - at_));
    copy(end + 1 - at_);
  }

  void escape() {
    if (at_ + 1 == text_.size()) throw std::invalid_argument("ends in a '\\'");
    const char c = text_[at_ + 1];
    if (in_class_ && std::string_view("dDspP").find(c) != std::string_view::npos) check_no_range();
    const auto spell = [&](std::string_view meaning) {
      out_ += meaning;
      at_ += 2;
    };
    switch (c) {
      case 'r':
        return spell("\\x{d}");
      case 'n':
        return spell("\\x{a}");
      case 't':
        return spell("\\x{9}");
      case 'd':
        return spell("\\p{Nd}");
      case 'D':
        return spell("\\P{Nd}");
      case 's':
        return spell(in_class_ ? std::string(white_space) : "[" + std::string(white_space) + "]");
      case 'S':
        if (in_class_) unsupported("inside a class", "\\S");
        return spell("[^" + std::string(white_space) + "]");
      case 'p':
      case 'P':
        return property();
      case 'u':
        return code(4, at_ + 2);
      case 'x':
        if (next_is("\\x{")) return code(8, at_ + 3);
        break;
      default:
        const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        const bool ascii = static_cast<unsigned char>(c) < 0x80;
        if (ascii && !letter && !(c >= '0' && c <= '9')) return copy(2);  // itself, in both
    }
    unsupported("escape", text_.substr(at_, 2));
  }

  // A set of characters ends no range; the dialects disagree on what it does.
  void check_no_range() const {
    const std::size_t end = text_.find('}', at_);
    const bool braces = text_[at_ + 1] == 'p' || text_[at_ + 1] == 'P';
    const std::string_view after =
        text_.substr(braces && end != std::string_view::npos ? end + 1 : at_ + 2);
    const bool before = text_[at_ - 1] == '-' && text_[at_ - 2] != '\\';
    if (before || (after.starts_with('-') && !after.starts_with("-]")))
      unsupported("'-' beside", text_.substr(at_, 2));
  }

  // \p{L}: one of the general categories, which mean the same everywhere.
  void property() {
    static constexpr std::string_view known =
        " C Cc Cf Cn Co Cs L Ll Lm Lo Lt Lu M Mc Me Mn N Nd Nl No P Pc Pd Pe Pf Pi Po Ps S Sc Sk "
        "Sm "
        "So Z Zl Zp Zs ";
    const std::size_t end = text_.find('}', at_);
    const std::string_view all =
        text_.substr(at_, end == std::string_view::npos ? 3 : end + 1 - at_);
    if (all.size() < 5 || all.size() > 6 || all[2] != '{' ||
        known.find(" " + std::string(all.substr(3, all.size() - 4)) + " ") == known.npos)
      unsupported("property", all);
    copy(all.size());
  }

  // \uHHHH or \x{H...}, at most `most` digits from `begin` on.
  void code(std::size_t most, std::size_t begin) {
    std::size_t end = begin;
    while (end < text_.size() && end - begin < most &&
           std::string_view("0123456789abcdefABCDEF").find(text_[end]) != std::string_view::npos)
      ++end;
    const bool braces = most == 8;
    if (end == begin || (braces ? end >= text_.size() || text_[end] != '}' : end - begin != most))
      unsupported("escape", text_.substr(at_, end - at_ + 1));
    out_ += "\\x{" + std::string(text_.substr(begin, end - begin)) + "}";
    at_ = end + (braces ? 1 : 0);
  }

  std::string_view text_;
  std::size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

}  // namespace dsv3::detail
