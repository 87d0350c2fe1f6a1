// Numbers for people.
#pragma once

#include <cstdio>
#include <dsv3/core/view.hpp>
#include <fstream>
#include <string>
#include <vector>

namespace example {

using dsv3::Index;

/// A number with `digits` significant digits, as short as it gets: 0.0022, 1.2e-05, 3200.
inline std::string number(double value, int digits = 3) {
  char text[40];
  std::snprintf(text, sizeof text, "%.*g", digits, value);
  return text;
}

/// A number with `digits` digits after the point.
inline std::string decimal(double value, int digits) {
  char text[400];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

inline std::string grouped(Index n) {  // 1 234 567
  std::string text = std::to_string(n);
  for (auto at = static_cast<Index>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<std::size_t>(at), 1, ' ');
  return text;
}

inline std::string mib(Index bytes) {
  return decimal(static_cast<double>(bytes) / (1 << 20), 1) + " MiB";
}

inline std::string minutes(double seconds) {  // 1:05
  const auto s = static_cast<Index>(seconds + 0.5);
  return std::to_string(s / 60) + (s % 60 < 10 ? ":0" : ":") + std::to_string(s % 60);
}

inline std::string joined(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) all += (all.empty() ? "" : ", ") + word;
  return all;
}

inline std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
  return "unknown";
}

}  // namespace example
