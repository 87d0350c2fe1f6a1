#include "guarded/guarded.hpp"

#include "nn/fp8_variants.hpp"
#include "small_model.hpp"

#include <doctest/doctest.h>

using namespace dsv3;
using guarded::Guarded;

TEST_CASE_TEMPLATE("Three training steps of a study of FP8 on Guarded have the bits of Cpu", P,
                   fixture::Studies, fixture::MoreStudies) {
  Cpu cpu(1);
  Guarded backend(2);
  CHECK(small::train<P>(backend) == small::train<P>(cpu));
}
