// Golden data in double on a GPU: models, a training run, AdamW.
#include "golden_cases.hpp"

TEST_CASE("Fp64: golden models on a GPU") { gpu::check_golden_models<dsv3::Fp64>(); }

TEST_CASE("Fp64: the golden training run and AdamW on a GPU") {
  gpu::check_golden_training<dsv3::Fp64>();
}
