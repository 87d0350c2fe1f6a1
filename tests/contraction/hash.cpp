// Prints a hash of every bit that three training steps leave, in each precision.
#include <cinttypes>
#include <cstdio>

#include "../nn/fp8_variants.hpp"
#include "../small_model.hpp"

template <class P, class Backend>
void print(Backend& backend, const char* name) {
  std::printf("%s %s %016" PRIx64 "\n", P::name, name, small::train<P>(backend).hash);
}

int main() {
  dsv3::Cpu cpu(1);
  print<dsv3::Fp64>(cpu, "Cpu");
  print<dsv3::Fp32>(cpu, "Cpu");
  print<dsv3::Bf16>(cpu, "Cpu");
  print<dsv3::Fp8>(cpu, "Cpu");
  print<fixture::PerTensor>(cpu, "Cpu, one scale a tensor");
  print<fixture::Hopper>(cpu, "Cpu, short sums");
  print<fixture::Fp8Moments>(cpu, "Cpu, moments of codes");
}
