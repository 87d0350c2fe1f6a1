#include <dsv3/plan/cache.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace dsv3;

namespace {

// Spec 4.5: the latent cache in bf16.
static_assert(plan::cache_bytes_per_token(presets::deepseek_v3) == 70'272);
static_assert(plan::cache_bytes_per_token(presets::deepseek_v2) == 69'120);
static_assert(plan::cache_bytes_per_token(presets::deepseek_v2_lite) == 31'104);
static_assert(plan::cache_bytes_per_token(presets::moonlight) == 31'104);
// With codes: 656 bytes a token and layer, 40,016 a token.
static_assert(CacheElement<e4m3>::bytes(512, 64) == 656);
static_assert(plan::cache_bytes_per_token<e4m3>(presets::deepseek_v3) == 40'016);
static_assert(plan::cache_bytes_per_token<e4m3>(presets::deepseek_v2) == 60 * 656);
static_assert(plan::cache_bytes_per_token<e4m3>(presets::deepseek_v2_lite) == 27 * 656);
static_assert(plan::cache_bytes_per_token<float>(presets::deepseek_v3) == 140'544);
// A whole block is 64 entries: nothing is lost to alignment at these sizes. With MTP's layer a
// token takes 71,424 bytes.
static_assert(plan::cache_bytes<bf16>(presets::deepseek_v3, {10, 64, true}) == 640 * 71'424);

// The same models with the attention that latent attention replaces. V3: spec 4.5; the others by
// hand, layers * heads * (128 + 128) * 2 bytes.
static_assert(plan::cache_bytes_per_token(plan::expanded(presets::deepseek_v3)) == 4'997'120);
static_assert(plan::cache_bytes_per_token(plan::multi_head(presets::deepseek_v3)) == 3'997'696);
static_assert(plan::cache_bytes_per_token(plan::multi_head(presets::deepseek_v2)) == 3'932'160);
static_assert(plan::cache_bytes_per_token(plan::multi_head(presets::deepseek_v2_lite)) == 221'184);
static_assert(plan::cache_bytes_per_token(plan::multi_query(presets::deepseek_v3)) == 31'232);
static_assert(plan::cache_bytes_per_token(plan::grouped_query(presets::deepseek_v3, 8)) ==
              8 * 31'232);
// Codes: 128 bytes and one scale for each key and each value of a head.
static_assert(plan::cache_bytes_per_token<e4m3>(plan::multi_query(presets::deepseek_v3)) ==
              61 * 2 * (128 + 4));
// Latent attention equals 2.25 groups: exact in binary.
static_assert(plan::equivalent_groups(presets::deepseek_v3) == 2.25);
static_assert(plan::equivalent_groups(presets::deepseek_v2) == 2.25);
// Spec 11: two models without latent attention.
static_assert(plan::cache_bytes_per_token(plan::qwen_2_5_72b) == 327'680);
static_assert(plan::cache_bytes_per_token(plan::llama_3_1_405b) == 516'096);

}  // namespace

TEST_CASE("caches of other models are so many times DeepSeek-V3's") {
  const auto times = [](Index bytes) {
    return static_cast<double>(bytes) /
           static_cast<double>(plan::cache_bytes_per_token(presets::deepseek_v3));
  };
  // Two decimals are printed in arXiv:2505.09343, table 1.
  CHECK(std::abs(times(327'680) - 4.66) < 0.005);
  // It prints 7.28 here, which its own bytes, 516.096 by 70.272, do not give.
  CHECK(std::abs(times(516'096) - 7.34) < 0.005);
}
