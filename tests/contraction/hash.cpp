// Prints a hash of every bit that three training steps leave, in each precision.
#include <cinttypes>
#include <cstdio>

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
}
