// Attention over a latent cache at DeepSeek-V3's sizes: 128 heads read latents of 512 and rotated
// keys of 64, in pages of 64 tokens.
#include <dsv3/nn/latent_attention.hpp>

#include "data.cuh"

namespace gpu_bench {
namespace {

constexpr Index heads = 128, latent = 512, rope = 64, nope = 128, page = 64;
constexpr double score_scale = 0.07216878364870322;  // 1 / sqrt(192)

template <class C>
dsv3::CachePages<C> random_pages(Run& run, Index slots) {
  dsv3::CachePages<C> pages;
  pages.rope = random<bf16>(run, {slots, rope}, 2);
  if constexpr (dsv3::is_fp8<C>) {
    pages.latent = random<C>(run, {slots, latent}, 1, 130);
    pages.scales = random<float>(run, {slots, latent / 128}, 3, 1e-3f, 8e-3f);
  } else {
    pages.latent = random<C>(run, {slots, latent}, 1);
  }
  return pages;
}

template <class C>
void decode_case(Run& run, Index batch, Index length, double goal) {
  const auto bytes =
      static_cast<double>(batch * length * dsv3::CacheElement<C>::bytes(latent, rope));
  run.work(bytes, "GB/s");
  run.against_copy(goal);
  const auto q_latent = random<bf16>(run, {batch, heads, latent}, 4, 0.3f);
  const auto q = random<bf16>(run, {batch, heads, nope + rope}, 5, 0.3f);
  const auto o = run.take<bf16>({batch, heads, latent});
  // Sequence b's pages are every batch-th: pages that follow one another do not lie so.
  const Index each = length / page;
  std::vector<std::int32_t> blocks(static_cast<std::size_t>(batch * each)), part, position;
  for (Index b = 0; b < batch; ++b) {
    for (Index i = 0; i < each; ++i)
      blocks[static_cast<std::size_t>(b * each + i)] = static_cast<std::int32_t>(i * batch + b);
    part.push_back(static_cast<std::int32_t>(b));
    position.push_back(static_cast<std::int32_t>(length - 1));
  }
  dsv3::CacheTable table;
  table.blocks = View<const std::int32_t, 2>(run.upload(blocks).data, {batch, each});
  table.part = run.upload(part);
  table.position = run.upload(position);
  table.block_size = page;
  table.keys = length;
  const Index sets = Run::sets(bytes);  // of pages, so that a small cache is not in L2
  std::vector<std::function<void()>> attend;
  for (Index s = 0; s < sets; ++s)
    attend.emplace_back(run.planned([&, pages = random_pages<C>(run, batch * length)](
                                        auto& backend, dsv3::Arena& scratch) {
      dsv3::LatentAttention<bf16, C>{score_scale}.forward(backend, as_const(q_latent), as_const(q),
                                                          dsv3::CachePages<const C>(pages), table,
                                                          o, scratch);
    }));
  attend[0]();
  check_output(run, "o", o);
  run.measure(sets, [&](Index i) { attend[static_cast<std::size_t>(i)](); });
}

}  // namespace

void decode_attention_cases(Cases& cases) {
  const auto add = [&](const char* element, Index batch, Index length, auto body) {
    cases.push_back({std::string("decode attention ") + element + ", B = " + std::to_string(batch) +
                         ", " + std::to_string(length) + " keys",
                     body});
  };
  // 228 FLOP for each byte of bf16: beyond two thirds of a copy tensor cores are the bound.
  for (const Index batch : {Index{64}, Index{1}})
    for (const Index length : {Index{32768}, Index{4096}}) {
      const double goal = length == 32768 ? 0.5 : 0;
      add("bf16", batch, length, [=](Run& run) { decode_case<bf16>(run, batch, length, goal); });
      add("e4m3", batch, length, [=](Run& run) { decode_case<e4m3>(run, batch, length, 0); });
    }
}

}  // namespace gpu_bench
