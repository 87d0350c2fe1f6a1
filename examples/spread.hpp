// Mean and range of what several seeds gave.
#pragma once

#include <algorithm>
#include <cmath>

#include "text.hpp"

namespace example {

/// Mean, smallest and largest over the seeds.
struct Spread {
  double mean = 0, least = INFINITY, most = -INFINITY;

  static Spread of(const std::vector<double>& values) {
    Spread s;
    for (const double value : values) {
      s.mean += value / static_cast<double>(values.size());
      s.least = std::min(s.least, value);
      s.most = std::max(s.most, value);
    }
    return s;
  }

  /// "1.234 (1.2 - 1.3)"
  std::string text(int digits) const {
    return decimal(mean, digits) + " (" + decimal(least, digits) + " - " + decimal(most, digits) +
           ")";
  }
};

}  // namespace example
