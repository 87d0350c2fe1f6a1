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
template <class M, class Moment, class C>
struct AdamWBlock;
template <class M>
struct AdamWElement;
template <class T>
struct DispatchRow;
template <class C>
struct DispatchCodesRow;
template <class T>
struct CombineRow;
template <class T>
struct CombineBackwardRow;

// What columns are quantised from here.
template <class Source>
inline constexpr bool is_fused_source = false;
template <>
inline constexpr bool is_fused_source<View<const bf16, 2>> = true;
template <class C>
inline constexpr bool is_fused_source<Quantized<const C>> = is_fp8<C>;
template <class C>
inline constexpr bool is_fused_source<WeightedSlots<C>> = is_fp8<C>;

}  // namespace detail

/// Fused form of quantising in groups of tile x 1, to the nearest code: a block of threads reads
/// 128 rows of a strip of columns once and keeps them in registers. Anything that is not aligned
/// takes the row kernel, as does a tile above 128.
///
/// Types    from bf16, or from codes in groups of rows; e4m3 or e5m2.
template <class Source, class C>
requires(detail::is_fused_source<Source>&& is_fp8<C>) [[gnu::noinline]] void fused_rows(
    Cuda& cuda, Index rows, const detail::QuantizeColumnsBlock<Source, C, RoundNearest>& block);

/// Fused form of AdamW with new codes, for blocks of 128 x 128: weights stay in registers between
/// the update and their codes. Anything else takes the row kernel.
///
/// Types    weights and gradients in float, moments in bf16 or float; e4m3 or e5m2.
template <class Moment, class C>
requires((std::is_same_v<Moment, bf16> || std::is_same_v<Moment, float>)&&is_fp8<C>)
    [[gnu::noinline]] void fused_rows(Cuda& cuda, Index rows,
                                      const detail::AdamWBlock<float, Moment, C>& block);

/// Fused forms of sending rows to experts and of adding what comes back, by 16 bytes. Rows that do
/// not lie so take the row kernel.
///
/// Types    e4m3 or e5m2; bf16.
template <class C>
requires is_fp8<C>
[[gnu::noinline]] void fused_rows(Cuda& cuda, Index rows, const detail::DispatchCodesRow<C>& row);
template <class T>
requires std::is_same_v<T, bf16>
[[gnu::noinline]] void fused_rows(Cuda& cuda, Index rows, const detail::DispatchRow<T>& row);
template <class T>
requires std::is_same_v<T, bf16>
[[gnu::noinline]] void fused_rows(Cuda& cuda, Index rows, const detail::CombineRow<T>& row);
template <class T>
requires std::is_same_v<T, bf16>
[[gnu::noinline]] void fused_rows(Cuda& cuda, Index rows, const detail::CombineBackwardRow<T>& row);

}  // namespace dsv3
