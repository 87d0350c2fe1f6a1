// Models of policies derived from Fp8 on a GPU: between them they take every path.
#include "model_cases.hpp"

TEST_CASE("Studies of Fp8: training on a GPU agrees with Cpu") {
  gpu::check_training<fixture::Studies>(1e-1, 0.25);  // as Fp8
}

TEST_CASE("More studies of Fp8: training on a GPU agrees with Cpu") {
  gpu::check_training<fixture::MoreStudies>(1e-1, 0.25);  // as Fp8
}
