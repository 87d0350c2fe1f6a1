// Rows, and SwiGLU of rows, as codes: a warp has 512 neighbours of a row, which are whole groups.
#pragma once

#include <dsv3/backend/cuda/fused_rows.hpp>
#include <dsv3/backend/cuda/fused_rows_values.cuh>
#include <dsv3/backend/cuda/launch.cuh>

namespace dsv3 {
namespace detail {

inline constexpr int warp_columns = 32 * row_values;
inline constexpr int warps_of_rows = 4;  // a block's, each with a row of its own

// Whether every row of a view, and of 16 columns more, starts at a multiple of 16 bytes.
template <class T>
bool row_is_aligned(const View<T, 1>& row) {
  return reinterpret_cast<std::uintptr_t>(row.data) % 16 == 0 && row.extent(0) % row_values == 0;
}
template <class T>
bool row_is_aligned(const View<T, 2>& view) {
  return reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 &&
         view.strides[0] * Index{sizeof(T)} % 16 == 0 && view.extent(1) % row_values == 0;
}

// log2 of the threads that have a group.
template <class C>
int group_shift(const char* caller, const Quantized<C>& q) {
  for (int shift = 0; shift <= 5; ++shift)
    if (q.group_rows == 1 && q.group_columns == row_values << shift) return shift;
  throw std::invalid_argument(std::string(caller) + ": group (" + std::to_string(q.group_rows) +
                              " x " + std::to_string(q.group_columns) +
                              ") must be 1 x 16, 32, 64, 128, 256 or 512");
}

inline std::string row_sizes(Index rows, Index columns) {
  return std::to_string(rows) + " rows of " + std::to_string(columns) + " columns";
}

// Calls f(row, first column) for the columns of each of this warp's threads.
__device__ inline void for_each_strip(Index rows, Index columns, auto&& f) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const Index step = Index{gridDim.y} * warps_of_rows;
  for (Index t = Index{blockIdx.y} * warps_of_rows + warp; t < rows; t += step)
    for (Index strip = blockIdx.x; strip * warp_columns < columns; strip += gridDim.x)
      f(t, strip * warp_columns + lane * row_values);
}

inline dim3 strip_grid(Index rows, Index columns) {
  const Index blocks = groups_of(rows, warps_of_rows), strips = groups_of(columns, warp_columns);
  return {static_cast<unsigned>(strips < 0x7FFFFFFF ? strips : 0x7FFFFFFF),
          static_cast<unsigned>(blocks < 65535 ? blocks : 65535)};
}

template <bool aligned, class T, class C>
__global__ void __launch_bounds__(32 * warps_of_rows)
    quantize_rows_kernel(View<const T, 2> x, Quantized<C> q, ScaleRule rule, int shift) {
  for_each_strip(x.extent(0), x.extent(1), [&](Index t, Index first) {
    RowValues v;
    load_values<aligned>(v, x.data + t * x.strides[0] + first, x.extent(1) - first);
    quantize_values<aligned>(q, t, first, shift, rule, v);
  });
}

template <bool aligned, bool saves, class T, class C>
__global__ void __launch_bounds__(32 * warps_of_rows)
    quantize_swiglu_kernel(View<const T, 2> a, View<const T, 2> b, Quantized<C> saved_a,
                           Quantized<C> saved_b, Quantized<C> h, ScaleRule rule, int shift) {
  for_each_strip(a.extent(0), a.extent(1), [&](Index t, Index first) {
    const Index left = a.extent(1) - first;
    RowValues gate, up;
    load_values<aligned>(gate, a.data + t * a.strides[0] + first, left);
    load_values<aligned>(up, b.data + t * b.strides[0] + first, left);
    if constexpr (saves) {
      quantize_values<aligned>(saved_a, t, first, shift, rule, gate);
      quantize_values<aligned>(saved_b, t, first, shift, rule, up);
    }
    for_each_sigmoid(gate, [&](int k, float s) { gate[k] = gate[k] * s * up[k]; });
    round_values<T>(gate);
    quantize_values<aligned>(h, t, first, shift, rule, gate);
  });
}

}  // namespace detail

template <class T, class C>
requires(detail::fused_row_types<T>&& is_fp8<C>) void quantize_rows(Cuda& cuda, View<const T, 2> x,
                                                                    Quantized<C> q,
                                                                    ScaleRule rule) {
  const int shift = detail::group_shift("quantize_rows", q);
  const Index rows = x.extent(0), columns = x.extent(1);
  if (x.size() == 0) return;
  const auto run = [&](auto kernel) {
    detail::launch(cuda, kernel, detail::strip_grid(rows, columns), 32 * detail::warps_of_rows, 0,
                   x, q, rule, shift);
  };
  if (detail::row_is_aligned(x) && detail::row_is_aligned(q.codes))
    run(detail::quantize_rows_kernel<true, T, C>);
  else
    run(detail::quantize_rows_kernel<false, T, C>);
  detail::check_cuda(cudaGetLastError(), "quantize_rows", "launch",
                     detail::row_sizes(rows, columns));
}

template <class T, class C>
requires(detail::fused_row_types<T>&& is_fp8<C>) void quantize_swiglu_rows(
    Cuda& cuda, View<const T, 2> a, View<const T, 2> b, Quantized<C> saved_a, Quantized<C> saved_b,
    Quantized<C> h, ScaleRule rule) {
  const char* caller = "quantize_swiglu_rows";
  const int shift = detail::group_shift(caller, h);
  const bool saves = saved_a.extent(0) > 0;
  const Index rows = a.extent(0), columns = a.extent(1);
  if (a.size() == 0) return;
  bool aligned = true;
  for (const auto& view : {a, b}) aligned = aligned && detail::row_is_aligned(view);
  for (const auto& q : {saved_a, saved_b, h}) {
    if (!q.extent(0)) continue;
    if (detail::group_shift(caller, q) != shift)
      throw std::invalid_argument(std::string(caller) + ": all codes must have the same groups");
    aligned = aligned && detail::row_is_aligned(q.codes);
  }
  const auto run = [&](auto kernel) {
    detail::launch(cuda, kernel, detail::strip_grid(rows, columns), 32 * detail::warps_of_rows, 0,
                   a, b, saved_a, saved_b, h, rule, shift);
  };
  if (aligned && saves)
    run(detail::quantize_swiglu_kernel<true, true, T, C>);
  else if (aligned)
    run(detail::quantize_swiglu_kernel<true, false, T, C>);
  else if (saves)
    run(detail::quantize_swiglu_kernel<false, true, T, C>);
  else
    run(detail::quantize_swiglu_kernel<false, false, T, C>);
  detail::check_cuda(cudaGetLastError(), caller, "launch", detail::row_sizes(rows, columns));
}

}  // namespace dsv3
