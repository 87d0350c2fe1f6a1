// Attention's backward kernels by wgmma and TMA: the groups of warps that multiply.
#pragma once

#include <dsv3/backend/cuda/attention_hopper_backward.cuh>

namespace dsv3::detail {

// What a thread holds of its two rows, lane / 4 and that + 8 of its warp's 16, as fragments of
// hopper_fragment_row and _column: the same numbers as AttentionKeysWarp and AttentionQueriesWarp.
template <class Shape>
struct AttentionHopperSlopes {
  static constexpr int width = Shape::slopes ? 192 : 128;
  float sum[width / 2];
  float s[32];  // scores, then weights, then slopes
  float dp[32];
  std::uint32_t p[16];  // weights or slopes, as left operands

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int i = 0; i < width / 2; ++i) sum[i] = 0;
  }
  // d = own rows times those of a step, over `panels` of 64 columns.
  template <int panels>
  __device__ __forceinline__ static void ask_product(float (&d)[32], std::uint64_t own,
                                                     std::uint64_t step) {
    hold_sums(d);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4 * panels; ++k) {
      const std::uint64_t a =
          own + k / 4 * (Shape::own_panel / 16) + k % 4 * hopper_descriptor_step;
      const std::uint64_t b = step + k / 4 * (Shape::panel / 16) + k % 4 * hopper_descriptor_step;
      if (k == 0)
        multiply_bf16_rows<false>(d, a, b);
      else
        multiply_bf16_rows<true>(d, a, b);
    }
    products_end();
  }
  __device__ __forceinline__ void ask_sum(std::uint64_t step) {
    hold_sums(sum);
    hold_operands(p);
    products_begin();
#pragma unroll
    for (int k = 0; k < Shape::step / 16; ++k)
      multiply_bf16_columns(sum, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3],
                            step + k * hopper_columns_descriptor_step);
    products_end();
  }

  // lse2 and delta: of the rows, or at `numbers` of the columns.
  __device__ __forceinline__ void weigh(const float (&lse2)[2], std::uint32_t numbers,
                                        float scale_log2) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      float column[2];
      if (Shape::by_keys) load_two_floats(column[0], column[1], numbers + n * 32);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s[4 * n + e] = exp2_fast(
            fmaf(s[4 * n + e], scale_log2, -(Shape::by_keys ? column[e % 2] : lse2[e / 2])));
    }
  }
  __device__ __forceinline__ void slope(const float (&delta)[2], std::uint32_t numbers) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      float column[2];
      if (Shape::by_keys) load_two_floats(column[0], column[1], numbers + Shape::step * 4 + n * 32);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s[4 * n + e] *= dp[4 * n + e] - (Shape::by_keys ? column[e % 2] : delta[e / 2]);
    }
  }
  // Zeros for columns below `from`, counted from this thread's first, or from `to` on; of the
  // thread's second row 8 * both later.
  __device__ __forceinline__ void mask(int from, int to, int later_from, int later_to) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int column = i / 4 * 8 + i % 2, half = i / 2 % 2;
      if (column < from + half * later_from || column >= to + half * later_to) s[i] = 0;
    }
  }
  __device__ __forceinline__ std::uint32_t bits() const {
    std::uint32_t all = 0;
#pragma unroll
    for (int i = 0; i < 32; ++i) all |= __float_as_uint(s[i]);
    return all;
  }
  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int i = 0; i < 16; ++i) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
  }

  // row: of the tile, the first of the two.
  __device__ __forceinline__ void finish(const AttentionTask& in, const View<bf16, 3>& to,
                                         const View<float, 3>& rope_sum,
                                         const AttentionHopperSpan& unit, int row) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, d_n = in.d_n(), d_qk = in.d_qk();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = unit.row + row + 8 * half;
      if (t >= unit.row_end) continue;
      bf16* out = &to(t, unit.head, 0);
