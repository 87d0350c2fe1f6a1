// AdamW of a matrix whose operand is codes: a block of threads holds 128 x 128 weights.
#pragma once

#include <dsv3/backend/cuda/fused_columns.hpp>
#include <dsv3/backend/cuda/fused_columns_codes.cuh>
#include <dsv3/backend/cuda/launch.cuh>
#include <dsv3/backend/cuda/primitives.hpp>

namespace dsv3 {
namespace detail {

// Four moments side by side.
template <class Moment>
struct alignas(4 * sizeof(Moment)) FourMoments {
  Moment at[4];
};

inline constexpr int fused_adamw_threads = 512;
inline constexpr int fused_adamw_bytes = 128 * 128 * 4;  // of shared memory: the new weights

template <class Block, class Moment, class C>
__global__ void __launch_bounds__(fused_adamw_threads, 2)
    fused_adamw_kernel(const __grid_constant__ Block task, int blocks_across) {
  using Four = FourMoments<Moment>;
  constexpr int warps = fused_adamw_threads / 32, passes = 128 / warps, together = 2;
  __shared__ std::uint32_t partial[warps];
  if (task.norm(1) == 0) return;
  using M = std::remove_reference_t<decltype(*task.weight.data)>;  // float, by a dependent name
  const AdamWElement<M> element(task.rule(0), task.norm(1));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Index down = blockIdx.x / static_cast<unsigned>(blocks_across);
  const Index across = blockIdx.x % static_cast<unsigned>(blocks_across);
  const Index i0 = 128 * down, j = 128 * across + 4 * lane, left = task.weight.extent(0) - i0;
  const int rows = j < task.weight.extent(1) ? static_cast<int>(left < 128 ? left : 128) : 0;

  // Each thread reads back what it wrote.
  float4* const kept = reinterpret_cast<float4*>(dynamic_shared()) + threadIdx.x;
  float largest = 0;
#pragma unroll
  for (int p0 = 0; p0 < passes; p0 += together) {
    float4 weights[together], gradients[together];
    Four ms[together], vs[together];
#pragma unroll
    for (int p = 0; p < together; ++p) {
      const int row = warp + (p0 + p) * warps;
      if (row >= rows) continue;
      weights[p] = *reinterpret_cast<const float4*>(&task.weight(i0 + row, j));
      gradients[p] = *reinterpret_cast<const float4*>(&task.gradient(i0 + row, j));
      ms[p] = *reinterpret_cast<const Four*>(&task.m(i0 + row, j));
      vs[p] = *reinterpret_cast<const Four*>(&task.v(i0 + row, j));
    }
#pragma unroll
    for (int p = 0; p < together; ++p) {
      const int row = warp + (p0 + p) * warps;
      if (row >= rows) continue;
      float4& w = weights[p];
      element.step(gradients[p].x, w.x, ms[p].at[0], vs[p].at[0]);
      element.step(gradients[p].y, w.y, ms[p].at[1], vs[p].at[1]);
      element.step(gradients[p].z, w.z, ms[p].at[2], vs[p].at[2]);
      element.step(gradients[p].w, w.w, ms[p].at[3], vs[p].at[3]);
      largest = larger_magnitude(larger_magnitude(largest, w.x), w.y);
      largest = larger_magnitude(larger_magnitude(largest, w.z), w.w);
      kept[(p0 + p) * fused_adamw_threads] = w;
      *reinterpret_cast<float4*>(&task.weight(i0 + row, j)) = w;
      *reinterpret_cast<Four*>(&task.m(i0 + row, j)) = ms[p];
      *reinterpret_cast<Four*>(&task.v(i0 + row, j)) = vs[p];
    }
  }
  std::uint32_t most = __reduce_max_sync(~0u, magnitude_bits(largest));
  if (lane == 0) partial[warp] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < warps; ++w) most = max(most, partial[w]);
  const CodeDivisor divisor(scale_of<C>(task.scale, from_magnitude(most)));
  if (threadIdx.x == 0) task.operand.scales(down, across) = divisor.scale;
  if (divisor.high != 0) {
    const float high[4] = {divisor.high, divisor.high, divisor.high, divisor.high};
    const float low[4] = {divisor.low, divisor.low, divisor.low, divisor.low};
#pragma unroll
    for (int p = 0; p < passes; ++p) {
      const int row = warp + p * warps;
      if (row >= rows) continue;
      const float4 w = kept[p * fused_adamw_threads];
      const float values[4] = {w.x, w.y, w.z, w.w};
      *reinterpret_cast<std::uint32_t*>(&task.operand.codes(i0 + row, j)) =
          encode_four<C>(values, high, low);
    }
    return;
  }
#pragma unroll 1
  for (int row = warp; row < rows; row += warps)
#pragma unroll 1
    for (int i = 0; i < 4; ++i)
      task.operand.codes(i0 + row, j + i) =
          encode_scaled<C>(task.weight(i0 + row, j + i), divisor.scale);
}

}  // namespace detail

template <class Moment, class C>
requires((std::is_same_v<Moment, bf16> || std::is_same_v<Moment, float>)&&is_fp8<
         C>) void fused_rows(Cuda& cuda, Index rows,
                             const detail::AdamWBlock<float, Moment, C>& block) {
  using Block = detail::AdamWBlock<float, Moment, C>;
  const Index across = groups_of(block.weight.extent(1), 128);
  const bool fused = block.operand.group_rows == 128 && block.operand.group_columns == 128 &&
                     detail::aligned_rows(block.weight, 16) &&
                     detail::aligned_rows(block.gradient, 16) &&
                     detail::aligned_rows(block.m, 4 * sizeof(Moment)) &&
                     detail::aligned_rows(block.v, 4 * sizeof(Moment)) &&
                     detail::aligned_rows(block.operand.codes, 4) && rows <= 0x7FFFFFFF;
  if (!fused) {
    for_each_row(cuda, rows, block);
    return;
  }
  if (rows == 0) return;
  const auto kernel = detail::fused_adamw_kernel<Block, Moment, C>;
  detail::check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          detail::fused_adamw_bytes),
                     "fused_rows of AdamW", "cudaFuncSetAttribute");
  detail::launch(cuda, kernel, static_cast<unsigned>(rows), detail::fused_adamw_threads,
                 detail::fused_adamw_bytes, block, static_cast<int>(across));
  detail::check_cuda(cudaGetLastError(), "fused_rows of AdamW", "launch",
                     std::to_string(rows) + " blocks");
}

}  // namespace dsv3
