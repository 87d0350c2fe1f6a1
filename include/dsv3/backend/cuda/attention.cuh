// Attention of training and prefill on tensor cores: which kernel serves which sizes.
#pragma once

#include <dsv3/backend/cuda/attention.hpp>
#include <dsv3/backend/cuda/attention_backward_keys.cuh>
#include <dsv3/backend/cuda/attention_backward_queries.cuh>
#include <dsv3/backend/cuda/attention_forward.cuh>
#include <dsv3/backend/cuda/attention_hopper_launch.cuh>

namespace dsv3 {
namespace detail {

// The shapes of heads that have kernels of their own; `General` reads elements where rows do not
// start at multiples of 16 bytes.
template <int qk, int v>
using AttentionForwardOf = AttentionForwardShape<qk, v, 2, true>;
using AttentionForwardGeneral = AttentionForwardShape<256, 256, 1, false>;
template <int qk, int v>
using AttentionBackwardOf = AttentionBackwardShape<qk, v, 4, 64, 1, false, true>;
using AttentionBackwardGeneral = AttentionBackwardShape<256, 256, 4, 32, 1, true, false>;

template <class Shape>
void attention_forward_as(Cuda& cuda, const AttentionTask& in, const View<bf16, 3>& o,
                          const View<float, 2>& lse) {
  const char* caller = "fused_attention_forward";
  launch_attention_map(cuda, caller, in, Shape::rows);
  launch_attention(cuda, caller, "launch", in, attention_forward_kernel<Shape>, Shape::threads,
                   Shape::bytes, 2, in, o, lse);
}

template <class Shape>
void attention_backward_as(Cuda& cuda, const AttentionBackwardTask& task, View<const bf16, 3> o,
                           View<const float, 2> lse, const View<bf16, 3>& dq,
                           const View<bf16, 3>& dkv, const View<bf16, 2>& dk_rope,
                           const View<float, 3>& rope_sum) {
  const char* caller = "fused_attention_backward";
  const AttentionTask& in = task.in;
  constexpr int blocks_at_once = Shape::aligned ? 2 : 1;  // on a multiprocessor
  launch_attention_map(cuda, caller, in, Shape::rows);
  launch_attention_delta<Shape::aligned>(cuda, caller, task, o, lse);
  launch_attention(cuda, caller, "launch over keys", in, attention_keys_kernel<Shape>,
                   Shape::threads, Shape::bytes, blocks_at_once, task, dkv, rope_sum);
  launch_attention(cuda, caller, "launch over queries", in, attention_queries_kernel<Shape>,
                   Shape::threads, Shape::bytes, blocks_at_once, task, dq);
  launch_attention_rope_sum(cuda, caller, in, rope_sum, dk_rope);
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
  const detail::AttentionHopperBackward hopper{cuda, task};
  if (aligned && fits(64, 64, Small::bytes))
    detail::attention_backward_as<Small>(cuda, task, o, lse, dq, dkv, dk_rope, rope_sum);
  else if (aligned && fits(128, 128, Medium::bytes))
    detail::attention_backward_as<Medium>(cuda, task, o, lse, dq, dkv, dk_rope, rope_sum);
  else if (aligned && hopper.fits())
    hopper.run<false>(o, lse, dq, dkv, dk_rope, rope_sum);
  else if (aligned && fits(192, 128, Large::bytes))
    detail::attention_backward_as<Large>(cuda, task, o, lse, dq, dkv, dk_rope, rope_sum);
  else
    detail::attention_backward_as<General>(cuda, task, o, lse, dq, dkv, dk_rope, rope_sum);
}

}  // namespace dsv3
