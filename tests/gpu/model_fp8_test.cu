// Models of DeepSeek-V3's recipe on a GPU.
#include "model_cases.hpp"

#include "conformance/model_cases.hpp"
#include "conformance_subjects.hpp"

TEST_CASE("Fp8: training on a GPU agrees with Cpu") {
  // Codes the other way, which differ by up to 2^-3. On Cpu, noise of the size of Hopper's errors
  // on each product of codes moves losses by up to 0.05 and norms by 0.06 to 0.17.
  gpu::check_training<dsv3::Fp8>(1e-1, 0.25);
}

TEST_CASE("Fp8: fifty steps on a GPU lose what they lose on Cpu") {
  gpu::check_parity<dsv3::Fp8>(2e-2);  // codes the other way that fifty steps carry on
}

TEST_CASE("Fp8: generation from a cache of bf16 runs on a GPU") {
  if (!gpu::available()) return;
  dsv3::Cuda cuda;
  for (const auto& result : small::generate<dsv3::Fp8, dsv3::bf16>(cuda))
    CHECK(result.tokens.size() == 8);
}

TEST_CASE("Fp8: models on a GPU agree with EigenCpu's, block by block") {
  conformance::models_in_fp8_agree<conformance::Subjects>();
}
