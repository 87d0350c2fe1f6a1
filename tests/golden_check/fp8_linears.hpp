// What golden_check does at --precision fp8: compiled apart, in fp8_linears.cpp.
#pragma once

#include <string>

#include "judge.hpp"

namespace golden {

/// Judges a folder of the kind "fp8", or a checkpoint with FP8 weights.
template <class Backend>
void check_fp8_linears(const std::string& path, bool casts, Backend& backend, Counts& counts);

}  // namespace golden
