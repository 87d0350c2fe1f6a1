// Rows to experts and back: whole rows copied, and rows added, 16 bytes at a time.
#pragma once

#include <dsv3/backend/cuda/fused_columns.hpp>
#include <dsv3/backend/cuda/fused_columns_codes.cuh>
#include <dsv3/backend/cuda/launch.cuh>
#include <dsv3/backend/cuda/primitives.hpp>
#include <dsv3/core/math.hpp>

namespace dsv3 {
namespace detail {

inline constexpr int fused_row_threads = 128;

// One row of n pieces of 16 bytes by a block of threads, four loads at a time.
__device__ __forceinline__ void copy_row(uint4* to, const uint4* from, int n) {
  constexpr int together = 4;
  for (int c0 = static_cast<int>(threadIdx.x); c0 < n; c0 += together * fused_row_threads) {
    uint4 pieces[together];
#pragma unroll
    for (int i = 0; i < together; ++i)
      if (c0 + i * fused_row_threads < n) pieces[i] = from[c0 + i * fused_row_threads];
#pragma unroll
    for (int i = 0; i < together; ++i)
      if (c0 + i * fused_row_threads < n) to[c0 + i * fused_row_threads] = pieces[i];
  }
}

template <class Row>
__global__ void __launch_bounds__(fused_row_threads)
    fused_dispatch_kernel(const __grid_constant__ Row row) {
  const Index slot = blockIdx.x;
  const Index t = row.pair_of_slot(slot) / static_cast<int>(row.pairs_per_token);
  if constexpr (requires { row.x.codes; }) {
    copy_row(reinterpret_cast<uint4*>(&row.slots.codes(slot, 0)),
             reinterpret_cast<const uint4*>(&row.x.codes(t, 0)),
             static_cast<int>(row.x.extent(1) / 16));
    if (row.slots.scales.data != row.x.scales.data)
      for (Index g = threadIdx.x; g < row.slots.scales.extents[1]; g += fused_row_threads)
        row.slots.scales(slot, g) = row.x.scales(t, g);
  } else {
    copy_row(reinterpret_cast<uint4*>(&row.slots(slot, 0)),
             reinterpret_cast<const uint4*>(&row.x(t, 0)), static_cast<int>(row.x.extent(1) / 8));
  }
}

// Eight bf16 side by side.
struct EightValues {
  uint4 bits;

  __device__ __forceinline__ float operator[](int i) const {
    const std::uint32_t word = i < 2 ? bits.x : i < 4 ? bits.y : i < 6 ? bits.z : bits.w;
    return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xFFFF0000u);
  }
  __device__ static __forceinline__ EightValues load(const bf16* from) {
    return {*reinterpret_cast<const uint4*>(from)};
  }
  // Each value rounded as bf16(float) rounds.
  __device__ static __forceinline__ void store(bf16* to, const float (&v)[8]) {
    const auto pair = [&](int i) {
      return bf16(v[i]).bits | static_cast<std::uint32_t>(bf16(v[i + 1]).bits) << 16;
    };
    *reinterpret_cast<uint4*>(to) = make_uint4(pair(0), pair(2), pair(4), pair(6));
  }
};

// Eight columns of a token for each thread: what `first` says, then the token's slots in order,
// then the shared part.
template <bool weighted>
__device__ __forceinline__ void add_slots(float (&total)[8], const View<const bf16, 2>& slots,
                                          const View<const std::int32_t, 2>& slot_of_pair,
                                          const float* weights, Index t, Index j) {
  constexpr int together = 8;
  const int chosen = static_cast<int>(slot_of_pair.extent(1));
  const std::int32_t* of_token = &slot_of_pair(t, 0);
  for (int k0 = 0; k0 < chosen; k0 += together) {
    EightValues values[together];
    float by[together];
#pragma unroll
    for (int k = 0; k < together; ++k) {
      if (k0 + k >= chosen) continue;
      values[k] = EightValues::load(&slots(of_token[k0 + k], j));
      if constexpr (weighted) by[k] = weights[k0 + k];
    }
#pragma unroll
    for (int k = 0; k < together; ++k) {
      if (k0 + k >= chosen) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if constexpr (weighted)
          total[i] = dsv3::fma(by[k], values[k][i], total[i]);
        else
          total[i] += values[k][i];
      }
    }
  }
}

