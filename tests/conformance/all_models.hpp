// All of model_cases.hpp as test cases, included as cases.hpp is.
#pragma once

#include "model_cases.hpp"

TEST_CASE("models in double agree with EigenCpu's, block by block") {
  conformance::models_in_double_agree<conformance::Subjects>();
}

TEST_CASE("models in float agree with EigenCpu's, block by block") {
  conformance::models_in_float_agree<conformance::Subjects>();
}

TEST_CASE("models in bf16 agree with EigenCpu's, block by block") {
  conformance::models_in_bf16_agree<conformance::Subjects>();
}

TEST_CASE("models in FP8 agree with EigenCpu's, block by block") {
  conformance::models_in_fp8_agree<conformance::Subjects>();
}
