// Golden data in float on a GPU: models, a training run, AdamW.
#include "golden_cases.hpp"

TEST_CASE("Fp32: golden models on a GPU") { gpu::check_golden_models<dsv3::Fp32>(); }

TEST_CASE("Fp32: the golden training run and AdamW on a GPU") {
  gpu::check_golden_training<dsv3::Fp32>();
}
