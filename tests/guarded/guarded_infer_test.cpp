#include "guarded/guarded.hpp"

#include "small_generation.hpp"

#include <doctest/doctest.h>

using namespace dsv3;
using guarded::Guarded;

namespace {

template <class P, class C>
void compare() {
  Cpu cpu(1);
  Guarded backend(2);
  const auto expected = small::generate<P, C>(cpu), results = small::generate<P, C>(backend);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(results[i].tokens.size() == 8);
    CHECK(results[i].tokens == expected[i].tokens);
    CHECK(results[i].log_probabilities == expected[i].log_probabilities);
  }
  CHECK(backend.repeated() > 0);
}

}  // namespace

TEST_CASE("Generation on Guarded has the bits of Cpu") {
  compare<Fp32, float>();
  compare<Bf16, e4m3>();
  compare<Fp8, bf16>();
}
