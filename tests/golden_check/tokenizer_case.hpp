// Tokenizer data: compiled apart, in tokenizer_case.cpp.
#pragma once

#include <string>

#include "judge.hpp"

namespace golden {

/// Judges a folder of the kind "tokenizer": its tokenizer.json by cases_small.json, and the file
/// that the environment names by DSV3_TOKENIZER by cases_deepseek_v3.json. One line a case; the
/// error is the number of ids that differ, NaN where the text of the expected ids is another.
/// Errors   std::runtime_error where this program was built without PCRE2, or a file is unusable.
void check_tokenizer(const std::string& path, Counts& counts);

}  // namespace golden
