// Launches of attention's kernels by wgmma and TMA, and what they can serve.
#pragma once

#include <dsv3/backend/cuda/attention_hopper_forward.cuh>
#include <dsv3/backend/cuda/attention_hopper_slopes.cuh>
#include <dsv3/backend/cuda/attention_launch.cuh>
#include <dsv3/backend/cuda/hopper_codes.cuh>

namespace dsv3::detail {

// What TMA can read: in tiles of 64 columns, of which none has columns of two tensors. panels: of
// q.
inline bool attention_hopper_reads(const Cuda& cuda, const AttentionTask& in, int panels) {
  const auto steps = [](const auto& view) {
    return view.strides[1] > 0 && view.strides[0] > 0 && view.strides[0] % view.strides[1] == 0;
  };
  const int d_r = in.d_qk() - in.d_n();
  return hopper_kernels_run(cuda) && in.d_n() % 64 == 0 &&
         in.d_n() / 64 + (d_r + 63) / 64 == panels && in.d_v() <= 128 && heads_are_aligned(in) &&
         steps(in.q) && steps(in.kv) && (d_r == 0 || in.k_rope.strides[0] > 0);
}

inline CUtensorMap attention_map(const char* caller, const View<const bf16, 3>& x, int rows) {
  return tensor_map(caller, {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                             x.data,
                             3,
                             {x.extent(2), x.extent(1), x.extent(0)},
                             {x.strides[1] * 2, x.strides[0] * 2},
                             {64, 1, rows},
                             true});
}
// Of k_rope; where no part is rotated, of something that nobody reads.
inline CUtensorMap attention_rope_map(const char* caller, const AttentionTask& in, int rows) {
  if (in.d_qk() == in.d_n()) return attention_map(caller, in.kv, rows);
  return tensor_map(caller, {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                             in.k_rope.data,
                             2,
                             {in.k_rope.extent(1), in.k_rope.extent(0), 1},
                             {in.k_rope.strides[0] * 2, 0},
                             {64, rows, 1},
                             true});
}

template <class Shape>
bool attention_hopper_fits(const Cuda& cuda, const AttentionTask& in) {
  return Shape::bytes <= cuda.shared_bytes() && attention_hopper_reads(cuda, in, Shape::panels);
}

// For what attention_hopper_fits, and o that rows_are_aligned. bounded: for tests.
template <class Shape, bool bounded>
void attention_hopper_forward_as(Cuda& cuda, const AttentionTask& in, const View<bf16, 3>& o,
                                 const View<float, 2>& lse) {
  const char* caller = "fused_attention_forward";
  const AttentionHopperMaps maps{attention_map(caller, in.q, Shape::rows),
                                 attention_map(caller, in.kv, Shape::rows),
                                 attention_rope_map(caller, in, Shape::rows)};
  launch_attention_map(cuda, caller, in, Shape::rows);
  launch_attention(cuda, caller, "launch for Hopper", in, attention_hopper_kernel<Shape, bounded>,
                   Shape::threads, Shape::bytes, 1, maps, in, o, lse, cuda.fault());
}

// The three kernels of the backward pass and what goes before and after them. For rows that are
// aligned; bounded: for tests.
struct AttentionHopperBackward {
  Cuda& cuda;
  const AttentionBackwardTask& task;
  const char* caller = "fused_attention_backward";

  bool fits() const {
    using Shape = AttentionHopperBackwardShape<AttentionPart::queries>;
    const auto& d_o = task.d_o;
    return Shape::bytes <= cuda.shared_bytes() &&
           attention_hopper_reads(cuda, task.in, Shape::panels) && d_o.strides[1] > 0 &&
           d_o.strides[0] > 0 && d_o.strides[0] % d_o.strides[1] == 0;
  }
  AttentionHopperBackwardMaps maps() const {
    constexpr int rows = 64;
    return {attention_map(caller, task.in.q, rows), attention_map(caller, task.in.kv, rows),
            attention_rope_map(caller, task.in, rows), attention_map(caller, task.d_o, rows)};
  }
  template <AttentionPart part, bool bounded>
  void sum(const AttentionHopperBackwardMaps& maps, const View<bf16, 3>& to,
           const View<float, 3>& rope_sum) const {
    using Shape = AttentionHopperBackwardShape<part>;
    launch_attention(cuda, caller,
                     part == AttentionPart::queries ? "launch over queries for Hopper"
                     : part == AttentionPart::keys  ? "launch over keys for Hopper"
                                                    : "launch over values for Hopper",
                     task.in, attention_hopper_backward_kernel<Shape, bounded>, Shape::threads,
                     Shape::bytes, 1, maps, task, to, rope_sum, cuda.fault());
  }
  template <bool bounded>
  void run(View<const bf16, 3> o, View<const float, 2> lse, const View<bf16, 3>& dq,
           const View<bf16, 3>& dkv, const View<bf16, 2>& dk_rope,
           const View<float, 3>& rope_sum) const {
    const auto made = maps();
    launch_attention_map(cuda, caller, task.in, 128);
    launch_attention_delta<true>(cuda, caller, task, o, lse);
    sum<AttentionPart::values, bounded>(made, dkv, rope_sum);
    sum<AttentionPart::keys, bounded>(made, dkv, rope_sum);
    sum<AttentionPart::queries, bounded>(made, dq, rope_sum);
    launch_attention_rope_sum(cuda, caller, task.in, rope_sum, dk_rope);
  }
};

}  // namespace dsv3::detail
