// Groups of rows x 1 of a matrix, plain or of codes, as codes: a block of threads has 128 columns
// of one group, which it reads twice, the second time from its cache.
#pragma once

#include <dsv3/backend/cuda/fused_rows_quantize.cuh>

namespace dsv3 {
namespace detail {

inline constexpr int column_lanes = 8;  // threads side by side
inline constexpr int column_rows = 16;  // threads one below the other
inline constexpr int strip_columns = column_lanes * row_values;
inline constexpr int column_threads = column_lanes * column_rows;
static_assert(column_threads == strip_columns);  // each thread finishes a column's scale

// Neighbours from column `first` of row t of a matrix.
template <bool aligned, class T>
__device__ void load_row(RowValues& v, const View<const T, 2>& x, Index t, Index first) {
  load_values<aligned>(v, x.data + t * x.strides[0] + first, x.extent(1) - first);
}
template <bool aligned, class S>
__device__ void load_row(RowValues& v, const Quantized<const S>& x, Index t, Index first) {
  if constexpr (aligned) {  // all 16 are of one group
    if (first >= x.extent(1)) return load_values<false>(v, static_cast<const float*>(nullptr), 0);
    const uint4 codes =
        *reinterpret_cast<const uint4*>(x.codes.data + t * x.codes.strides[0] + first);
    const std::uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
    const Index down = x.group_rows == 1 ? t : t / x.group_rows;  // divisions are slow
    const float scale = x.scales(down, first / x.group_columns);
#pragma unroll
    for (int k = 0; k < row_values; ++k) {
      S code;
      code.code = static_cast<std::uint8_t>(word[k / 4] >> 8 * (k % 4));
      v[k] = float(code) * scale;
    }
  } else {
#pragma unroll
    for (int k = 0; k < row_values; ++k) v[k] = first + k < x.extent(1) ? x(t, first + k) : 0.0f;
  }
}

// Rows of ragged segments, or one segment of all rows where offsets are empty, in groups of `tile`.
// Row b of the scales belongs to rows [first, end) of one segment; or to none, then first is end.
struct GroupRows {
  Index first, end;

  // Whether row b of the scales belongs to segment e, of rows [begin, end_of_segment).
  DSV3_HD static constexpr bool find(Index b, Index e, Index begin, Index end_of_segment,
                                     Index tile, GroupRows& found) {
    const Index at = b - (begin / tile + e);
    if (at < 0 || at >= groups_of(end_of_segment - begin, tile)) return false;
    const Index first = begin + at * tile, left = end_of_segment - first;
    found = {first, first + (left < tile ? left : tile)};
    return true;
  }
};

// The codes of 16 values by as many scales, each with its reciprocal; plain: see encode_values.
template <class C>
__device__ uint4 encode_columns(const RowValues& v, const float* scale, const float* y,
                                bool plain) {
  std::uint32_t word[4];
  if (plain) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const auto code = [&](int k) {
        return quotient(v[4 * w + k], scale[4 * w + k], y[4 * w + k]);
      };
      word[w] = pack_codes<C>(code(0), code(1)) | pack_codes<C>(code(2), code(3)) << 16;
    }
  } else {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      word[w] = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        word[w] |= static_cast<std::uint32_t>(encode_scaled<C>(v[4 * w + k], scale[4 * w + k]).code)
                   << 8 * k;
    }
  }
  return {word[0], word[1], word[2], word[3]};
}

