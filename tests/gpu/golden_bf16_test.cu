// Golden data in bf16 on a GPU: models.
#include "golden_cases.hpp"

TEST_CASE("Bf16: golden models on a GPU") { gpu::check_golden_models<dsv3::Bf16>(); }
