// Attention of training and prefill on tensor cores: which kernel serves which sizes.
#pragma once

#include <dsv3/backend/cuda/attention.hpp>
#include <dsv3/backend/cuda/attention_backward_keys.cuh>
#include <dsv3/backend/cuda/attention_backward_queries.cuh>
#include <dsv3/backend/cuda/attention_forward.cuh>
#include <dsv3/backend/cuda/attention_hopper_forward.cuh>
#include <dsv3/backend/cuda/hopper_codes.cuh>
#include <dsv3/core/check.hpp>

namespace dsv3 {
namespace detail {

// The shapes of heads that have kernels of their own; `General` reads elements where rows do not
// start at multiples of 16 bytes.
template <int qk, int v>
using AttentionForwardOf = AttentionForwardShape<qk, v, 2, true>;
using AttentionForwardGeneral = AttentionForwardShape<256, 256, 1, false>;
template <int qk, int v>
using AttentionBackwardOf = AttentionBackwardShape<qk, v, 8, 64, 2, false, true>;
using AttentionBackwardGeneral = AttentionBackwardShape<256, 256, 4, 32, 1, true, false>;

// Whether every row of a view starts at a multiple of 16 bytes.
template <class T, int Rank>
bool rows_are_aligned(const View<T, Rank>& view) {
  bool aligned = reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0;
  for (int d = 0; d + 1 < Rank; ++d) aligned = aligned && view.strides[d] % 8 == 0;
  return aligned;
}
inline bool heads_are_aligned(const AttentionTask& in) {
  return in.d_n() % 8 == 0 && in.d_qk() % 8 == 0 && in.d_v() % 8 == 0 && rows_are_aligned(in.q) &&
         rows_are_aligned(in.kv) && (in.d_qk() == in.d_n() || rows_are_aligned(in.k_rope));
}

inline std::string attention_sizes(const AttentionTask& in) {
  return std::to_string(in.q.extent(0)) + " tokens, " + std::to_string(in.heads()) +
         " heads of width " + std::to_string(in.d_qk()) + " and " + std::to_string(in.d_v());
}

// After a launch.
inline void check_attention_launch(const char* caller, const char* what, const AttentionTask& in) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) check_cuda(error, caller, what, attention_sizes(in));
}

// Units and their numbers are of type int.
inline AttentionTask attention_task(const char* caller, View<const bf16, 3> q,
                                    View<const bf16, 3> kv, View<const bf16, 2> k_rope,
                                    View<const std::int32_t, 1> begin,
                                    View<const std::int32_t, 1> end,
                                    View<const std::int32_t, 1> first_key,
                                    View<const std::int32_t, 1> own_key, double scale,
                                    std::int32_t* map) {
  const AttentionTask in{q,       kv,           k_rope,
                         begin,   end,          first_key,
                         own_key, float(scale), float(scale * 1.44269504088896340736),
                         {map}};
  check_at_most(caller, "width of q", in.d_qk(), "widest head", widest_attention_head);
  check_at_most(caller, "width of o", in.d_v(), "widest head", widest_attention_head);
  check_at_most(caller, "tokens times heads", q.extent(0) * q.extent(1), "largest count",
                Index{1} << 30);
  return in;
}

inline void launch_attention_map(Cuda& cuda, const char* caller, const AttentionTask& in,
                                 int rows) {
  attention_map_kernel<attention_map_threads>
      <<<1, attention_map_threads, attention_map_threads / 32 * sizeof(int), cuda.stream()>>>(
          in.begin, rows, in.map);
  check_attention_launch(caller, "launch of the list of tiles", in);
}

// As many blocks as run at a time, each of which takes units until none is left.
template <class... Parameters, class... Arguments>
void launch_attention(Cuda& cuda, const char* caller, const char* what, const AttentionTask& in,
                      void (*kernel)(Parameters...), int threads, int bytes, int blocks,
                      const Arguments&... arguments) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             caller, "cudaFuncSetAttribute");
  kernel<<<static_cast<unsigned>(blocks * cuda.multiprocessors()), static_cast<unsigned>(threads),
           static_cast<std::size_t>(bytes), cuda.stream()>>>(arguments...);
  check_attention_launch(caller, what, in);
}

template <class Shape>
void attention_forward_as(Cuda& cuda, const AttentionTask& in, const View<bf16, 3>& o,
                          const View<float, 2>& lse) {
  const char* caller = "fused_attention_forward";
  launch_attention_map(cuda, caller, in, Shape::rows);
  launch_attention(cuda, caller, "launch", in, attention_forward_kernel<Shape>, Shape::threads,
                   Shape::bytes, 2, in, o, lse);
}

