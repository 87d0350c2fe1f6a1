// Golden data on a GPU, by the judge that golden_check has.
#pragma once

#include <doctest/doctest.h>

#include <dsv3/backend/cuda.hpp>

#include "golden_check/adamw_case.hpp"
#include "golden_check/model_case.hpp"
#include "program.hpp"

namespace gpu {

/// One folder of tests/golden: every array within golden_check's tolerances.
inline void check_golden_data(const std::string& name, auto&& check,
                              const dsv3::CudaOptions& options = {}) {
  if (!available()) return;
  dsv3::Cuda cuda(options);
  golden::Counts counts;
  check(std::string(DSV3_TEST_DATA "/golden/") + name, cuda, counts);
  INFO(name);
  CHECK(counts.failed == 0);
  CHECK(counts.passed > 0);
}

template <class P>
void check_golden_models() {
  for (const char* name :
       {"dense", "moonlight", "v2", "v2_lite", "v3", "v3_mtp2", "v3_yarn", "variants"})
    check_golden_data(name,
                      [](const std::string& folder, dsv3::Cuda& cuda, golden::Counts& counts) {
                        golden::check_model_case<P>(folder, cuda, counts);
                      });
}

template <class P>
void check_golden_training() {
  check_golden_data("trajectory",
                    [](const std::string& folder, dsv3::Cuda& cuda, golden::Counts& counts) {
                      golden::check_trajectory<P>(folder, cuda, counts);
                    });
  check_golden_data("adamw",
                    [](const std::string& folder, dsv3::Cuda& cuda, golden::Counts& counts) {
                      golden::check_adamw<P>(folder, cuda, counts);
                    });
}

}  // namespace gpu
