// What all launches of attention's kernels share.
#pragma once

#include <dsv3/backend/cuda/attention.hpp>
#include <dsv3/backend/cuda/attention_backward.cuh>
#include <dsv3/backend/cuda/launch.cuh>
#include <dsv3/core/check.hpp>

namespace dsv3::detail {

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
  detail::launch(cuda, attention_map_kernel<attention_map_threads>, 1, attention_map_threads,
                 attention_map_threads / 32 * sizeof(int), in.begin, rows, in.map);
  check_attention_launch(caller, "launch of the list of tiles", in);
}

// As many blocks as run at a time, each of which takes units until none is left.
template <class... Parameters, class... Arguments>
void launch_attention(Cuda& cuda, const char* caller, const char* what, const AttentionTask& in,
                      void (*kernel)(Parameters...), int threads, int bytes, int blocks,
                      const Arguments&... arguments) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             caller, "cudaFuncSetAttribute");
  detail::launch(cuda, kernel, static_cast<unsigned>(blocks * cuda.multiprocessors()),
                 static_cast<unsigned>(threads), static_cast<std::size_t>(bytes), arguments...);
  check_attention_launch(caller, what, in);
}

// lse in powers of 2 and delta, for the backward kernels.
template <bool aligned>
void launch_attention_delta(Cuda& cuda, const char* caller, const AttentionBackwardTask& task,
                            const View<const bf16, 3>& o, const View<const float, 2>& lse) {
  const Index tokens = task.in.q.extent(0);
  const dim3 blocks(
      static_cast<unsigned>((tokens + attention_delta_tokens - 1) / attention_delta_tokens),
      static_cast<unsigned>(task.in.heads()));
  detail::launch(cuda, attention_delta_kernel<aligned>, blocks, attention_delta_threads, 0, o,
                 task.d_o, lse, task.numbers);
  check_attention_launch(caller, "launch of delta", task.in);
}
inline void launch_attention_rope_sum(Cuda& cuda, const char* caller, const AttentionTask& in,
                                      const View<const float, 3>& rope_sum,
                                      const View<bf16, 2>& dk_rope) {
  const Index sums = dk_rope.extent(0) * dk_rope.extent(1);
  if (sums == 0) return;
  detail::launch(
      cuda, attention_rope_sum_kernel<attention_rope_threads>,
      static_cast<unsigned>((sums + attention_rope_threads - 1) / attention_rope_threads),
      attention_rope_threads, 0, rope_sum, dk_rope);
  check_attention_launch(caller, "launch of the sum over heads", in);
}

}  // namespace dsv3::detail
