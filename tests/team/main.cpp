// Trains on Crew in each precision, and compares with Cpu, whose sums have another order.
#include <cmath>
#include <cstdio>

#include "../nn/fp8_variants.hpp"
#include "../small_generation.hpp"
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

// Sums in another order may turn a draw the other way, after which texts differ: in double they do
// not.
void compare_generation() {
  crew::Crew crew;
  dsv3::Cpu cpu(1);
  const auto ours = small::generate<dsv3::Fp64, dsv3::e4m3>(crew);
  const auto theirs = small::generate<dsv3::Fp64, dsv3::e4m3>(cpu);
  bool same = true;
  for (std::size_t i = 0; i < ours.size(); ++i) same = same && ours[i].tokens == theirs[i].tokens;
  std::printf("%s: generation from a cache of e4m3 by a team of threads is that of Cpu\n",
              same ? "passed" : "FAILED");
  failures += !same;
}

}  // namespace

int main() {
  compare_generation();
  compare<dsv3::Fp64>(1e-9);  // as on a GPU: see gpu/main.cpp
  compare<dsv3::Bf16>(3e-2);
  compare<dsv3::Fp8>(1e-1);
  compare<fixture::Studies>(1e-1);
  compare<fixture::MoreStudies>(1e-1);
  return failures;
}
