// Attention's forward kernel by wgmma and TMA: the groups of warps that multiply.
#pragma once

#include <dsv3/backend/cuda/attention_forward.cuh>
#include <dsv3/backend/cuda/attention_hopper.cuh>

namespace dsv3::detail {

// What a thread holds of its two rows, lane / 4 and that + 8 of its warp's 16, as fragments of
// hopper_fragment_row and _column: the same numbers as AttentionForwardWarp, with which it shares
// that a tile of keys that a row does not see changes nothing.
template <class Shape>
struct AttentionHopperRows {
  float sum[64];
  float s[64];          // scores, then weights
  std::uint32_t p[32];  // weights, as left operands
  float largest[2], denominator[2];

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] = 0;
    largest[0] = largest[1] = -__builtin_bit_cast(float, 0x7F800000);
    denominator[0] = denominator[1] = 0;
  }
  __device__ __forceinline__ void ask_scores(std::uint64_t q, std::uint64_t k) {
    hold_accumulators(s);
    products_begin();
#pragma unroll
    for (int d = 0; d < 4 * Shape::panels; ++d) {
      const std::uint64_t step = d / 4 * (Shape::panel / 16) + d % 4 * hopper_descriptor_step;
      if (d == 0)
        multiply_bf16_rows<false>(s, q, k);
      else
        multiply_bf16_rows<true>(s, q + step, k + step);
    }
    products_end();
  }
  __device__ __forceinline__ void ask_values(std::uint64_t v) {
    hold_accumulators(sum);
    hold_operands(p);
    products_begin();
#pragma unroll
    for (int k = 0; k < Shape::keys / 16; ++k)
      multiply_bf16_columns(sum, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3],
                            v + k * hopper_columns_descriptor_step);
    products_end();
  }

  // Takes away the scores of keys that a row does not see. seen: the last one that it does, from
  // this thread's first key on.
  __device__ __forceinline__ void mask(int seen0, int seen1) {
    const float infinity = __builtin_bit_cast(float, 0x7F800000);
#pragma unroll
    for (int i = 0; i < 64; ++i)
      if (i / 4 * 8 + i % 2 > (i / 2 % 2 ? seen1 : seen0)) s[i] = -infinity;
  }
  // Scores become weights relative to the running maximum; what was summed is to be multiplied by
  // `keep`. Four chains at a time: few warps share a scheduler.
  __device__ __forceinline__ void weigh(float (&keep)[2], float scale_log2) {
    float most[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 0; e < 2; ++e) most[half][e] = s[2 * half + e];
#pragma unroll
    for (int n = 1; n < 16; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int e = 0; e < 2; ++e) most[half][e] = fmaxf(most[half][e], s[4 * n + 2 * half + e]);
    float bound[2], total[2][2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // In powers of 2 and rounded, so that an unchanged bound keeps exactly what was summed.
      const float row = attention_row_max(fmaxf(most[half][0], most[half][1]));
      bound[half] = fmaxf(largest[half], row * scale_log2);
      keep[half] = exp2_fast(largest[half] - bound[half]);
      largest[half] = bound[half];
    }
#pragma unroll
    for (int n = 0; n < 16; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[4 * n + 2 * half + e];
          x = exp2_fast(fmaf(x, scale_log2, -bound[half]));
          total[half][e] += x;
        }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      denominator[half] = fmaf(denominator[half], keep[half], total[half][0] + total[half][1]);
  }
  // Of what all weights have gone into.
  __device__ __forceinline__ std::uint32_t bits() const {
    return __float_as_uint(denominator[0]) | __float_as_uint(denominator[1]);
  }
  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
  }
  __device__ __forceinline__ void rescale(const float (&keep)[2]) {
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] *= keep[i / 2 % 2];
  }

  // row: of the tile, the first of the two.
  __device__ __forceinline__ void finish(const View<bf16, 3>& o, const View<float, 2>& lse,
                                         const volatile int* unit, int row) const {
    const int head = unit[AttentionHopperUnit::head], t0 = unit[AttentionHopperUnit::token];
    const int rows = unit[AttentionHopperUnit::rows], lane = static_cast<int>(threadIdx.x) % 32;
    const int width = static_cast<int>(o.extent(2));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = attention_row_sum(denominator[half]), inverse = 1.0f / total;
      const int r = row + 8 * half, t = t0 + r;
      if (r >= rows) continue;
      bf16* to = &o(t, head, 0);
      // Adding 0 makes one of the two zeros, whose sign tells of tiles that the row did not see.
#pragma unroll
      for (int n = 0; n < 16; ++n)
        store_attention_pair<true>(to, 8 * n + lane % 4 * 2, width,
                                   fmaf(sum[4 * n + 2 * half], inverse, 0.0f),
                                   fmaf(sum[4 * n + 2 * half + 1], inverse, 0.0f));
      if (lane % 4 == 0) lse(t, head) = fmaf(largest[half], 0.693147180559945309f, log(total));
    }
  }
};

