#include "tokenizer_case.hpp"

#ifdef DSV3_HAS_PCRE2

#include <cstdlib>
#include <dsv3/io/tokenizer.hpp>

namespace golden {

namespace {

double differences(const std::vector<std::int32_t>& ours, const std::vector<std::int32_t>& theirs) {
  const std::size_t common = std::min(ours.size(), theirs.size());
  double n = static_cast<double>(std::max(ours.size(), theirs.size()) - common);
  for (std::size_t i = 0; i < common; ++i) n += ours[i] != theirs[i];
  return n;
}

void check_cases(const dsv3::Tokenizer& tokenizer, const std::string& path, const std::string& name,
                 Counts& counts) {
  const std::string file = path + "/" + name + ".json";
  const dsv3::MappedFile text(file);
  const auto cases = dsv3::detail::parse_json(
      {static_cast<const char*>(static_cast<const void*>(text.data())), text.size()}, file);
  const auto line = [&](const std::string& array, double error) {
    const bool ok = error == 0;
    ++(ok ? counts.passed : counts.failed);
    std::printf("%s %s %.3g 0 %s\n", path.c_str(), array.c_str(), error, ok ? "ok" : "FAIL");
  };
  if (!cases.is_array()) throw std::runtime_error(file + ": must hold an array of cases");
  if (cases.empty()) line(name + " (nothing compared)", NAN);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const std::string what = name + "[" + std::to_string(i) + "]";
    const auto& one = cases[i];
    if (!one.is_object() || one.size() != 2 || !one.contains("text") || !one.contains("ids"))
      throw std::runtime_error(file + ": case " + std::to_string(i) + " must hold text and ids");
    std::string expected_text;
    std::vector<std::int32_t> expected;
    try {
      one["text"].get_to(expected_text);
      one["ids"].get_to(expected);
    } catch (const std::exception& error) {
      throw std::runtime_error(file + ": case " + std::to_string(i) + ": " + error.what());
    }
    try {
      const double ids = differences(tokenizer.encode(expected_text), expected);
      line(what, tokenizer.decode(expected) == expected_text ? ids : NAN);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "golden_check: %s %s: %s\n", path.c_str(), what.c_str(), error.what());
      line(what, NAN);
    }
  }
}

}  // namespace

void check_tokenizer(const std::string& path, Counts& counts) {
  namespace fs = std::filesystem;
  const bool small = fs::exists(path + "/cases_small.json");
  const bool published = fs::exists(path + "/cases_deepseek_v3.json");
  if (!small && !published)
    throw std::runtime_error(path + ": holds neither cases_small.json nor cases_deepseek_v3.json");
  if (small) check_cases(dsv3::Tokenizer(path), path, "cases_small", counts);
  if (!published) return;
  const char* file = std::getenv("DSV3_TOKENIZER");
  if (file && *file) return check_cases(dsv3::Tokenizer(file), path, "cases_deepseek_v3", counts);
  ++counts.skipped;
  std::printf("%s cases_deepseek_v3 - - skipped (DSV3_TOKENIZER names no file)\n", path.c_str());
}

}  // namespace golden

#else

#include <stdexcept>

void golden::check_tokenizer(const std::string& path, Counts&) {
  throw std::runtime_error(path +
                           ": tokenizer data needs PCRE2, and this golden_check was built "
                           "without it (Debian: libpcre2-dev)");
}

#endif
