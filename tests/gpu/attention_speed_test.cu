// How fast attention's kernels are, at DeepSeek-V3's sizes: one causal sequence of 4096 tokens.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <dsv3/backend/cuda/attention.cuh>
#include <vector>

// Not `using namespace`: nvcc puts CUDA's own functions after it, whose calls of exp and sqrt would
// become ambiguous.
namespace dsv3 {
namespace {

constexpr Index tokens = 4096, heads = 128, d_n = 128, d_r = 64, d_v = 128;
// Multiplications and additions of the pairs that a causal mask leaves: d_qk + d_v each forward;
// backward five products, whatever a kernel repeats. gpu.md 6.3.
constexpr double pairs = double(tokens) * tokens / 2 * heads;
constexpr double forward_flops = pairs * 2 * (d_n + d_r + d_v);
constexpr double backward_flops = pairs * 2 * (3 * (d_n + d_r) + 2 * d_v);

// Values in [-1, 1) by a counter.
__global__ void fill_kernel(bf16* to, Index n, std::uint32_t seed) {
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += Index{gridDim.x} * blockDim.x) {
    std::uint32_t x = static_cast<std::uint32_t>(i) * 0x9E3779B9u + seed;
    x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
    x = (x ^ (x >> 13)) * 0xC2B2AE35u;
    to[i] = bf16(float(static_cast<std::int32_t>(x ^ (x >> 16))) * 0x1p-31f);
  }
}

struct Memory {
  Cuda& cuda;
  std::vector<void*> all;

  template <class T, int Rank>
  View<T, Rank> take(const Index (&shape)[Rank]) {
    View<T, Rank> view(nullptr, shape);
    all.push_back(allocate(cuda, view.size() * Index{sizeof(T)}));
    view.data = static_cast<T*>(all.back());
    if constexpr (std::is_same_v<T, bf16>)
      fill_kernel<<<1024, 256, 0, cuda.stream()>>>(view.data, view.size(),
                                                   static_cast<std::uint32_t>(all.size()));
    return view;
  }
  ~Memory() {
    for (void* each : all) deallocate(cuda, each, 0);
  }
};

// Prints and returns the median of ten runs in milliseconds.
template <class F>
double timed(Cuda& cuda, const char* what, double flops, F run) {
  cudaEvent_t start, stop;
  cudaEventCreate(&start), cudaEventCreate(&stop);
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    cudaEventRecord(start, cuda.stream());
    run();
    cudaEventRecord(stop, cuda.stream());
    cudaEventSynchronize(stop);
    float ms = 0;
    cudaEventElapsedTime(&ms, start, stop);
    if (i >= 2) times.push_back(ms);
  }
  cudaEventDestroy(start), cudaEventDestroy(stop);
  std::sort(times.begin(), times.end());
  std::printf("%-44s %8.3f ms (%.3f to %.3f)  %6.1f TFLOP/s\n", what, times[5], times.front(),
              times.back(), flops / (times[5] * 1e9));
  return times[5];
}

template <class Shape>
void try_forward(Cuda& cuda, const char* what, const detail::AttentionTask& in, View<bf16, 3> o,
                 View<float, 2> lse) {
  if (Shape::bytes <= cuda.shared_bytes())
    timed(cuda, what, forward_flops,
          [&] { detail::attention_forward_as<Shape>(cuda, in, o, lse); });
}
template <class Shape>
void try_hopper(Cuda& cuda, const char* what, const detail::AttentionTask& in, View<bf16, 3> o,
                View<float, 2> lse) {
  if (detail::attention_hopper_fits<Shape>(cuda, in))
    timed(cuda, what, forward_flops,
          [&] { detail::attention_hopper_forward_as<Shape, false>(cuda, in, o, lse); });
}
template <detail::AttentionPart part>
void try_part(Cuda& cuda, const char* what, const detail::AttentionBackwardTask& task, Index width,
              View<bf16, 3> to, View<float, 3> rope_sum) {
  const detail::AttentionHopperBackward hopper{cuda, task};
  if (!hopper.fits()) return;
  const auto maps = hopper.maps();
  timed(cuda, what, pairs * 2 * double(width), [&] {
    detail::launch_attention_map(cuda, "test", task.in, 128);
    hopper.sum<part, false>(maps, to, rope_sum);
  });
}
template <class Shape>
void try_keys(Cuda& cuda, const char* what, const detail::AttentionBackwardTask& task, int blocks,
              View<bf16, 3> dkv, View<float, 3> rope_sum) {
  if (Shape::bytes > cuda.shared_bytes()) return;
  timed(cuda, what, pairs * 2 * (2 * (d_n + d_r) + 2 * d_v), [&] {
    detail::launch_attention_map(cuda, "test", task.in, Shape::rows);
    detail::launch_attention(cuda, "test", "keys", task.in, detail::attention_keys_kernel<Shape>,
                             Shape::threads, Shape::bytes, blocks, task, dkv, rope_sum);
  });
}
template <class Shape>
void try_queries(Cuda& cuda, const char* what, const detail::AttentionBackwardTask& task,
                 int blocks, View<bf16, 3> dq) {
  if (Shape::bytes > cuda.shared_bytes()) return;
  timed(cuda, what, pairs * 2 * (2 * (d_n + d_r) + d_v), [&] {
    detail::launch_attention_map(cuda, "test", task.in, Shape::rows);
    detail::launch_attention(cuda, "test", "queries", task.in,
                             detail::attention_queries_kernel<Shape>, Shape::threads, Shape::bytes,
                             blocks, task, dq);
  });
}

}  // namespace

