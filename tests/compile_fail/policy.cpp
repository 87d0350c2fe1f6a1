// What an FP8 policy may not say.
#include <dsv3/backend/cpu.hpp>
#include <dsv3/nn/projection.hpp>

using dsv3::Index;

// Uses everything that a policy decides.
template <class P>
inline auto use() {
  return dsv3::Projection<P>::rule(dsv3::Route::dense).amax_min + sizeof(dsv3::operand_t<P>);
}
struct Study : dsv3::Fp8 {
  static constexpr Index tile = 32, block = 256, gradient_rows = 128;
  using gradient_code = dsv3::e5m2;
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = 0};
};
struct Whole : dsv3::Fp8 {
  static constexpr Index tile = 0, block = 0, history = 4;
};
inline auto good() { return use<dsv3::Fp8>() + use<Study>() + use<Whole>(); }

// case: tile of an FP8 policy must be 32, 64, 128 or 256, or 0 for one scale a tensor
struct Bad : dsv3::Fp8 {
  static constexpr Index tile = 96;
};
inline auto bad() { return use<Bad>(); }
// case: block of an FP8 policy must be 32, 64, 128 or 256, or 0 for one scale a matrix
struct Bad : dsv3::Fp8 {
  static constexpr Index block = 16;
};
inline auto bad() { return use<Bad>(); }
// case: gradient_rows of an FP8 policy must be 1, or 128 beside a tile
struct Bad : dsv3::Fp8 {
  static constexpr Index gradient_rows = 64;
};
inline auto bad() { return use<Bad>(); }
// case: gradient_rows of an FP8 policy must be 1, or 128 beside a tile
struct Bad : Whole {
  static constexpr Index gradient_rows = 128;
};
inline auto bad() { return use<Bad>(); }
// case: history of an FP8 policy, delayed scaling, needs tile = 0: one scale a tensor
struct Bad : dsv3::Fp8 {
  static constexpr Index history = 16;
};
inline auto bad() { return use<Bad>(); }
// case: code of an FP8 policy must be e4m3 or e5m2 (or double: no quantising)
struct Bad : dsv3::Fp8 {
  using code = dsv3::bf16;
};
inline auto bad() { return use<Bad>(); }
// case: gradient_code of an FP8 policy must be e4m3 or e5m2 (or double: no quantising)
struct Bad : dsv3::Fp8 {
  using gradient_code = float;
};
inline auto bad() { return use<Bad>(); }
// case: accumulation.interval of an FP8 policy must be a multiple of 32, or 0 for none
struct Bad : dsv3::Fp8 {
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = 100};
};
inline auto bad() { return use<Bad>(); }
// case: accumulation.interval of an FP8 policy must be a multiple of 32, or 0 for none
struct Bad : dsv3::Fp8 {
  static constexpr dsv3::Accumulation accumulation = {.bits = 14, .interval = -32};
};
inline auto bad() { return use<Bad>(); }
// case: accumulation.bits of an FP8 policy must be 8 ... 24, or 0 for float's own sums
struct Bad : dsv3::Fp8 {
  static constexpr dsv3::Accumulation accumulation = {.bits = 25};
};
inline auto bad() { return use<Bad>(); }
// case: accumulation.interval of an FP8 policy means nothing without accumulation.bits
struct Bad : dsv3::Fp8 {
  static constexpr dsv3::Accumulation accumulation = {.bits = 0, .interval = 64};
};
inline auto bad() { return use<Bad>(); }
// case: codes of double in an FP8 policy are neither rounded stochastically nor added by an emulated accumulator
struct Bad : dsv3::Fp8 {
  using code = double;
  using gradient_code = double;
  static constexpr bool stochastic_rounding = true;
};
inline auto bad() { return use<Bad>(); }
