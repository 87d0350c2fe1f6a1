// Models in double on a GPU.
#include "model_cases.hpp"

#include "conformance/model_cases.hpp"
#include "conformance_subjects.hpp"

template std::vector<std::uint32_t> gpu::core(dsv3::Cuda&);
template small::Outcome small::train<dsv3::Fp64>(dsv3::Cuda&);

std::vector<std::size_t> gpu::sizes_of_nvcc() { return {std::begin(sizes), std::end(sizes)}; }

TEST_CASE("Fp64: training on a GPU agrees with Cpu") {
  gpu::check_training<dsv3::Fp64>(1e-9, 1e-9);  // sums in another order
}

TEST_CASE("Fp64: sampled generation with speculation on a GPU draws the tokens of Cpu") {
  if (!gpu::available()) return;
  dsv3::Cpu cpu(1);
  dsv3::Cuda cuda;
  const auto ours = small::generate<dsv3::Fp64, double>(cuda);
  const auto theirs = small::generate<dsv3::Fp64, double>(cpu);
  for (std::size_t i = 0; i < ours.size(); ++i) CHECK(ours[i].tokens == theirs[i].tokens);
}

TEST_CASE("Fp64: models on a GPU agree with EigenCpu's, block by block") {
  conformance::models_in_double_agree<conformance::Subjects>();
}