// What TMA can read: in tiles of 64 columns, of which none has columns of two tensors.
template <class Shape>
bool attention_hopper_fits(const Cuda& cuda, const AttentionTask& in) {
  const auto steps = [](const auto& view) {
    return view.strides[1] > 0 && view.strides[0] > 0 && view.strides[0] % view.strides[1] == 0;
  };
  const int d_r = in.d_qk() - in.d_n();
  return hopper_kernels_run(cuda) && Shape::bytes <= cuda.shared_bytes() && in.d_n() % 64 == 0 &&
         in.d_n() / 64 + (d_r + 63) / 64 == Shape::panels && in.d_v() <= 64 * Shape::v_panels &&
         heads_are_aligned(in) && steps(in.q) && steps(in.kv) &&
         (d_r == 0 || in.k_rope.strides[0] > 0);
}

inline TensorShape attention_boxes(const View<const bf16, 3>& x) {
  return {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
          x.data,
          3,
          {x.extent(2), x.extent(1), x.extent(0)},
          {x.strides[1] * 2, x.strides[0] * 2},
          {64, 1, 128},
          true};
}

// For what attention_hopper_fits, and o that rows_are_aligned. bounded: for tests.
template <class Shape, bool bounded>
void attention_hopper_forward_as(Cuda& cuda, const AttentionTask& in, const View<bf16, 3>& o,
                                 const View<float, 2>& lse) {
  const char* caller = "fused_attention_forward";
  AttentionHopperMaps maps{
      tensor_map(caller, attention_boxes(in.q)), tensor_map(caller, attention_boxes(in.kv)), {}};
  maps.rope = maps.kv;
  if (in.d_qk() > in.d_n())
    maps.rope = tensor_map(caller, {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                    in.k_rope.data,
                                    2,
                                    {in.k_rope.extent(1), in.k_rope.extent(0), 1},
                                    {in.k_rope.strides[0] * 2, 0},
                                    {64, 128, 1},
                                    true});
  launch_attention_map(cuda, caller, in, Shape::rows);
  launch_attention(cuda, caller, "launch for Hopper", in, attention_hopper_kernel<Shape, bounded>,
                   Shape::threads, Shape::bytes, 1, maps, in, o, lse, cuda.fault());
}

template <class Shape>
void attention_backward_as(Cuda& cuda, const AttentionBackwardTask& task, View<const bf16, 3> o,
                           View<const float, 2> lse, const View<bf16, 3>& dq,
                           const View<bf16, 3>& dkv, const View<bf16, 2>& dk_rope,
                           const View<float, 3>& rope_sum) {
  const char* caller = "fused_attention_backward";
  const AttentionTask& in = task.in;
  const Index tokens = in.q.extent(0);
  launch_attention_map(cuda, caller, in, Shape::rows);
  const dim3 blocks(
      static_cast<unsigned>((tokens + attention_delta_tokens - 1) / attention_delta_tokens),
      static_cast<unsigned>(in.heads()));
  attention_delta_kernel<Shape::aligned>
      <<<blocks, attention_delta_threads, 0, cuda.stream()>>>(o, task.d_o, lse, task.numbers);
  check_attention_launch(caller, "launch of delta", in);
  launch_attention(cuda, caller, "launch over keys", in, attention_keys_kernel<Shape>,
                   Shape::threads, Shape::bytes, 1, task, dkv, rope_sum);
  launch_attention(cuda, caller, "launch over queries", in, attention_queries_kernel<Shape>,
                   Shape::threads, Shape::bytes, 1, task, dq);
  const Index sums = tokens * dk_rope.extent(1);
  if (sums == 0) return;
  attention_rope_sum_kernel<attention_rope_threads>
      <<<static_cast<unsigned>((sums + attention_rope_threads - 1) / attention_rope_threads),
         attention_rope_threads, 0, cuda.stream()>>>(rope_sum, dk_rope);
  check_attention_launch(caller, "launch of the sum over heads", in);
}

}  // namespace detail

