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

/// How products of codes add up, beside the plain way: inside a sum of `interval` products in
/// float, then promoted. `bits` 0 stands for float's own sums.
///
/// Source   spec 7.4.
struct Accumulation {
  int bits = 0;          ///< significant bits of the emulated tensor core's accumulator; 14: Hopper
  Index interval = 128;  ///< products between promotions to float (N_C); 0: none before the end
};

/// DeepSeek-V3's fine-grained mixed precision. The linear layers of attention, MLPs and experts
/// multiply FP8 codes, forward and backward; everything else is as in Bf16. A study derives from
/// this policy and replaces a member.
///
///     codes                     groups that share a scale
///     activations, 1 x tile     along the features: forward, and gradients in inputs
///     activations, tile x 1     along the tokens: gradients in weights
///     weights, block x block
///
/// Source   DeepSeek-V3 section 3.3; spec 7.3 to 7.7.
struct Fp8 : Bf16 {
  static constexpr const char* name = "fp8";
  using moment = bf16;
  using code = e4m3;                   ///< of weights and activations
  using gradient_code = e4m3;          ///< of gradients in activations
  static constexpr Index tile = 128;   ///< 32, 64, 128 or 256; 0: one scale for a whole tensor
  static constexpr Index block = 128;  ///< of weights; 0: one scale for each matrix
  static constexpr Index gradient_rows = 1;    ///< tokens that share a scale in dX = dY W: 1 or 128
  static constexpr double amax_min = 0;        ///< see ScaleRule
  static constexpr bool power_of_two = false;  ///< scales of everything (UE8M0)
  static constexpr bool power_of_two_dispatch = true;  ///< scales of what goes to experts and back
  static constexpr bool stochastic_rounding = false;   ///< of gradients in activations
  /// Delayed scaling: the scale of inputs and gradients follows from the largest magnitude of so
  /// many steps before, not from this one's. Needs tile = 0. Beyond it values saturate.
  static constexpr Index history = 0;
  static constexpr bool checked = false;  ///< stop at the first NaN or infinity, and say where
  static constexpr Accumulation accumulation = {};
};

/// True for policies whose linear layers multiply codes.
template <class P>
concept QuantizedPolicy = requires {
  typename P::code;
};

}  // namespace dsv3