template <class Row>
__global__ void __launch_bounds__(fused_row_threads)
    fused_combine_kernel(const __grid_constant__ Row row, int pieces) {
  const Index t = blockIdx.x / static_cast<unsigned>(pieces);
  const Index piece = blockIdx.x % static_cast<unsigned>(pieces);
  const Index j = 8 * (piece * fused_row_threads + threadIdx.x);
  constexpr bool forward = requires { row.weights; };
  const auto& y = [&]() -> const auto& {
    if constexpr (forward)
      return row.y;
    else
      return row.dx;
  }
  ();
  if (j >= y.extent(1)) return;
  float total[8] = {};
  EightValues shared{};
  if (row.shared.data) shared = EightValues::load(&row.shared(t, j));
  if constexpr (forward) {
    add_slots<true>(total, row.slots, row.slot_of_pair, &row.weights(t, 0), t, j);
  } else {
    const auto* gate = reinterpret_cast<const float4*>(&row.gate(t, j));
    const float4 low = gate[0], high = gate[1];
    total[0] = low.x, total[1] = low.y, total[2] = low.z, total[3] = low.w;
    total[4] = high.x, total[5] = high.y, total[6] = high.z, total[7] = high.w;
    add_slots<false>(total, row.dslots, row.slot_of_pair, nullptr, t, j);
  }
  if (row.shared.data)
#pragma unroll
    for (int i = 0; i < 8; ++i) total[i] += shared[i];
  EightValues::store(&y(t, j), total);
}

template <class Row>
void launch_dispatch(Cuda& cuda, Index rows, const Row& row) {
  if (rows == 0) return;
  detail::launch(cuda, fused_dispatch_kernel<Row>, static_cast<unsigned>(rows), fused_row_threads,
                 0, row);
  check_cuda(cudaGetLastError(), "fused_rows of dispatch", "launch",
             std::to_string(rows) + " slots");
}

inline Index combine_pieces(Index columns) { return groups_of(columns, 8 * fused_row_threads); }

template <class Row>
void launch_combine(Cuda& cuda, Index rows, Index columns, const Row& row) {
  const Index pieces = combine_pieces(columns);
  if (rows * pieces == 0) return;
  detail::launch(cuda, fused_combine_kernel<Row>, static_cast<unsigned>(rows * pieces),
                 fused_row_threads, 0, row, static_cast<int>(pieces));
  check_cuda(cudaGetLastError(), "fused_rows of combination", "launch",
             std::to_string(rows) + " tokens");
}

}  // namespace detail

template <class C>
requires is_fp8<C>
void fused_rows(Cuda& cuda, Index rows, const detail::DispatchCodesRow<C>& row) {
  if (detail::aligned_rows(row.x.codes, 16) && detail::aligned_rows(row.slots.codes, 16) &&
      rows <= 0x7FFFFFFF)
    detail::launch_dispatch(cuda, rows, row);
  else
    for_each_row(cuda, rows, row);
}

template <class T>
requires std::is_same_v<T, bf16>
void fused_rows(Cuda& cuda, Index rows, const detail::DispatchRow<T>& row) {
  if (detail::aligned_rows(row.x, 16) && detail::aligned_rows(row.slots, 16) && rows <= 0x7FFFFFFF)
    detail::launch_dispatch(cuda, rows, row);
  else
    for_each_row(cuda, rows, row);
}

template <class T>
requires std::is_same_v<T, bf16>
void fused_rows(Cuda& cuda, Index rows, const detail::CombineRow<T>& row) {
  const Index n = row.y.extent(1);
  if (detail::aligned_rows(row.slots, 16) && detail::aligned_rows(row.y, 16) &&
      (!row.shared.data || detail::aligned_rows(row.shared, 16)) &&
      rows * detail::combine_pieces(n) <= 0x7FFFFFFF)
    detail::launch_combine(cuda, rows, n, row);
  else
    for_each_row(cuda, rows, row);
}

template <class T>
requires std::is_same_v<T, bf16>
void fused_rows(Cuda& cuda, Index rows, const detail::CombineBackwardRow<T>& row) {
  const Index n = row.dx.extent(1);
  if (detail::aligned_rows(row.dslots, 16) && detail::aligned_rows(row.dx, 16) &&
      detail::aligned_rows(row.gate, 16) &&
      (!row.shared.data || detail::aligned_rows(row.shared, 16)) &&
      rows * detail::combine_pieces(n) <= 0x7FFFFFFF)
    detail::launch_combine(cuda, rows, n, row);
  else
    for_each_row(cuda, rows, row);
}

}  // namespace dsv3
