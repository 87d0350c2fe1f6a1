// Golden data of FP8 on a GPU: codes, scales, products, and a checkpoint of codes. With the
// portable kernels, whose sums are float's: Hopper's tensor cores add products of codes with 14
// bits.
#include "golden_cases.hpp"
#include "golden_check/fp8_checkpoint_case.hpp"

TEST_CASE("Fp8: golden casts and linear layers on a GPU") {
  gpu::check_golden_data("fp8",
                         [](const std::string& folder, dsv3::Cuda& cuda, golden::Counts& counts) {
                           golden::check_fp8(folder, cuda, counts);
                         },
                         {.hopper_kernels = false});
}

// Without the parity rule: a GPU adds in another order.
TEST_CASE("Fp8: the golden checkpoint of codes on a GPU") {
  for (const bool hopper_kernels : {false, true})
    gpu::check_golden_data("fp8_checkpoint",
                           [](const std::string& folder, dsv3::Cuda& cuda, golden::Counts& counts) {
                             golden::check_fp8_checkpoint(folder, cuda, counts, false);
                           },
                           {.hopper_kernels = hopper_kernels});
}
