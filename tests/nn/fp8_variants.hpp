// Policies derived from Fp8: what a study changes, each in a line or two.
#pragma once

#include <dsv3/core/moment.hpp>
#include <dsv3/core/precision.hpp>

namespace fixture {

/// The path of FP8 without quantising: codes are doubles, scales are 1.
struct Identity : dsv3::Fp8 {
  static constexpr const char* name = "identity";
  using master = double;
  using weight = double;
  using residual = double;
  using activation = double;
  using accumulator = double;
  using moment = double;
  using code = double;
  using gradient_code = double;
};

struct E5m2Gradients : dsv3::Fp8 {
  using gradient_code = dsv3::e5m2;
};
struct Tile32 : dsv3::Fp8 {
  static constexpr dsv3::Index tile = 32;
};
struct Tile64 : dsv3::Fp8 {
  static constexpr dsv3::Index tile = 64;
};
struct Tile256 : dsv3::Fp8 {
  static constexpr dsv3::Index tile = 256;
};
struct PerTensor : dsv3::Fp8 {
  static constexpr dsv3::Index tile = 0, block = 0;
};
struct Ue8m0 : dsv3::Fp8 {
  static constexpr bool power_of_two = true;
};
struct GradientBlocks : dsv3::Fp8 {
  static constexpr dsv3::Index gradient_rows = 128;
};
struct Hopper : dsv3::Fp8 {
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = 64};
};
struct HopperNone : dsv3::Fp8 {
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = 0};
};
struct Delayed : PerTensor {
  static constexpr dsv3::Index history = 4;
};
struct Fp8Moments : dsv3::Fp8 {
  using moment = dsv3::QuantizedMoment<dsv3::e4m3>;
  using second_moment = dsv3::QuantizedMoment<dsv3::e5m2>;
};
struct Stochastic : dsv3::Fp8 {
  static constexpr bool stochastic_rounding = true;
};
struct Checked : dsv3::Fp8 {
  static constexpr bool checked = true;
};

/// Two policies that together take every path: for tests that compile or compare all of them.
struct Studies : Delayed {
  static constexpr const char* name = "fp8, studies";
  using gradient_code = dsv3::e5m2;
  using moment = Fp8Moments::moment;
  using second_moment = Fp8Moments::second_moment;
  static constexpr bool stochastic_rounding = true, checked = true;
  static constexpr dsv3::Accumulation accumulation = Hopper::accumulation;
};
struct MoreStudies : Tile32 {
  static constexpr const char* name = "fp8, more studies";
  static constexpr dsv3::Index gradient_rows = 128;
  static constexpr bool stochastic_rounding = true;
};

}  // namespace fixture