// By the threads of one group: zeros in the rows of v from `inside` on, which belong to somebody
// else, so that a weight of 0 makes no NaN of them. The other group writes the same.
template <class Shape>
__device__ __forceinline__ void clear_attention_values(std::uint32_t v, int inside, int group) {
  for (int i = static_cast<int>(threadIdx.x) % 128; i < (Shape::keys - inside) * 16; i += 128)
    store_16_bytes(v + i % 16 / 8 * Shape::panel + (inside + i / 16) * 128 + i % 8 * 16,
                   {0, 0, 0, 0});
  publish_to_async();
  sync_group(group);
}

// Eight warps in two groups, each with 64 of the queries. The products of a tile's values run while
// the weights of the next one are computed:
//
//     scores of j, sums of j - 1 | weights of j | scores of j + 1, sums of j | ...
template <class Shape, bool bounded>
__device__ __forceinline__ void attention_hopper_multiply(
    const AttentionTask& in, const View<bf16, 3>& o, const View<float, 2>& lse,
    const AttentionHopperShared<Shape>& shared, Cuda::Fault* fault) {
  const int thread = static_cast<int>(threadIdx.x) - 128, lane = thread % 32;
  const int warp = __shfl_sync(~0u, thread / 32, 0), group = warp / 4;
  const int row = warp * 16 + lane / 4;
  const std::uint64_t q = hopper_descriptor(shared.q() + group * 64 * 128);
  const std::uint64_t k = hopper_descriptor(shared.k(0));
  const std::uint64_t v = hopper_columns_descriptor(shared.v(0), Shape::panel);
  constexpr std::uint64_t k_stage = Shape::panels * Shape::panel / 16;
  constexpr std::uint64_t v_stage = Shape::v_panels * Shape::panel / 16;
  RingPlace<1> unit_at;
  RingPlace<Shape::stages> k_at, v_at;
  const auto arrive_warp = [&](std::uint32_t barrier) {
    if (lane == 0) arrive(barrier);
  };
  if (Shape::turns && group == 1) give_turn(0);
  AttentionHopperRows<Shape> own;
  for (;; unit_at.advance()) {
    wait_for_tile<bounded>(shared.q_full(), unit_at.parity, 4, fault);
    volatile int* unit = shared.unit(unit_at.parity);
    if (unit[AttentionHopperUnit::head] < 0) break;
    const int keys = unit[AttentionHopperUnit::keys];
    // The last key that a row sees, from this thread's first key on; the least of the warp.
    int seen0 = unit[AttentionHopperUnit::own + row] - lane % 4 * 2;
    int seen1 = unit[AttentionHopperUnit::own + row + 8] - lane % 4 * 2;
    int left = __reduce_min_sync(~0u, (seen0 < seen1 ? seen0 : seen1) + lane % 4 * 2);
    const auto weigh = [&](float(&keep)[2]) {
      if (left < Shape::keys - 1) own.mask(seen0, seen1);
      left -= Shape::keys, seen0 -= Shape::keys, seen1 -= Shape::keys;
      own.weigh(keep, in.scale_log2);
    };
    own.begin();
    float keep[2];
    wait_for_tile<bounded>(shared.k_full(k_at.stage), k_at.parity, 5, fault);
    own.ask_scores(q, k + k_at.stage * k_stage);
    wait_for_series<0>();
    hold_accumulators(own.s);
    arrive_warp(shared.k_empty(k_at.stage));
    k_at.advance();
    weigh(keep);
    own.pack();
    int j = Shape::keys;
    for (; j < keys; j += Shape::keys) {
      wait_for_tile<bounded>(shared.k_full(k_at.stage), k_at.parity, 5, fault);
      if (Shape::turns) wait_for_turn(group);
      own.ask_scores(q, k + k_at.stage * k_stage);
      wait_for_tile<bounded>(shared.v_full(v_at.stage), v_at.parity, 6, fault);
      own.ask_values(v + v_at.stage * v_stage);
      if (Shape::turns) give_turn(1 - group);
      wait_for_series<1>();
      hold_accumulators(own.s);
      arrive_warp(shared.k_empty(k_at.stage));
      k_at.advance();
      weigh(keep);
      hold_accumulators(own.s);
      compute_before_wait(own.bits(), fault);
      wait_for_series<0>();
      hold_accumulators(own.sum);
      hold_operands(own.p);
      arrive_warp(shared.v_empty(v_at.stage));
      v_at.advance();
      own.rescale(keep);
      own.pack();
    }
    arrive_warp(shared.q_empty());
    wait_for_tile<bounded>(shared.v_full(v_at.stage), v_at.parity, 6, fault);
    if (keys < j)
      clear_attention_values<Shape>(shared.v(v_at.stage), keys - (j - Shape::keys), group);
    own.ask_values(v + v_at.stage * v_stage);
    wait_for_series<0>();
    hold_accumulators(own.sum);
    hold_operands(own.p);
    arrive_warp(shared.v_empty(v_at.stage));
    v_at.advance();
    own.finish(o, lse, unit, row);
  }
  if (Shape::turns && group == 0) wait_for_turn(0);  // the one that was left over
}

