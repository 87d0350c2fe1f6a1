// Anonymous memory of this process, for tests and benchmarks of what loading takes.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <dsv3/core/view.hpp>
#include <fstream>
#include <string>
#include <thread>

/// Now, in bytes.
inline dsv3::Index anonymous_bytes() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("RssAnon:")) return 1024 * std::stoll(line.substr(8));
  return 0;
}

/// The most while f runs.
dsv3::Index peak_of(auto&& f) {
  std::atomic<bool> stop = false;
  dsv3::Index peak = anonymous_bytes();
  std::thread watch([&] {
    while (!stop) {
      peak = std::max(peak, anonymous_bytes());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  f();
  stop = true;
  watch.join();
  return std::max(peak, anonymous_bytes());
}
