// The host side, by the host's compiler: one layout of everything shared with nvcc, and where there
// is a GPU, the same numbers as Cpu.
#include <cmath>
#include <cstdio>

#include "program.hpp"

namespace {

int failures = 0;

void expect(bool holds, const char* sentence) {
  std::printf("%s: %s\n", holds ? "passed" : "FAILED", sentence);
  failures += !holds;
}

// Figures agree relative to their size.
bool close(const std::vector<double>& a, const std::vector<double>& b, double tolerance) {
  bool all = a.size() == b.size();
  for (std::size_t i = 0; all && i < a.size(); ++i)
    all = std::fabs(a[i] - b[i]) <= tolerance * std::fabs(b[i]);
  return all;
}

template <class P>
void expect_same_training(double tolerance) {
  dsv3::Cpu cpu(1);
  gpu::Device device;
  const auto sentence = std::string(P::name) + ": three training steps on the GPU agree with Cpu";
  expect(close(small::train<P>(device).figures, small::train<P>(cpu).figures, tolerance),
         sentence.c_str());
}

// In double sums in another order draw the same tokens.
void expect_same_generation() {
  dsv3::Cpu cpu(1);
  gpu::Device device;
  const auto ours = small::generate<dsv3::Fp64, double>(device);
  const auto theirs = small::generate<dsv3::Fp64, double>(cpu);
  bool same = true;
  for (std::size_t i = 0; i < ours.size(); ++i) same = same && ours[i].tokens == theirs[i].tokens;
  expect(same, "fp64: sampled generation with speculation on the GPU is that of Cpu");
  // Narrow types may turn a draw the other way: they run, and give as many tokens.
  bool all = true;
  for (const auto& result : small::generate<dsv3::Bf16, dsv3::e4m3>(device))
    all = all && result.tokens.size() == 8;
  for (const auto& result : small::generate<dsv3::Fp8, dsv3::bf16>(device))
    all = all && result.tokens.size() == 8;
  expect(all, "bf16 from a cache of e4m3 and fp8: generation runs on the GPU");
}

}  // namespace

int main() {
  expect(gpu::layout() == gpu::layout_of_nvcc(),
         "both compilers lay out the library's types alike");
  dsv3::Cpu cpu(1);
  const auto figures = small::train<dsv3::Fp64>(cpu).figures;
  expect(figures.size() == 14 && figures[8] < figures[0],
         "the host part trains beside device code");
  if (!gpu::available()) {
    std::printf("no GPU here: every row kernel was compiled as device code, none was run\n");
    return failures;
  }
  gpu::Device device;
  expect(gpu::core(device) == gpu::core(cpu), "core functions have the bits of the host");
  expect_same_training<dsv3::Fp64>(1e-9);  // sums in another order
  expect_same_training<dsv3::Fp32>(1e-4);  // the same, and three steps of it
  expect_same_training<dsv3::Bf16>(3e-2);  // a few roundings of 2^-9 the other way
  // A few codes the other way, which differ by up to 2^-3.
  expect_same_training<dsv3::Fp8>(1e-1);
  expect_same_training<fixture::Studies>(1e-1);
  expect_same_training<fixture::MoreStudies>(1e-1);
  expect_same_generation();
  return failures;
}
