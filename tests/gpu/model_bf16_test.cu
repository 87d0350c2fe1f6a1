// Models in bf16 on a GPU.
#include "model_cases.hpp"

#include "conformance/model_cases.hpp"
#include "conformance_subjects.hpp"

TEST_CASE("Bf16: training on a GPU agrees with Cpu") {
  gpu::check_training<dsv3::Bf16>(3e-2, 3e-2);  // a few roundings of 2^-8 the other way
}

TEST_CASE("Bf16: fifty steps on a GPU lose what they lose on Cpu") {
  gpu::check_parity<dsv3::Bf16>(2e-2);  // roundings of 2^-8 that fifty steps carry on
}

TEST_CASE("Bf16: generation from a cache of e4m3 runs on a GPU") {
  if (!gpu::available()) return;
  dsv3::Cuda cuda;  // narrow types may turn a draw the other way: as many tokens, in the vocabulary
  for (const auto& result : small::generate<dsv3::Bf16, dsv3::e4m3>(cuda)) {
    CHECK(result.tokens.size() == 8);
    for (const auto token : result.tokens) CHECK((token >= 0 && token < 53));
  }
}

TEST_CASE("Bf16: models on a GPU agree with EigenCpu's, block by block") {
  conformance::models_in_bf16_agree<conformance::Subjects>();
}
