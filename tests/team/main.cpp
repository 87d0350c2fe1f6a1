// Trains on Crew in each precision, and compares with Cpu, whose sums have another order.
#include <cmath>
#include <cstdio>

#include "../nn/fp8_variants.hpp"
#include "../small_model.hpp"
#include "crew.hpp"

namespace {

int failures = 0;

template <class P>
void compare(double tolerance) {
  crew::Crew crew;
  dsv3::Cpu cpu(1);
  const auto ours = small::train<P>(crew).figures, theirs = small::train<P>(cpu).figures;
  double worst = ours.size() == theirs.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < ours.size(); ++i)
    worst = std::fmax(worst, std::fabs(ours[i] - theirs[i]) / std::fabs(theirs[i]));
  std::printf("%s: %s: three training steps by a team of threads differ from Cpu by %.1e\n",
              worst <= tolerance ? "passed" : "FAILED", P::name, worst);
  failures += !(worst <= tolerance);
}

}  // namespace

int main() {
  compare<dsv3::Fp64>(1e-9);  // as on a GPU: see gpu/main.cpp
  compare<dsv3::Bf16>(3e-2);
  compare<dsv3::Fp8>(1e-1);
  compare<fixture::Studies>(1e-1);
  compare<fixture::MoreStudies>(1e-1);
  return failures;
}
