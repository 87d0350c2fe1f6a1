// Cuda with every kernel that the GPU has, and with the portable ones alone, for the conformance
// tests.
#pragma once

#include "conformance/desk.hpp"
#include "program.hpp"
#include "where.hpp"

namespace conformance {

struct Subjects {
  static void each(auto&& f) {
    if (!gpu::available()) return;
    // Tensor cores take attention's weights in bf16. On Cpu, rounding them so moves a model of
    // codes by 0.11, and gradients by 0.23.
    const Limits portable{.fp8_values = 0.15, .fp8_gradients = 0.3};
    if (!on_fibers) {
      dsv3::Cuda cuda;
      // Hopper's tensor cores add codes with 14 bits: the largest errors seen are 2.5e-4 and, in
      // gradients of weights, 9.3e-4 of the sum of magnitudes. That much noise on every product
      // moves the model's values by 0.14 and gradients by 0.26.
      const bool hopper = cuda.capability() == 90;
      f("Cuda", cuda,
        hopper ? Limits{.codes = 2e-3, .fp8_values = 0.3, .fp8_gradients = 0.4} : portable);
    }
    dsv3::Cuda cuda({.vendor_products = false, .hopper_kernels = false});
    f("Cuda, portable kernels", cuda, portable);
  }
};

}  // namespace conformance
