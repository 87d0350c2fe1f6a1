// The conformance of whole models in each policy.
#pragma once

#include "models.hpp"

namespace conformance {

// In double and float: some hundred roundings.
template <class Subjects>
void models_in_double_agree() {
  models_agree<Subjects, dsv3::Fp64>(1e-13, 1e-12);
}
template <class Subjects>
void models_in_float_agree() {
  models_agree<Subjects, dsv3::Fp32>(1e-5, 2e-5);
}

// Values round to the other neighbour here and there: by 2^-8. Sums in another order move values by
// 0.006 and gradients by 0.011; attention may round its weights to bf16 besides.
template <class Subjects>
void models_in_bf16_agree() {
  models_agree<Subjects, dsv3::Bf16>(2e-2, 5e-2);
}

// Codes go the other way here and there: by up to an eighth of a value, which gradients meet twice.
// Sums in another order move values by 0.017 and gradients by 0.093.
template <class Subjects>
void models_in_fp8_agree() {
  models_agree<Subjects, dsv3::Fp8>(5e-2, 0.2);
}

}  // namespace conformance