// Persistent: as many blocks as multiprocessors, each of which takes units until none is left.
template <class Shape, bool bounded>
__global__ void __launch_bounds__(Shape::threads, 1)
    attention_hopper_kernel(const __grid_constant__ AttentionHopperMaps maps,
                            const __grid_constant__ AttentionTask in,
                            const __grid_constant__ View<bf16, 3> o,
                            const __grid_constant__ View<float, 2> lse, Cuda::Fault* fault) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char attention_memory[];
  const AttentionHopperShared<Shape> shared(attention_memory);
  if (threadIdx.x == 0) {
    if (shared.start % 1024 != 0) __trap();
    prefetch_map(maps.q);
    prefetch_map(maps.kv);
    barrier_init(shared.q_full(), 1);
    barrier_init(shared.q_empty(), 8);
    for (int stage = 0; stage < Shape::stages; ++stage) {
      barrier_init(shared.k_full(stage), 1);
      barrier_init(shared.k_empty(stage), 8);
      barrier_init(shared.v_full(stage), 1);
      barrier_init(shared.v_empty(stage), 8);
    }
    barriers_are_ready();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    shrink_registers<Shape::bringing>();
    if (threadIdx.x < 32) attention_hopper_bring<Shape, bounded>(in, maps, shared, fault);
  } else {
    grow_registers<Shape::multiplying>();
    attention_hopper_multiply<Shape, bounded>(in, o, lse, shared, fault);
  }
#endif
}

}  // namespace dsv3::detail