#pragma unroll
      for (int n = 0; n < width / 8; ++n) {
        const int d = 8 * n + lane % 4 * 2;
        float first = sum[4 * n + 2 * half], second = sum[4 * n + 2 * half + 1];
        if (Shape::slopes) first *= in.scale, second *= in.scale;
        if constexpr (Shape::part == AttentionPart::queries) {
          store_attention_pair<true>(out, d, d_qk, first, second);
        } else if constexpr (Shape::part == AttentionPart::values) {
          store_attention_pair<true>(out + d_n, d, in.d_v(), first, second);
        } else {
          store_attention_pair<true>(out, d, d_n, first, second);
          if (d >= d_n && d < d_qk) {
            float* sums = &rope_sum(t, unit.head, d - d_n);
            sums[0] = first, sums[1] = second;
          }
        }
      }
    }
  }
};

// By the threads of one group: zeros in the rows from `inside` on of a step, which belong to
// somebody else, so that a slope of 0 makes no NaN of them. The other group writes the same.
template <class Shape>
__device__ __forceinline__ void clear_attention_step(std::uint32_t step, int inside, int group) {
  constexpr int panels = Shape::slopes ? Shape::panels : Shape::v_panels, chunks = panels * 8;
  for (int i = static_cast<int>(threadIdx.x) % 128; i < (Shape::step - inside) * chunks; i += 128)
    store_16_bytes(step + i % chunks / 8 * Shape::panel + (inside + i / chunks) * 128 + i % 8 * 16,
                   {0, 0, 0, 0});
  publish_to_async();
  sync_group(group);
}

// Eight warps in two groups, each with 64 of the block's own rows. The products of a step's sums
// run while the slopes of the next one are computed:
//
//     scores of j, dP of j, sums of j - 1 | slopes of j | scores of j + 1, ...
template <class Shape, bool bounded>
__device__ __forceinline__ void attention_hopper_multiply_steps(
    const AttentionBackwardTask& task, const View<bf16, 3>& to, const View<float, 3>& rope_sum,
    const AttentionHopperBackwardShared<Shape>& shared, Cuda::Fault* fault) {
  const AttentionTask& in = task.in;
  const int thread = static_cast<int>(threadIdx.x) - 128, lane = thread % 32;
  const int warp = __shfl_sync(~0u, thread / 32, 0), group = warp / 4;
  const int row = warp * 16 + lane / 4;
  const std::uint64_t own_wide = hopper_descriptor(shared.wide() + group * Shape::panel);
  const std::uint64_t own_narrow = hopper_descriptor(shared.narrow() + group * Shape::panel);
  constexpr int summed = Shape::slopes ? 0 : Shape::stage_narrow;
  RingPlace<1> unit_at;
  RingPlace<Shape::stages> at, before;
  const auto arrive_warp = [&](std::uint32_t barrier) {
    if (lane == 0) arrive(barrier);
  };
  const auto sums_of = [&](int place) {
    return hopper_columns_descriptor(shared.stage(place) + summed, Shape::panel);
  };
  AttentionHopperSlopes<Shape> own;
  for (;; unit_at.advance()) {
    wait_for_tile<bounded>(shared.own_full(), unit_at.parity, 3, fault);
    const auto unit = AttentionHopperSpan::told(shared.unit(unit_at.parity));
    if (unit.head < 0) break;
    float lse2[2] = {}, delta[2] = {};
    if (!Shape::by_keys) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = unit.row + row + 8 * half;
        lse2[half] = t < unit.row_end ? task.numbers.lse2(unit.head, t) : 0.0f;
        delta[half] = t < unit.row_end ? task.numbers.delta(unit.head, t) : 0.0f;
      }
    }
    own.begin();
    const auto ask = [&] {
      const std::uint32_t step = shared.stage(at.stage);
      own.template ask_product<Shape::panels>(own.s, own_wide, hopper_descriptor(step));
      if constexpr (Shape::slopes)
        own.template ask_product<Shape::v_panels>(own.dp, own_narrow,
                                                  hopper_descriptor(step + Shape::stage_narrow));
    };
    const auto numbers = [&] { return shared.numbers(at.stage) + lane % 4 * 8; };
    // A row sees the keys up to its own, and is seen by the queries from its own on.
    const auto mask = [&](int t) {
      const int ahead = unit.row - t;  // of the first own row
      if (Shape::by_keys) {
        if (ahead + warp * 16 + 15 > 0 || t + Shape::step > unit.last)
          own.mask(ahead + row - lane % 4 * 2, unit.last - t - lane % 4 * 2, 8, 0);
      } else if (ahead + warp * 16 < Shape::step - 1) {
        own.mask(0, ahead + row + 1 - lane % 4 * 2, 0, 8);
      }
    };
    int t = unit.first;
    wait_for_tile<bounded>(shared.full(at.stage), at.parity, 4, fault);
    ask();
    wait_for_series<0>();
    hold_sums(own.s);
    if constexpr (Shape::slopes) hold_sums(own.dp);
    own.weigh(lse2, numbers(), in.scale_log2);
    if constexpr (Shape::slopes) own.slope(delta, numbers());
    mask(t);
    own.pack();
    before = at, at.advance();
    for (t += Shape::step; t < unit.last; t += Shape::step) {
      wait_for_tile<bounded>(shared.full(at.stage), at.parity, 4, fault);
      ask();
      own.ask_sum(sums_of(before.stage));
      wait_for_series<Shape::slopes ? 2 : 1>();
      hold_sums(own.s);
      own.weigh(lse2, numbers(), in.scale_log2);
      if constexpr (Shape::slopes) {
        wait_for_series<1>();
        hold_sums(own.dp);
        own.slope(delta, numbers());
      }
      mask(t);
      hold_sums(own.s);
      compute_before_wait(own.bits(), fault);
      wait_for_series<0>();
      hold_sums(own.sum);
      hold_operands(own.p);
      arrive_warp(shared.empty(before.stage));
      own.pack();
      before = at, at.advance();
    }
    arrive_warp(shared.own_empty());
    if (unit.last < t)
      clear_attention_step<Shape>(shared.stage(before.stage) + summed,
                                  unit.last - (t - Shape::step), group);
    own.ask_sum(sums_of(before.stage));
    wait_for_series<0>();
    hold_sums(own.sum);
    hold_operands(own.p);
    arrive_warp(shared.empty(before.stage));
    own.finish(in, to, rope_sum, unit, row);
  }
}

