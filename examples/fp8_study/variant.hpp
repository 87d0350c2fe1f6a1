// A variant as a value, and where the lists of them are.
#pragma once

#include <functional>

#include "measurements.hpp"
#include "options.hpp"

namespace example {

/// What one run leaves.
struct Run {
  std::vector<double> loss;  // of each step, in nats a token; NaN after it diverged
  Index skipped = 0;         ///< steps whose gradient was not finite
  std::vector<Measurements> measurements;
  double seconds = 0;  ///< of the steps without measurements, which had ...
  Index timed_tokens = 0;
};

struct Variant {
  std::string name, what;
  bool is_fp8;
  Run (*train)(const StudyOptions&, const dsv3::TextData&, Index seed, bool probed,
               const std::function<void(Index step, double loss)>& progress);
};

/// Each list is a translation unit of its own: a variant takes the compiler some seconds.
std::vector<Variant> plain_variants();
std::vector<Variant> format_variants();
std::vector<Variant> group_variants();
std::vector<Variant> short_accumulation_variants();
std::vector<Variant> long_accumulation_variants();

inline std::vector<Variant> all_variants() {
  std::vector<Variant> all;
  for (const auto& list : {plain_variants(), format_variants(), group_variants(),
                           short_accumulation_variants(), long_accumulation_variants()})
    all.insert(all.end(), list.begin(), list.end());
  return all;
}

}  // namespace example
