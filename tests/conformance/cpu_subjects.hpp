// Cpu with one thread and with several, for the conformance tests.
#pragma once

#include <dsv3/backend/cpu.hpp>

#include "desk.hpp"

namespace conformance {

struct Subjects {
  static void each(auto&& f) {
    for (const int threads : {1, 3}) {
      dsv3::Cpu cpu(threads);
      f(threads == 1 ? "Cpu(1)" : "Cpu(3)", cpu, Limits{});
    }
  }
};

}  // namespace conformance
