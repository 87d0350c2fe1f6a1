// Expression: a compiled regular expression over UTF-8, on PCRE2. Link pcre2-8.
#pragma once

#include <dsv3/io/expression_dialect.hpp>
#include <memory>
#include <optional>

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

namespace dsv3::detail {

struct Pcre2Delete {
  void operator()(pcre2_code_8* code) const { pcre2_code_free_8(code); }
  void operator()(pcre2_match_data_8* data) const { pcre2_match_data_free_8(data); }
  void operator()(pcre2_match_context_8* context) const { pcre2_match_context_free_8(context); }
  void operator()(pcre2_compile_context_8* context) const { pcre2_compile_context_free_8(context); }
};
template <class T>
using Pcre2Pointer = std::unique_ptr<T, Pcre2Delete>;

// What PCRE2 says of an error.
inline std::string pcre2_text(int error) {
  unsigned char text[256];
  pcre2_get_error_message_8(error, text, sizeof text);
  return static_cast<const char*>(static_cast<const void*>(text));
}

// What a search needs besides the expression: one for each thread.
class ExpressionSearch {
 public:
  // At most `steps` of backtracking at each place where a match may begin, and 64 MiB for them.
  explicit ExpressionSearch(std::uint32_t steps)
      : data_(pcre2_match_data_create_8(1, nullptr)),
        context_(pcre2_match_context_create_8(nullptr)) {
    if (!data_ || !context_) throw std::bad_alloc();
    pcre2_set_match_limit_8(context_.get(), steps);
    pcre2_set_heap_limit_8(context_.get(), 65536);  // KiB
  }

 private:
  friend class Expression;
  Pcre2Pointer<pcre2_match_data_8> data_;
  Pcre2Pointer<pcre2_match_context_8> context_;
};

// An expression of a tokenizer.json. Const use from several threads is safe.
// Errors   std::invalid_argument "expression '...': what is wrong".
class Expression {
 public:
  static constexpr std::size_t most_bytes = 16384;

  struct Match {
    std::size_t begin, end;
  };

  explicit Expression(std::string_view text) {
    const std::string where = "expression " + in_quotes(text) + ": ";
    if (text.size() > most_bytes)
      throw std::invalid_argument(where + "bytes (" + std::to_string(text.size()) +
                                  ") must be at most " + std::to_string(most_bytes));
    std::string pattern;
    try {
      pattern = ExpressionDialect::translate(text);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(where + error.what());
    }
    const Pcre2Pointer<pcre2_compile_context_8> context(pcre2_compile_context_create_8(nullptr));
    if (!context) throw std::bad_alloc();
    pcre2_set_newline_8(context.get(), PCRE2_NEWLINE_LF);  // all that `.` leaves out
    int error = 0;
    std::size_t offset = 0;
    code_.reset(pcre2_compile_8(
        static_cast<const unsigned char*>(static_cast<const void*>(pattern.data())), pattern.size(),
        PCRE2_UTF | PCRE2_NO_UTF_CHECK, &error, &offset, context.get()));
    if (!code_) throw std::invalid_argument(where + pcre2_text(error));
    std::uint32_t empty = 0;
    pcre2_pattern_info_8(code_.get(), PCRE2_INFO_MATCHEMPTY, &empty);
    if (empty) throw std::invalid_argument(where + "must not match the empty text");
    // Where this PCRE2, or this system, has no compiler to machine code, it interprets.
    pcre2_jit_compile_8(code_.get(), PCRE2_JIT_COMPLETE);
  }

  // The first match in the text, which is well formed, at or after `from`.
  // Errors   std::runtime_error what PCRE2 says where its limits are met.
  std::optional<Match> find(ExpressionSearch& search, std::string_view text,
                            std::size_t from) const {
    int result = run(search, text, from, PCRE2_NO_UTF_CHECK);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT)
      result = run(search, text, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
    if (result < 0) throw std::runtime_error(pcre2_text(result));
    const std::size_t* at = pcre2_get_ovector_pointer_8(search.data_.get());
    return Match{at[0], at[1]};
  }

 private:
  int run(ExpressionSearch& search, std::string_view text, std::size_t from,
          std::uint32_t options) const {
    return pcre2_match_8(code_.get(),
                         static_cast<const unsigned char*>(static_cast<const void*>(text.data())),
                         text.size(), from, options, search.data_.get(), search.context_.get());
  }

  Pcre2Pointer<pcre2_code_8> code_;
};

}  // namespace dsv3::detail
