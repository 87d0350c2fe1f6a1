// Row kernels whose whole operation a GPU does in one pass, in the place of for_each_row. For the
// host's compiler too, which sees declarations: fused_rows*.cuh has what only nvcc compiles.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/core/product.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3 {
namespace detail {

// Types that the fused row kernels read and write.
template <class... T>
inline constexpr bool fused_row_types = ((std::is_same_v<T, bf16> ||
                                          std::is_same_v<T, float>)&&...);

}  // namespace detail

/// Fused form of quantising each row in groups of 1 x q.group_columns, to the nearest code: the
/// same codes and scales as the row kernel.
///
/// Shapes   x and q [T, H]; any H and any distance between rows.
/// Types    x in bf16 or float; e4m3 or e5m2.
/// Errors   std::invalid_argument where a group is not 1 x 16, 32, 64, 128, 256 or 512, before
///          anything is written.
template <class T, class C>
requires(detail::fused_row_types<T>&& is_fp8<C>)
    [[gnu::noinline]] void quantize_rows(Cuda& cuda, View<const T, 2> x, Quantized<C> q,
                                         ScaleRule rule);

/// Fused form of RMSNorm whose output is quantised in groups of 1 x q.group_columns: y where it has
/// rows, and its codes. The mean of squares is summed in an order of its own, which depends on H.
///
/// Shapes   x, y and q [T, H], weight [H]; y may be empty.
/// Types    bf16 or float in any mixture; e4m3 or e5m2.
/// Errors   as quantize_rows.
template <class In, class W, class Out, class C>
requires(detail::fused_row_types<In, W, Out>&& is_fp8<C>)
    [[gnu::noinline]] void quantize_norm_rows(Cuda& cuda, View<const In, 2> x,
                                              View<const W, 1> weight, double eps, View<Out, 2> y,
                                              Quantized<C> q, ScaleRule rule);

/// Fused form of SwiGLU whose output silu(a) * b is quantised; and a and b, where saved_a and
/// saved_b have rows. The same codes and scales as the row kernel.
///
/// Shapes   all [T, I].
/// Types    a and b in bf16 or float; e4m3 or e5m2.
/// Errors   as quantize_rows.
template <class T, class C>
requires(detail::fused_row_types<T>&& is_fp8<C>)
    [[gnu::noinline]] void quantize_swiglu_rows(Cuda& cuda, View<const T, 2> a, View<const T, 2> b,
                                                Quantized<C> saved_a, Quantized<C> saved_b,
                                                Quantized<C> h, ScaleRule rule);

/// Fused form of RmsNorm::forward. The mean of squares is summed in an order of its own, which
/// depends on H.
///
/// Shapes   x and y [T, H], weight [H].
/// Types    bf16 or float in any mixture.
template <class In, class W, class Out>
requires(detail::fused_row_types<In, W, Out>)
    [[gnu::noinline]] void rms_norm_rows(Cuda& cuda, View<const In, 2> x, View<const W, 1> weight,
                                         double eps, View<Out, 2> y);

/// Fused form of RmsNorm::backward: overwrites dx or adds to it, adds to dweight. The weight's
/// gradient is summed in the order of the row kernels; a row's two sums in an order of their own,
/// which depends on H.
///
/// Shapes   x, dy and dx [T, H], weight and dweight [H]; scratch: rstd [T] and partial
///          [ceil(T / tokens), H], a row of which sums over `tokens` rows of x.
/// Types    bf16 or float in any mixture; sums in float.
template <class In, class W, class Out>
requires(detail::fused_row_types<In, W, Out>)
    [[gnu::noinline]] void rms_norm_backward_rows(Cuda& cuda, View<const In, 2> x,
                                                  View<const Out, 2> dy, View<const W, 1> weight,
                                                  double eps, View<In, 2> dx, Output output,
                                                  View<float, 1> rstd, View<float, 2> partial,
                                                  Index tokens, View<float, 1> dweight);

/// Fused form of SwiGLU: h = silu(a) * b, with the bits of the row kernel.
///
/// Shapes   all [T, I].
/// Types    bf16 or float.
template <class T>
requires(detail::fused_row_types<T>)
    [[gnu::noinline]] void swiglu_rows(Cuda& cuda, View<const T, 2> a, View<const T, 2> b,
                                       View<T, 2> h);

/// Fused form of SwiGLU backward, with the bits of the row kernel: da, db, and h again. da may be
/// dh.
///
/// Shapes   all [T, I].
/// Types    bf16 or float.
template <class T>
requires(detail::fused_row_types<T>)
    [[gnu::noinline]] void swiglu_backward_rows(Cuda& cuda, View<const T, 2> a, View<const T, 2> b,
                                                View<const T, 2> dh, View<T, 2> da, View<T, 2> db,
                                                View<T, 2> h);

}  // namespace dsv3
