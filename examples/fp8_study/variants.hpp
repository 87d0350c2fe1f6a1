// The FP8 policies that the study compares. To add one: a struct here, and an entry in the list of
// one of the .cpp files beside this one.
#pragma once

#include <dsv3/core/moment.hpp>
#include <dsv3/core/precision.hpp>

namespace example {

using dsv3::Index;

/// Gradients in activations keep their range rather than their mantissa.
struct E5m2Gradients : dsv3::Fp8 {
  static constexpr const char* name = "e5m2_gradients";
  using gradient_code = dsv3::e5m2;
};

/// One scale for a whole tensor.
struct PerTensor : dsv3::Fp8 {
  static constexpr const char* name = "per_tensor";
  static constexpr Index tile = 0, block = 0;
};

/// The same, the scale following from the steps before.
struct Delayed : PerTensor {
  static constexpr const char* name = "delayed";
  static constexpr Index history = 16;
};

/// Groups of 1 x 32, 1 x 64 and 1 x 256 activations.
struct Tile32 : dsv3::Fp8 {
  static constexpr const char* name = "tile_32";
  static constexpr Index tile = 32;
};
struct Tile64 : dsv3::Fp8 {
  static constexpr const char* name = "tile_64";
  static constexpr Index tile = 64;
};
struct Tile256 : dsv3::Fp8 {
  static constexpr const char* name = "tile_256";
  static constexpr Index tile = 256;
};

/// Every scale a power of two.
struct Ue8m0 : dsv3::Fp8 {
  static constexpr const char* name = "ue8m0";
  static constexpr bool power_of_two = true;
};

/// 128 x 128 blocks of dY in dX = dY W: with them a 16B model of the paper diverged (its appendix
/// B.2).
struct GradientBlocks : dsv3::Fp8 {
  static constexpr const char* name = "gradient_blocks";
  static constexpr Index gradient_rows = 128;
};

/// Gradients in activations rounded up or down by chance, right on average.
struct Stochastic : dsv3::Fp8 {
  static constexpr const char* name = "stochastic";
  static constexpr bool stochastic_rounding = true;
};

/// AdamW's moments as codes in groups of 1 x 128: m in E4M3, the square root of v in E5M2.
struct Fp8Moments : dsv3::Fp8 {
  static constexpr const char* name = "fp8_moments";
  using moment = dsv3::QuantizedMoment<dsv3::e4m3>;
  using second_moment = dsv3::QuantizedMoment<dsv3::e5m2>;
};

/// Products as tensor cores with accumulators of 14 bits add them, promoted to float after 32 ...
/// 512 products, or only at the end of a sum.
struct Hopper32 : dsv3::Fp8 {
  static constexpr const char* name = "hopper_32";
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = 32};
};
struct Hopper64 : dsv3::Fp8 {
  static constexpr const char* name = "hopper_64";
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = 64};
};
struct Hopper128 : dsv3::Fp8 {
  static constexpr const char* name = "hopper_128";
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = 128};
};
struct Hopper256 : dsv3::Fp8 {
  static constexpr const char* name = "hopper_256";
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = 256};
};
struct Hopper512 : dsv3::Fp8 {
  static constexpr const char* name = "hopper_512";
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = 512};
};
struct HopperNone : dsv3::Fp8 {
  static constexpr const char* name = "hopper_none";
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = 0};
};

}  // namespace example