template <bool aligned, class Source, class C>
__global__ void __launch_bounds__(column_threads)
    quantize_columns_kernel(Source x, View<const Index, 1> offsets, Quantized<C> q,
                            ScaleRule rule) {
  __shared__ GroupRows group;
  __shared__ alignas(16) std::uint32_t largest[column_rows][strip_columns];
  __shared__ alignas(16) float scales[strip_columns], reciprocals[strip_columns];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % column_lanes, below = thread / column_lanes;
  const Index columns = q.extent(1), strip = Index{blockIdx.x} * strip_columns;
  const Index first = strip + lane * row_values;
  for (Index b = blockIdx.y; b < q.scales.extents[0]; b += gridDim.y) {
    if (thread == 0) group = {0, 0};
    __syncthreads();
    const Index segments = offsets.extent(0) ? offsets.extent(0) - 1 : 1;
    for (Index e = thread; e < segments; e += column_threads) {  // at most one finds it
      const Index begin = offsets.extent(0) ? offsets(e) : 0;
      const Index end = offsets.extent(0) ? offsets(e + 1) : q.extent(0);
      GroupRows found{};
      if (GroupRows::find(b, e, begin, end, q.group_rows, found)) group = found;
    }
    __syncthreads();
    const GroupRows rows = group;
    if (rows.first < rows.end) {
      std::uint32_t own[row_values] = {};
#pragma unroll 4
      for (Index t = rows.first + below; t < rows.end; t += column_rows) {
        RowValues v;
        load_row<aligned>(v, x, t, first);
#pragma unroll
        for (int k = 0; k < row_values; ++k) own[k] = max(own[k], magnitude_bits(v[k]));
      }
#pragma unroll
      for (int k = 0; k < row_values; k += 4)
        *reinterpret_cast<uint4*>(&largest[below][lane * row_values + k]) = {
            own[k], own[k + 1], own[k + 2], own[k + 3]};
      __syncthreads();
      std::uint32_t all = 0;
#pragma unroll
      for (int i = 0; i < column_rows; ++i) all = max(all, largest[i][thread]);
      const float scale = rule.template scale<C>(from_magnitude(all));
      if (strip + thread < columns) q.scales(b, strip + thread) = scale;
      scales[thread] = scale;
      reciprocals[thread] = 1.0f / scale;
      __syncthreads();
      RowValues s, y;
      bool plain = true;
#pragma unroll
      for (int k = 0; k < row_values; ++k) {
        s[k] = scales[lane * row_values + k];
        y[k] = reciprocals[lane * row_values + k];
        plain = plain && s[k] >= 0x1p-80f && s[k] <= 0x1p100f;
      }
#pragma unroll 1
      for (Index t = rows.first + below; t < rows.end; t += column_rows) {
        RowValues v;
        load_row<aligned>(v, x, t, first);
        store_codes<aligned>(q.codes.data + t * q.codes.strides[0] + first,
                             encode_columns<C>(v, s, y, plain), columns - first);
      }
    }
    __syncthreads();  // the next group writes what was read here
  }
}

template <class Source, class C>
void quantize_columns_of(Cuda& cuda, const Source& x, bool aligned, View<const Index, 1> offsets,
                         const Quantized<C>& q, const ScaleRule& rule) {
  const Index blocks = q.scales.extents[0], strips = groups_of(q.extent(1), strip_columns);
  if (q.size() == 0 || blocks == 0) return;
  const dim3 grid{static_cast<unsigned>(strips),
                  static_cast<unsigned>(blocks < 65535 ? blocks : 65535)};
  const auto run = [&](auto kernel) {
    kernel<<<grid, column_threads, 0, cuda.stream()>>>(x, offsets, q, rule);
  };
  if (aligned && row_is_aligned(q.codes))
    run(quantize_columns_kernel<true, Source, C>);
  else
    run(quantize_columns_kernel<false, Source, C>);
  check_cuda(cudaGetLastError(), "quantize_columns", "launch", row_sizes(q.extent(0), q.extent(1)));
}

}  // namespace detail

template <class T, class C>
requires(detail::fused_row_types<T>&& is_fp8<C>) void quantize_columns(
    Cuda& cuda, View<const T, 2> x, View<const Index, 1> offsets, Quantized<C> q, ScaleRule rule) {
  detail::quantize_columns_of(cuda, x, detail::row_is_aligned(x), offsets, q, rule);
}

template <class S, class C>
requires(is_fp8<S>&& is_fp8<C>) void quantize_columns(Cuda& cuda, Quantized<const S> x,
                                                      View<const Index, 1> offsets, Quantized<C> q,
                                                      ScaleRule rule) {
  const bool aligned = detail::row_is_aligned(x.codes) && x.group_columns % detail::row_values == 0;
  detail::quantize_columns_of(cuda, x, aligned, offsets, q, rule);
}

}  // namespace dsv3