template <class T>
requires std::is_same_v<T, bf16>
void fused_attention_forward(Cuda& cuda, View<const T, 3> q, View<const T, 3> kv,
                             View<const T, 2> k_rope, View<const std::int32_t, 1> begin,
                             View<const std::int32_t, 1> end, View<const std::int32_t, 1> first_key,
                             View<const std::int32_t, 1> own_key, double scale, View<T, 3> o,
                             View<accum_t<T>, 2> lse, Arena& scratch) {
  const ArenaScope scope(scratch);
  const auto map = scratch.take<std::int32_t>({detail::attention_map_words(q.extent(0))});
  const detail::AttentionTask in = detail::attention_task(
      "fused_attention_forward", q, kv, k_rope, begin, end, first_key, own_key, scale, map.data);
  if (q.extent(0) == 0 || q.extent(1) == 0) return;
  const auto fits = [&](int qk, int v, int bytes) {
    return in.d_qk() <= qk && in.d_v() <= v && bytes <= cuda.shared_bytes();
  };
  const bool aligned = detail::heads_are_aligned(in) && detail::rows_are_aligned(o);
  using Small = detail::AttentionForwardOf<64, 64>;
  using Medium = detail::AttentionForwardOf<128, 128>;
  using Large = detail::AttentionForwardOf<192, 128>;
  using HopperMedium = detail::AttentionHopperShape<2, false>;
  using HopperLarge = detail::AttentionHopperShape<3, false>;
  if (aligned && fits(64, 64, Small::bytes))
    detail::attention_forward_as<Small>(cuda, in, o, lse);
  else if (aligned && detail::attention_hopper_fits<HopperMedium>(cuda, in))
    detail::attention_hopper_forward_as<HopperMedium, false>(cuda, in, o, lse);
  else if (aligned && detail::attention_hopper_fits<HopperLarge>(cuda, in))
    detail::attention_hopper_forward_as<HopperLarge, false>(cuda, in, o, lse);
  else if (aligned && fits(128, 128, Medium::bytes))
    detail::attention_forward_as<Medium>(cuda, in, o, lse);
  else if (aligned && fits(192, 128, Large::bytes))
    detail::attention_forward_as<Large>(cuda, in, o, lse);
  else
    detail::attention_forward_as<detail::AttentionForwardGeneral>(cuda, in, o, lse);
}

template <class T>
requires std::is_same_v<T, bf16>
void fused_attention_backward(Cuda& cuda, View<const T, 3> q, View<const T, 3> kv,
                              View<const T, 2> k_rope, View<const std::int32_t, 1> begin,
                              View<const std::int32_t, 1> end, double scale, View<const T, 3> o,
                              View<const accum_t<T>, 2> lse, View<const T, 3> d_o, View<T, 3> dq,
                              View<T, 3> dkv, View<T, 2> dk_rope, Arena& scratch) {
  const ArenaScope scope(scratch);
  const Index tokens = q.extent(0), heads = q.extent(1);
  const auto map = scratch.take<std::int32_t>({detail::attention_map_words(tokens)});
  const auto lse2 = scratch.take<float>({heads, tokens});
  const auto delta = scratch.take<float>({heads, tokens});
  const auto rope_sum = scratch.take<float>({tokens, heads, k_rope.extent(1)});
  const detail::AttentionBackwardTask task{
      detail::attention_task("fused_attention_backward", q, kv, k_rope, begin, end, {}, {}, scale,
                             map.data),
      d_o,
      {lse2, delta}};
  if (tokens == 0 || heads == 0) return;
  const detail::AttentionTask& in = task.in;
  const auto fits = [&](int qk, int v, int bytes) {
    return in.d_qk() <= qk && in.d_v() <= v && bytes <= cuda.shared_bytes();
  };
  const bool aligned = detail::heads_are_aligned(in) && detail::rows_are_aligned(o) &&
                       detail::rows_are_aligned(d_o) && detail::rows_are_aligned(dq) &&
                       detail::rows_are_aligned(dkv);
  using Small = detail::AttentionBackwardOf<64, 64>;
  using Medium = detail::AttentionBackwardOf<128, 128>;
  using Large = detail::AttentionBackwardOf<192, 128>;
  using General = detail::AttentionBackwardGeneral;
  if (aligned && fits(64, 64, Small::bytes))
    detail::attention_backward_as<Small>(cuda, task, o, lse, dq, dkv, dk_rope, rope_sum);
  else if (aligned && fits(128, 128, Medium::bytes))
    detail::attention_backward_as<Medium>(cuda, task, o, lse, dq, dkv, dk_rope, rope_sum);
  else if (aligned && fits(192, 128, Large::bytes))
    detail::attention_backward_as<Large>(cuda, task, o, lse, dq, dkv, dk_rope, rope_sum);
  else
    detail::attention_backward_as<General>(cuda, task, o, lse, dq, dkv, dk_rope, rope_sum);
}

}  // namespace dsv3