TEST_CASE("Speed of attention, causal, 4096 tokens, 128 heads of 192 and 128") {
  if (const std::string reason = cuda_unavailable(); !reason.empty()) {
    std::printf("skipped: %s\n", reason.c_str());
    return;
  }
  Cuda cuda;
  Memory memory{cuda, {}};
  const auto q = memory.take<bf16>({tokens, heads, d_n + d_r});
  const auto kv = memory.take<bf16>({tokens, heads, d_n + d_v});
  const auto k_rope = memory.take<bf16>({tokens, d_r});
  const auto o = memory.take<bf16>({tokens, heads, d_v});
  const auto d_o = memory.take<bf16>({tokens, heads, d_v});
  const auto dq = memory.take<bf16>({tokens, heads, d_n + d_r});
  const auto dkv = memory.take<bf16>({tokens, heads, d_n + d_v});
  const auto dk_rope = memory.take<bf16>({tokens, d_r});
  const auto lse = memory.take<float>({tokens, heads});
  const auto lists = memory.take<std::int32_t>({2, tokens});
  const std::vector<std::int32_t> begin(tokens, 0), end(tokens, tokens);
  copy_to_backend(cuda, &lists(0, 0), begin.data(), tokens * 4);
  copy_to_backend(cuda, &lists(1, 0), end.data(), tokens * 4);
  const Index bytes = fused_attention_backward_bytes<bf16>(cuda, tokens, heads, d_n, d_r, d_v);
  Arena arena(memory.take<std::byte>({bytes}).data, bytes);
  const View<const std::int32_t, 1> b = lists[0], e = lists[1];
  const double scale = 0.0721687836;  // 1 / sqrt(192)

  {  // once with waits that cannot hang
    const auto map = memory.take<std::int32_t>({detail::attention_map_words(tokens)});
    const auto numbers = memory.take<float>({2, heads, tokens});
    const auto rope_sum = memory.take<float>({tokens, heads, d_r});
    const detail::AttentionBackwardTask task{
        detail::attention_task("test", q, kv, k_rope, b, e, {}, {}, scale, map.data),
        d_o,
        {numbers[0], numbers[1]}};
    const detail::AttentionHopperBackward hopper{cuda, task};
    using Shape = detail::AttentionHopperShape<3, false>;
    if (detail::attention_hopper_fits<Shape>(cuda, task.in) && hopper.fits()) {
      detail::attention_hopper_forward_as<Shape, true>(cuda, task.in, o, lse);
      hopper.run<true>(o, lse, dq, dkv, dk_rope, rope_sum);
      synchronize(cuda);
    }
  }
  timed(cuda, "fused_attention_forward", forward_flops, [&] {
    fused_attention_forward<bf16>(cuda, q, kv, k_rope, b, e, {}, {}, scale, o, lse, arena);
  });
  timed(cuda, "fused_attention_backward", backward_flops, [&] {
    fused_attention_backward<bf16>(cuda, q, kv, k_rope, b, e, scale, o, lse, d_o, dq, dkv, dk_rope,
                                   arena);
  });

  // Its parts, and other shapes of the same kernels: TFLOP/s of what each of them computes.
  const auto map = arena.take<std::int32_t>({detail::attention_map_words(tokens)});
  const auto lse2 = arena.take<float>({heads, tokens}), delta = arena.take<float>({heads, tokens});
  const auto rope_sum = arena.take<float>({tokens, heads, d_r});
  const detail::AttentionTask in =
      detail::attention_task("test", q, kv, k_rope, b, e, {}, {}, scale, map.data);
  const detail::AttentionBackwardTask task{in, d_o, {lse2, delta}};
  timed(cuda, "list of tiles", 0, [&] { detail::launch_attention_map(cuda, "test", in, 128); });
  timed(cuda, "delta", 0, [&] {
    detail::attention_delta_kernel<true>
        <<<dim3(tokens / detail::attention_delta_tokens, heads), detail::attention_delta_threads, 0,
           cuda.stream()>>>(o, d_o, lse, task.numbers);
  });
  timed(cuda, "sum over heads", 0, [&] {
    detail::attention_rope_sum_kernel<detail::attention_rope_threads>
        <<<tokens * d_r / detail::attention_rope_threads, detail::attention_rope_threads, 0,
           cuda.stream()>>>(rope_sum, dk_rope);
  });
  try_hopper<detail::AttentionHopperShape<3, false>>(cuda, "forward, wgmma", in, o, lse);
  try_hopper<detail::AttentionHopperShape<3, true>>(cuda, "forward, wgmma in turns", in, o, lse);
  using detail::AttentionPart;
  try_part<AttentionPart::values>(cuda, "values, wgmma", task, d_n + d_r + d_v, dkv, rope_sum);
  try_part<AttentionPart::keys>(cuda, "keys, wgmma", task, 2 * (d_n + d_r) + d_v, dkv, rope_sum);
  try_part<AttentionPart::queries>(cuda, "queries, wgmma", task, 2 * (d_n + d_r) + d_v, dq,
                                   rope_sum);
  using detail::AttentionBackwardOf;
  try_keys<AttentionBackwardOf<192, 128>>(cuda, "keys, portable", task, 1, dkv, rope_sum);
  try_queries<AttentionBackwardOf<192, 128>>(cuda, "queries, portable", task, 1, dq);
  try_forward<detail::AttentionForwardOf<192, 128>>(cuda, "forward, portable", in, o, lse);
  synchronize(cuda);
}

}  // namespace dsv3
