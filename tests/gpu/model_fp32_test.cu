// Models in float on a GPU.
#include "model_cases.hpp"

#include "conformance/model_cases.hpp"
#include "conformance_subjects.hpp"

TEST_CASE("Fp32: training on a GPU agrees with Cpu") {
  gpu::check_training<dsv3::Fp32>(1e-4, 1e-4);  // sums in another order, and three steps of it
}

TEST_CASE("Fp32: fifty steps on a GPU lose what they lose on Cpu") {
  gpu::check_parity<dsv3::Fp32>(2e-3);  // rounding that fifty steps carry on
}

TEST_CASE("Fp32: models on a GPU agree with EigenCpu's, block by block") {
  conformance::models_in_float_agree<conformance::Subjects>();
}
