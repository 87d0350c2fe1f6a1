// Row kernels that Cuda has fused forms of, declared: matrices of activations, gradients and
// weights by accesses of 16 bytes, each element read once. For the host's compiler too.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3 {

struct RoundNearest;

namespace detail {

// The row kernels, which nn/ and train/ define.
template <class Source, class C, class Rounding>
struct QuantizeColumnsBlock;
template <class C>
struct WeightedSlots;

// What columns are quantised from here.
template <class Source>
inline constexpr bool is_fused_source = false;
template <>
inline constexpr bool is_fused_source<View<const bf16, 2>> = true;
template <class C>
inline constexpr bool is_fused_source<Quantized<const C>> = is_fp8<C>;
template <class C>
inline constexpr bool is_fused_source<WeightedSlots<C>> = is_fp8<C>;

// What one division leaves for dividing many values by the same scale.
struct CodeDivisor {
  float scale, inverse;  // inverse 0: divide

  // Where the scale is of middle size, no residual below underflows where a code could depend on
  // it. power_of_two: the scale is one.
  DSV3_HD explicit CodeDivisor(float s)
      : scale(s), inverse(s >= 0x1p-80f && s <= 0x1p80f ? 1.0f / s : 0.0f) {}
  DSV3_HD CodeDivisor(float s, float i) : scale(s), inverse(i) {}

  // value / scale as division rounds it, for |value| <= 2^16 scale, or for a quotient whose code is
  // a zero its sign and a magnitude whose code is zero too. Two corrections of value * inverse: the
  // first makes it one of the quotient's neighbours, so that the second one's residual is exact and
  // its result the nearest (Markstein 1990).
  DSV3_HD float quotient(float value) const {
    const float product = value * inverse;
    const float near = __builtin_fmaf(__builtin_fmaf(-product, scale, value), inverse, product);
    const float nearest = __builtin_fmaf(__builtin_fmaf(-near, scale, value), inverse, near);
    // A residual of 0 loses the sign of a zero.
    return __builtin_bit_cast(float, (__builtin_bit_cast(std::uint32_t, nearest) & 0x7FFFFFFFu) |
                                         (__builtin_bit_cast(std::uint32_t, value) & 0x80000000u));
  }
};

}  // namespace detail

/// Fused form of quantising in groups of tile x 1, to the nearest code: a block of threads reads
/// 128 rows of a strip of columns once and keeps them in registers. Anything that is not aligned
/// takes the row kernel, as does a tile above 128.
///
/// Types    from bf16, or from codes in groups of rows; e4m3 or e5m2.
template <class Source, class C>
requires(detail::is_fused_source<Source>&& is_fp8<C>) [[gnu::noinline]] void fused_rows(
    Cuda& cuda, Index rows, const detail::QuantizeColumnsBlock<Source, C, RoundNearest>& block);

}  // namespace dsv3
