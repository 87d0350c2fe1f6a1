// Times of attention over a latent cache on a GPU, beside a copy.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <dsv3/backend/cuda/latent_attention.cuh>
#include <random>
#include <vector>

#include "latent_device.cuh"

namespace {

using dsv3::bf16;
using dsv3::CachePages;
using dsv3::CacheTable;
using dsv3::Cuda;
using dsv3::e4m3;
using dsv3::Index;
using dsv3::View;
using latent_test::Device;
using latent_test::skipped;

__global__ void fill_random(std::uint16_t* to, Index n, std::uint32_t mask, std::uint32_t or_with) {
  for (Index i = blockIdx.x * Index{256} + threadIdx.x; i < n; i += Index{256} * gridDim.x) {
    auto x = static_cast<std::uint32_t>(i) * 2654435761u + 12345u;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13, x *= 3266489917u, x ^= x >> 16;
    to[i] = static_cast<std::uint16_t>((x & mask) | or_with);
  }
}

// The median of 20 in microseconds.
template <class F>
double median_us(Cuda& cuda, F&& f) {
  std::vector<float> times;
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  for (int i = 0; i < 23; ++i) {
    cudaEventRecord(begin, cuda.stream());
    f();
    cudaEventRecord(end, cuda.stream());
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i >= 3) times.push_back(ms);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + 10, times.end());
  return 1000.0 * times[10];
}

template <class C>
void time_decode(Cuda& cuda, Index batch, Index keys, Index tokens_of_part, const char* name,
                 double copy) {
  constexpr bool coded = std::is_same_v<C, e4m3>;
  const Index heads = 128, block_size = 64, blocks = keys / block_size, slots = batch * keys;
  const Index tokens = batch * tokens_of_part;
  Device<C> latent(slots * 512);
  Device<bf16> rope(slots * 64), q_latent(tokens * heads * 512), q(tokens * heads * 192),
      o(tokens * heads * 512);
  Device<float> scales(coded ? slots * 4 : 1);
  // Both signs and exponents near 1: bf16 of magnitude 0.5 to 2, codes of any finite value.
  const auto fill = [&](void* to, Index bytes, std::uint32_t mask, std::uint32_t or_with) {
    fill_random<<<2048, 256, 0, cuda.stream()>>>(static_cast<std::uint16_t*>(to), bytes / 2, mask,
                                                 or_with);
  };
  fill(latent.data, slots * 512 * Index{sizeof(C)}, coded ? 0xF7F7 : 0x80FF, coded ? 0 : 0x3F00);
  fill(rope.data, slots * 128, 0x80FF, 0x3F00);
  fill(q_latent.data, tokens * heads * 1024, 0x80FF, 0x3F00);
  fill(q.data, tokens * heads * 384, 0x80FF, 0x3F00);
  if (coded) {
    std::vector<float> host(static_cast<std::size_t>(slots * 4), 1 / 128.0f);
    cudaMemcpy(scales.data, host.data(), host.size() * 4, cudaMemcpyHostToDevice);
  }
  std::vector<std::int32_t> table(static_cast<std::size_t>(batch * blocks)), part, position;
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i);
  std::shuffle(table.begin(), table.end(), std::mt19937(1));
  for (Index b = 0; b < batch; ++b)
    for (Index t = 0; t < tokens_of_part; ++t) {
      part.push_back(static_cast<std::int32_t>(b));
      position.push_back(static_cast<std::int32_t>(keys - tokens_of_part + t));
    }
  const Device<std::int32_t> d_table(table), d_part(part), d_position(position);
  const CachePages<const C> pages(View<const C, 2>(latent.data, {slots, 512}),
                                  View<const float, 2>(scales.data, {slots, coded ? 4 : 0}),
                                  View<const bf16, 2>(rope.data, {slots, 64}));
  const CacheTable where{{d_table.data, {batch, blocks}},
                         {d_part.data, {tokens}},
                         {d_position.data, {tokens}},
                         block_size,
                         keys};
  const Index bytes = dsv3::fused_latent_attention_bytes<bf16>(cuda, tokens, heads, 512, 64, keys);
  Device<std::byte> memory(bytes);
  const double us = median_us(cuda, [&] {
    dsv3::Arena scratch(memory.data, bytes);
    dsv3::fused_latent_attention(cuda, View<const bf16, 3>(q_latent.data, {tokens, heads, 512}),
                                 View<const bf16, 3>(q.data, {tokens, heads, 192}), pages, where,
                                 1 / std::sqrt(192.0), View<bf16, 3>(o.data, {tokens, heads, 512}),
                                 scratch);
  });
  cuda.wait("test");
  const auto host = o.host();
  CHECK(std::all_of(host.begin(), host.end(),
                    [](bf16 x) { return std::fabs(double(x)) <= 64; }));  // and no NaN
  double seen = 0;
  for (const auto p : position) seen += p + 1;
  const double cache = double(batch) * double(keys) * (coded ? 656 : 1152);
  const double moved = cache + double(tokens) * 128 * (576 + 512) * 2;
  const double flop = seen * 128 * 2 * (576 + 512);
  std::printf(
      "  %-9s %s B %3td x %td tokens, %5td keys: %9.1f us %7.0f GB/s (%3.0f %% of a copy) "
      "%6.1f TFLOP/s, scratch %.0f MB\n",
      name, coded ? "e4m3" : "bf16", batch, tokens_of_part, keys, us, moved / us / 1000,
      100 * moved / us / 1000 / copy, flop / us / 1e6, double(bytes) / 1e6);
}

}  // namespace

TEST_CASE("Times of latent attention") {
  if (skipped()) return;
  Cuda cuda;
  Cuda other({.hopper_kernels = false});
  double copy = 0;
  {
    const Index bytes = Index{1} << 30;
    Device<std::byte> from(bytes), to(bytes);
    const double us = median_us(cuda, [&] {
      cudaMemcpyAsync(to.data, from.data, std::size_t{1} << 30, cudaMemcpyDeviceToDevice,
                      cuda.stream());
    });
    copy = 2 * double(bytes) / us / 1000;
    std::printf("  copy of 1 GiB: %.0f GB/s read and written\n", copy);
  }
  for (Index keys : {4096, 32768})
    for (Index batch : {1, 64, 128}) {
      time_decode<bf16>(cuda, batch, keys, 1, "hopper", copy);
      time_decode<e4m3>(cuda, batch, keys, 1, "hopper", copy);
    }
  time_decode<bf16>(other, 1, 32768, 1, "portable", copy);
  time_decode<bf16>(other, 64, 4096, 1, "portable", copy);
  time_decode<e4m3>(other, 64, 4096, 1, "portable", copy);
  time_decode<bf16>(cuda, 1, 4096, 512, "prefill", copy);
  time_decode<bf16>(cuda, 16, 4096, 2, "two each", copy);
}
