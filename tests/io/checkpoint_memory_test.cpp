#include <doctest/doctest.h>

#include <chrono>
#include <dsv3/io/checkpoint.hpp>
#include <dsv3/io/checkpoint_convert.hpp>
#include <dsv3/model.hpp>
#include <dsv3/plan.hpp>

#include "../anonymous_memory.hpp"
#include "folder.hpp"

using namespace dsv3;

// Sanitizers keep memory of their own.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define DSV3_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define DSV3_SANITIZED
#endif

#ifndef DSV3_SANITIZED

namespace {

constexpr Index mib = Index{1} << 20;

// About 90 million parameters: a second copy of them would be 300 MiB, far above the margin.
ModelConfig sizes() {
  ModelConfig c = presets::deepseek_v2_lite;
  c.vocab_size = 1000;
  c.hidden_size = 1000;
  c.intermediate_size = 2000;
  c.moe_intermediate_size = 1400;
  c.num_hidden_layers = 2;
  c.n_routed_experts = 14;
  return c;
}

// Tensors of zeros, which need no memory to be written.
void save_zeros(const TestFolder& folder, DType dtype) {
  std::vector<SafetensorsEntry> entries;
  for (const TensorLayout& tensor : checkpoint_layout(sizes(), dtype))
    entries.push_back(
        {tensor.name, tensor.dtype, tensor.shape, [](std::byte* to, Index, Index bytes) {
           std::memset(to, 0, static_cast<std::size_t>(bytes));
         }});
  std::filesystem::create_directory(folder.path("x"));
  save_safetensors(folder.path("x/model.safetensors"), std::move(entries));
  save_config(folder.path("x/config.json"), sizes(), dtype);
}

template <class P>
void check_loading_and_saving(DType dtype) {
  TestFolder folder;
  save_zeros(folder, dtype);
  const Index weights = plan::weight_bytes<P>(sizes());
  CHECK(weights > 250 * mib);
  const Index before = anonymous_bytes();
  Cpu backend(2);
  Model<P, Cpu> model(backend, sizes());
  const Index loading = peak_of([&] { load_weights(model, folder.path("x")); }) - before;
  CHECK(loading >= weights);  // else nothing was measured
  CHECK(loading <= weights + weights / 20 + 64 * mib);
  const Index saving = peak_of([&] { save_checkpoint(model, folder.path("y"), {.dtype = dtype}); });
  CHECK(saving - before <= weights + weights / 20 + 64 * mib);
  MESSAGE(std::string(P::name) << ": weights " << weights / mib << " MiB, loading " << loading / mib
                               << " MiB, saving " << (saving - before) / mib << " MiB");
}

}  // namespace

TEST_CASE("Loading and saving take the memory of the weights and little more") {
  SUBCASE("fp32 from F32") { check_loading_and_saving<Fp32>(DType::f32); }
  SUBCASE("fp32 from BF16") { check_loading_and_saving<Fp32>(DType::bf16); }
  SUBCASE("bf16 from BF16") { check_loading_and_saving<Bf16>(DType::bf16); }
  SUBCASE("fp8 from F8_E4M3") { check_loading_and_saving<Fp8>(DType::f8_e4m3); }
  SUBCASE("fp8 from BF16") { check_loading_and_saving<Fp8>(DType::bf16); }
}

TEST_CASE("Conversion takes a few MiB, whatever the size") {
  for (const auto& [from, to] :
       {std::pair(DType::bf16, DType::f8_e4m3), std::pair(DType::f8_e4m3, DType::bf16),
        std::pair(DType::bf16, DType::f32)}) {
    TestFolder folder;
    save_zeros(folder, from);
    const Index before = anonymous_bytes();
    const Index peak = peak_of(
        [&, to = to] { convert_checkpoint(folder.path("x"), folder.path("y"), {.dtype = to}); });
    CHECK(peak - before <= 32 * mib);  // of files of 80 to 320 MiB
    MESSAGE("conversion " << (peak - before) / mib << " MiB");
  }
}

#endif
