// RMSNorm of rows, plain or as codes: a block has a row, and keeps as much of it as registers hold.
#pragma once

#include <dsv3/backend/cuda/fused_rows_quantize.cuh>
#include <dsv3/backend/cuda/launch.cuh>

namespace dsv3 {
namespace detail {

inline constexpr int norm_threads = 128;
inline constexpr int norm_blocks = 4;  // at least, on a multiprocessor: up to 128 registers
inline constexpr int norm_columns = norm_threads * row_values;

// The first column of this thread in a piece of a row.
__device__ inline Index norm_column(Index piece) {
  return piece * norm_columns + static_cast<int>(threadIdx.x) * row_values;
}

// The sum of all threads' values, in an order that depends on nothing, known to all of them.
// `shared` is written before the barrier only.
__device__ inline float block_sum(float own, float (&shared)[norm_threads / 32]) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) own += __shfl_down_sync(0xFFFFFFFFu, own, by);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = own;
  __syncthreads();
  float all = shared[0];
#pragma unroll
  for (int warp = 1; warp < norm_threads / 32; ++warp) all += shared[warp];
  return all;
}

// Reads a row of n columns and calls f(values, first column) with x * rstd * weight, by all threads
// of the block. held: pieces of norm_columns columns that are kept; a wider row is read again.
template <bool aligned, int held, class In, class W>
__device__ void normalize_row(const In* row, const W* weight, Index n, float eps, auto&& f) {
  __shared__ float shared[norm_threads / 32];
  const auto add_squares = [](const RowValues& v, float& sum) {
#pragma unroll
    for (int k = 0; k < row_values; ++k) sum = __fmaf_rn(v[k], v[k], sum);
  };
  RowValues kept[held];
  float squares = 0;
#pragma unroll
  for (int piece = 0; piece < held; ++piece) {
    const Index first = norm_column(piece);
    load_values<aligned>(kept[piece], row + first, n - first);
  }
#pragma unroll
  for (int piece = 0; piece < held; ++piece) add_squares(kept[piece], squares);
  for (Index piece = held; piece * norm_columns < n; ++piece) {
    const Index first = norm_column(piece);
    RowValues v;
    load_values<aligned>(v, row + first, n - first);
    add_squares(v, squares);
  }
  const float mean_square = block_sum(squares, shared) / float(n);
  const float r = 1.0f / sqrt(mean_square + eps);
  const auto finish = [&](RowValues& v, Index first) {
    RowValues w;
    load_values<aligned>(w, weight + first, n - first);
#pragma unroll
    for (int k = 0; k < row_values; ++k) v[k] = v[k] * r * w[k];
    f(v, first);
  };
#pragma unroll
  for (int piece = 0; piece < held; ++piece)
    if (piece == 0 || piece * norm_columns < n) finish(kept[piece], norm_column(piece));
  for (Index piece = held; piece * norm_columns < n; ++piece) {
    const Index first = norm_column(piece);
    RowValues v;
    load_values<aligned>(v, row + first, n - first);
    finish(v, first);
  }
}

template <bool aligned, int held, class In, class W, class Out, class C>
__global__ void __launch_bounds__(norm_threads, norm_blocks)
    quantize_norm_kernel(View<const In, 2> x, View<const W, 1> weight, float eps, View<Out, 2> y,
                         Quantized<C> q, ScaleRule rule, int shift) {
  const Index t = blockIdx.x, n = x.extent(1);
  normalize_row<aligned, held>(
      x.data + t * x.strides[0], weight.data, n, eps, [&](RowValues& v, Index first) {
        round_values<Out>(v);
        if (y.extent(0)) store_values<aligned>(y.data + t * y.strides[0] + first, v, n - first);
        quantize_values<aligned>(q, t, first, shift, rule, v);
      });
}

template <bool aligned, int held, class In, class W, class Out>
__global__ void __launch_bounds__(norm_threads, norm_blocks)
    rms_norm_kernel(View<const In, 2> x, View<const W, 1> weight, float eps, View<Out, 2> y) {
  const Index t = blockIdx.x, n = x.extent(1);
  normalize_row<aligned, held>(
      x.data + t * x.strides[0], weight.data, n, eps, [&](RowValues& v, Index first) {
        round_values<Out>(v);
        store_values<aligned>(y.data + t * y.strides[0] + first, v, n - first);
      });
}

}  // namespace detail

template <class In, class W, class Out, class C>
requires(detail::fused_row_types<In, W, Out>&& is_fp8<C>) void quantize_norm_rows(
    Cuda& cuda, View<const In, 2> x, View<const W, 1> weight, double eps, View<Out, 2> y,
    Quantized<C> q, ScaleRule rule) {
  const char* caller = "quantize_norm_rows";
  const int shift = detail::group_shift(caller, q);
  const Index rows = x.extent(0), columns = x.extent(1);
  if (x.size() == 0) return;
  const bool aligned = detail::row_is_aligned(x) && detail::row_is_aligned(weight) &&
                       detail::row_is_aligned(q.codes) &&
                       (y.extent(0) == 0 || detail::row_is_aligned(y));
  const auto run = [&](auto kernel) {
    detail::launch(cuda, kernel, static_cast<unsigned>(rows), detail::norm_threads, 0, x, weight,
                   float(eps), y, q, rule, shift);
  };
  if (aligned && columns <= detail::norm_columns)
    run(detail::quantize_norm_kernel<true, 1, In, W, Out, C>);
  else if (aligned)
    run(detail::quantize_norm_kernel<true, 4, In, W, Out, C>);
  else
    run(detail::quantize_norm_kernel<false, 1, In, W, Out, C>);
  detail::check_cuda(cudaGetLastError(), caller, "launch", detail::row_sizes(rows, columns));
}

template <class In, class W, class Out>
requires(detail::fused_row_types<In, W, Out>) void rms_norm_rows(Cuda& cuda, View<const In, 2> x,
                                                                 View<const W, 1> weight,
                                                                 double eps, View<Out, 2> y) {
  const Index rows = x.extent(0), columns = x.extent(1);
  if (x.size() == 0) return;
  const auto run = [&](auto kernel) {
    detail::launch(cuda, kernel, static_cast<unsigned>(rows), detail::norm_threads, 0, x, weight,
                   float(eps), y);
  };
  if (!detail::row_is_aligned(x) || !detail::row_is_aligned(weight) || !detail::row_is_aligned(y))
    run(detail::rms_norm_kernel<false, 1, In, W, Out>);
  else if (columns <= detail::norm_columns)
    run(detail::rms_norm_kernel<true, 1, In, W, Out>);
  else
    run(detail::rms_norm_kernel<true, 4, In, W, Out>);
  detail::check_cuda(cudaGetLastError(), "rms_norm_rows", "launch",
                     detail::row_sizes(rows, columns));
}

}  // namespace dsv3
