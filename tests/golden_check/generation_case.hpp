// Generation from the model folders beside a generation.json, and the distributions of sampling.
#pragma once

#include "judge.hpp"

namespace dsv3 {
class Cpu;
class EigenCpu;
}  // namespace dsv3

namespace golden {

/// Compiled apart. precision: "fp64" or "fp32".
void check_generation(const std::string& path, const std::string& precision, dsv3::Cpu& backend,
                      Counts& counts);
void check_generation(const std::string& path, const std::string& precision,
                      dsv3::EigenCpu& backend, Counts& counts);

}  // namespace golden
