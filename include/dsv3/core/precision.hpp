// Precision policies: which type plays which role. Blocks name roles, never types.
#pragma once

#include <dsv3/core/scalar.hpp>

namespace dsv3 {

/// Everything in double: gradient checks against finite differences.
struct Fp64 {
  static constexpr const char* name = "fp64";
  using master = double;       ///< weights as the optimizer sees them, and their gradients
  using weight = double;       ///< weights as operands of products, norms, embedding, head and gate
  using residual = double;     ///< the residual stream
  using activation = double;   ///< everything else between blocks
  using accumulator = double;  ///< sums inside products, gate, softmax, statistics, losses
  using moment = double;       ///< AdamW's two moments
};

/// Everything in float.
struct Fp32 {
  static constexpr const char* name = "fp32";
  using master = float;
  using weight = float;
  using residual = float;
  using activation = float;
  using accumulator = float;
  using moment = float;
};

/// bf16 weights and activations beside float masters, gradients, moments and sums.
///
/// The residual stream is float: rounding it to bf16 at every addition is the largest error of such
/// a model (on the golden case v2 it raises the worst gradient's relative error from 0.14 to 0.23).
struct Bf16 {
  static constexpr const char* name = "bf16";
  using master = float;
  using weight = bf16;
  using residual = float;
  using activation = bf16;
  using accumulator = float;
  using moment = float;
};

}  // namespace dsv3