// Persistent: as many blocks as multiprocessors, each of which takes units until none is left. to:
// dq or dkv.
template <class Shape, bool bounded>
__global__ void __launch_bounds__(Shape::threads, 1)
    attention_hopper_backward_kernel(const __grid_constant__ AttentionHopperBackwardMaps maps,
                                     const __grid_constant__ AttentionBackwardTask task,
                                     const __grid_constant__ View<bf16, 3> to,
                                     const __grid_constant__ View<float, 3> rope_sum,
                                     Cuda::Fault* fault) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char attention_memory[];
  const AttentionHopperBackwardShared<Shape> shared(attention_memory);
  if (threadIdx.x == 0) {
    if (shared.start % 1024 != 0) __trap();
    prefetch_map(maps.q);
    prefetch_map(maps.kv);
    prefetch_map(maps.d_o);
    barrier_init(shared.own_full(), 1);
    barrier_init(shared.own_empty(), 8);
    for (int place = 0; place < Shape::stages; ++place) {
      barrier_init(shared.full(place), 1);
      barrier_init(shared.empty(place), 8);
    }
    barriers_are_ready();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    shrink_registers<Shape::bringing>();
    if (threadIdx.x < 32) attention_hopper_bring_steps<Shape, bounded>(task, maps, shared, fault);
  } else {
    grow_registers<Shape::multiplying>();
    attention_hopper_multiply_steps<Shape, bounded>(task, to, rope_sum, shared, fault);
  }
#endif
}

}  // namespace dsv3::detail
