// SwiGLU of plain rows, forward and backward.
#pragma once

#include <dsv3/backend/cuda/fused_rows_quantize.cuh>
#include <dsv3/backend/cuda/launch.cuh>

namespace dsv3 {
namespace detail {

template <bool aligned, class T>
__global__ void __launch_bounds__(32 * warps_of_rows)
    swiglu_kernel(View<const T, 2> a, View<const T, 2> b, View<T, 2> h) {
  for_each_strip(h.extent(0), h.extent(1), [&](Index t, Index first) {
    const Index left = h.extent(1) - first;
    RowValues gate, up;
    load_values<aligned>(gate, a.data + t * a.strides[0] + first, left);
    load_values<aligned>(up, b.data + t * b.strides[0] + first, left);
    for_each_sigmoid(gate, [&](int k, float s) { gate[k] = gate[k] * s * up[k]; });
    round_values<T>(gate);
    store_values<aligned>(h.data + t * h.strides[0] + first, gate, left);
  });
}

// With s = sigmoid(a):  db = dh a s,  da = dh b s (1 + a (1 - s)).  Also h again.   Spec 2.4.
template <bool aligned, class T>
__global__ void __launch_bounds__(32 * warps_of_rows)
    swiglu_backward_kernel(View<const T, 2> a, View<const T, 2> b, View<const T, 2> dh,
                           View<T, 2> da, View<T, 2> db, View<T, 2> h) {
  for_each_strip(h.extent(0), h.extent(1), [&](Index t, Index first) {
    const Index left = h.extent(1) - first;
    RowValues gate, up, d;
    load_values<aligned>(gate, a.data + t * a.strides[0] + first, left);
    load_values<aligned>(up, b.data + t * b.strides[0] + first, left);
    load_values<aligned>(d, dh.data + t * dh.strides[0] + first, left);
    for_each_sigmoid(gate, [&](int k, float s) {
      const float x = gate[k], y = up[k], slope = d[k], silu = x * s;
      gate[k] = silu * y;
      up[k] = slope * silu;
      d[k] = slope * y * s * __fmaf_rn(x, 1.0f - s, 1.0f);
    });
    const auto store = [&](const View<T, 2>& to, RowValues& v) {
      round_values<T>(v);
      store_values<aligned>(to.data + t * to.strides[0] + first, v, left);
    };
    store(h, gate);
    store(db, up);
    store(da, d);
  });
}

template <class... V>
bool rows_are_all_aligned(const V&... views) {
  return (row_is_aligned(views) && ...);
}

}  // namespace detail

template <class T>
requires(detail::fused_row_types<T>) void swiglu_rows(Cuda& cuda, View<const T, 2> a,
                                                      View<const T, 2> b, View<T, 2> h) {
  const Index rows = h.extent(0), columns = h.extent(1);
  if (h.size() == 0) return;
  const auto run = [&](auto kernel) {
    detail::launch(cuda, kernel, detail::strip_grid(rows, columns), 32 * detail::warps_of_rows, 0,
                   a, b, h);
  };
  if (detail::rows_are_all_aligned(a, b, h))
    run(detail::swiglu_kernel<true, T>);
  else
    run(detail::swiglu_kernel<false, T>);
  detail::check_cuda(cudaGetLastError(), "swiglu_rows", "launch", detail::row_sizes(rows, columns));
}

template <class T>
requires(detail::fused_row_types<T>) void swiglu_backward_rows(Cuda& cuda, View<const T, 2> a,
                                                               View<const T, 2> b,
                                                               View<const T, 2> dh, View<T, 2> da,
                                                               View<T, 2> db, View<T, 2> h) {
  const Index rows = h.extent(0), columns = h.extent(1);
  if (h.size() == 0) return;
  const auto run = [&](auto kernel) {
    detail::launch(cuda, kernel, detail::strip_grid(rows, columns), 32 * detail::warps_of_rows, 0,
                   a, b, dh, da, db, h);
  };
  if (detail::rows_are_all_aligned(a, b, dh, da, db, h))
    run(detail::swiglu_backward_kernel<true, T>);
  else
    run(detail::swiglu_backward_kernel<false, T>);
  detail::check_cuda(cudaGetLastError(), "swiglu_backward_rows", "launch",
                     detail::row_sizes(rows, columns));
}

}  // namespace dsv3
