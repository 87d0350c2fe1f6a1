// RMSNorm backward: the gradient in x by a block for each row, then the weight's by threads that
// keep the sums of their columns in registers.
#pragma once

#include <dsv3/backend/cuda/fused_rows_norm.cuh>
#include <dsv3/backend/cuda/launch.cuh>

namespace dsv3 {
namespace detail {

// With u = dy * weight:  dx = rstd (u - x rstd^2 mean_j(u x)).   Spec 2.2.
template <bool aligned, int held, bool add, class In, class W, class Out>
__global__ void __launch_bounds__(norm_threads, 3)
    rms_norm_backward_kernel(View<const In, 2> x, View<const Out, 2> dy, View<const W, 1> weight,
                             float eps, View<In, 2> dx, View<float, 1> rstd) {
  __shared__ float shared[2][norm_threads / 32];
  const Index t = blockIdx.x, n = x.extent(1);
  const auto load = [&](RowValues& v, RowValues& d, Index first) {
    load_values<aligned>(v, x.data + t * x.strides[0] + first, n - first);
    load_values<aligned>(d, dy.data + t * dy.strides[0] + first, n - first);
  };
  const auto load_weight = [&](RowValues& w, Index first) {
    load_values<aligned>(w, weight.data + first, n - first);
  };
  float squares = 0, products = 0;
  const auto sum = [&](const RowValues& v, const RowValues& d, Index first) {
    RowValues w;
    load_weight(w, first);
#pragma unroll
    for (int k = 0; k < row_values; ++k) {
      squares = __fmaf_rn(v[k], v[k], squares);
      products = __fmaf_rn(__fmul_rn(d[k], w[k]), v[k], products);
    }
  };
  RowValues kept_x[held], kept_dy[held];
#pragma unroll
  for (int piece = 0; piece < held; ++piece)
    load(kept_x[piece], kept_dy[piece], norm_column(piece));
#pragma unroll
  for (int piece = 0; piece < held; ++piece) sum(kept_x[piece], kept_dy[piece], norm_column(piece));
  for (Index piece = held; piece * norm_columns < n; ++piece) {
    RowValues v, d;
    load(v, d, norm_column(piece));
    sum(v, d, norm_column(piece));
  }
  const float mean_square = block_sum(squares, shared[0]) / float(n);
  const float mean = block_sum(products, shared[1]) / float(n);
  const float r = 1.0f / sqrt(mean_square + eps);
  const float slope = -r * r * mean;
  if (threadIdx.x == 0) rstd(t) = r;
  const auto finish = [&](RowValues& v, const RowValues& d, Index first) {
    In* const to = dx.data + t * dx.strides[0] + first;
    RowValues w, before;
    load_weight(w, first);
    if constexpr (add) load_values<aligned>(before, to, n - first);
#pragma unroll
    for (int k = 0; k < row_values; ++k)
      v[k] = __fmaf_rn(r, __fmaf_rn(v[k], slope, __fmul_rn(d[k], w[k])), add ? before[k] : 0.0f);
    round_values<In>(v);
    store_values<aligned>(to, v, n - first);
  };
#pragma unroll
  for (int piece = 0; piece < held; ++piece)
    finish(kept_x[piece], kept_dy[piece], norm_column(piece));
  for (Index piece = held; piece * norm_columns < n; ++piece) {
    RowValues v, d;
    load(v, d, norm_column(piece));
    finish(v, d, norm_column(piece));
  }
}

// `width` neighbours as floats: 4 of an aligned row, or 1.
template <int width, class T>
__device__ void load_columns(float (&v)[width], const T* from) {
  if constexpr (width == 1) {
    v[0] = float(*from);
  } else if constexpr (sizeof(T) == 2) {
    const uint2 bits = *reinterpret_cast<const uint2*>(from);
    v[0] = word_float(bits.x << 16), v[1] = word_float(bits.x & 0xFFFF0000u);
    v[2] = word_float(bits.y << 16), v[3] = word_float(bits.y & 0xFFFF0000u);
  } else {
    const float4 values = *reinterpret_cast<const float4*>(from);
    v[0] = values.x, v[1] = values.y, v[2] = values.z, v[3] = values.w;
  }
}

// partial[c,j] = sum_t dy[t,j] x[t,j] rstd[t] over the rows t of c, ascending.
template <int width, class In, class Out>
__global__ void __launch_bounds__(norm_threads)
    norm_weight_partial_kernel(View<const In, 2> x, View<const Out, 2> dy,
                               View<const float, 1> rstd, View<float, 2> partial, Index tokens) {
  static_assert(width == 1 || width == 4);
  const Index j = (Index{blockIdx.x} * norm_threads + static_cast<int>(threadIdx.x)) * width;
  if (j >= x.extent(1)) return;
  for (Index c = blockIdx.y; c < partial.extent(0); c += gridDim.y) {
    const Index end = (c + 1) * tokens, last = end < x.extent(0) ? end : x.extent(0);
    float sum[width] = {};
#pragma unroll 8
    for (Index t = c * tokens; t < last; ++t) {
      float v[width], d[width];
      load_columns(v, x.data + t * x.strides[0] + j);
      load_columns(d, dy.data + t * dy.strides[0] + j);
      const float r = rstd(t);
#pragma unroll
      for (int k = 0; k < width; ++k) sum[k] = __fmaf_rn(d[k], __fmul_rn(v[k], r), sum[k]);
    }
    float* const to = partial.data + c * partial.strides[0] + j;
    if constexpr (width == 4)
      *reinterpret_cast<float4*>(to) = {sum[0], sum[1], sum[2], sum[3]};
    else
      *to = sum[0];
  }
}

// sum[j] += sum_c partial[c,j], c ascending.
inline constexpr int add_partials_threads = 64;
template <class Unused = void>
__global__ void __launch_bounds__(add_partials_threads)
    add_partials_kernel(View<const float, 2> partial, View<float, 1> sum) {
  const Index j = Index{blockIdx.x} * add_partials_threads + static_cast<int>(threadIdx.x);
  if (j >= sum.extent(0)) return;
  float all = sum(j);
#pragma unroll 16
  for (Index c = 0; c < partial.extent(0); ++c) all += partial(c, j);
  sum(j) = all;
}

}  // namespace detail

template <class In, class W, class Out>
requires(detail::fused_row_types<In, W, Out>) void rms_norm_backward_rows(
    Cuda& cuda, View<const In, 2> x, View<const Out, 2> dy, View<const W, 1> weight, double eps,
    View<In, 2> dx, Output output, View<float, 1> rstd, View<float, 2> partial, Index tokens,
    View<float, 1> dweight) {
  const char* caller = "rms_norm_backward_rows";
  const Index rows = x.extent(0), columns = x.extent(1);
  if (x.size() == 0) return;
  const auto check = [&](const char* launch) {
    detail::check_cuda(cudaGetLastError(), caller, launch, detail::row_sizes(rows, columns));
  };
  const bool add = output == Output::add;
  const bool inputs = detail::row_is_aligned(x) && detail::row_is_aligned(dy);
  const auto run = [&](auto kernel) {
    detail::launch(cuda, kernel, static_cast<unsigned>(rows), detail::norm_threads, 0, x, dy,
                   weight, float(eps), dx, rstd);
  };
  const auto run_as = [&](auto aligned, auto held) {
    if (add)
      run(detail::rms_norm_backward_kernel<aligned.value, held.value, true, In, W, Out>);
    else
      run(detail::rms_norm_backward_kernel<aligned.value, held.value, false, In, W, Out>);
  };
  if (!inputs || !detail::row_is_aligned(weight) || !detail::row_is_aligned(dx))
    run_as(std::false_type{}, std::integral_constant<int, 1>{});
  else if (columns <= detail::norm_columns)
    run_as(std::true_type{}, std::integral_constant<int, 1>{});
  else
    run_as(std::true_type{}, std::integral_constant<int, 4>{});
  check("launch over rows");
  const auto sum_rows = [&](auto kernel, Index width) {
    const Index chunks = partial.extent(0), threads = detail::norm_threads;
    const dim3 grid{static_cast<unsigned>(groups_of(columns, threads * width)),
                    static_cast<unsigned>(chunks < 65535 ? chunks : 65535)};
    detail::launch(cuda, kernel, grid, detail::norm_threads, 0, x, dy, rstd, partial, tokens);
  };
  if (inputs && detail::row_is_aligned(partial))
    sum_rows(detail::norm_weight_partial_kernel<4, In, Out>, 4);
  else
    sum_rows(detail::norm_weight_partial_kernel<1, In, Out>, 1);
  check("launch over parts of columns");
  detail::launch(cuda, detail::add_partials_kernel<>,
                 static_cast<unsigned>(groups_of(columns, Index{detail::add_partials_threads})),
                 detail::add_partials_threads, 0, partial, dweight);
  check("launch over columns");
}

}  // namespace dsv3
