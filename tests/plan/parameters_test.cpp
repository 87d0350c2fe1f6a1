#include <dsv3/plan/parameters.hpp>

#include <doctest/doctest.h>

#include "tiny_configs.hpp"

using namespace dsv3;

namespace {

// Spec 1.2: four published models.
static_assert(plan::attention_parameters(presets::deepseek_v3) == 187'107'328);
static_assert(plan::attention_parameters(presets::deepseek_v2) == 149'227'520);
static_assert(plan::attention_parameters(presets::deepseek_v2_lite) == 13'763'072);
static_assert(plan::attention_parameters(presets::moonlight) == 13'763'072);
static_assert(plan::block_parameters(presets::deepseek_v3, 0) == 583'483'392);
static_assert(plan::block_parameters(presets::deepseek_v2, 0) == 337'981'440);
static_assert(plan::block_parameters(presets::deepseek_v2_lite, 0) == 81'007'104);
static_assert(plan::block_parameters(presets::moonlight, 0) == 82'973'184);
static_assert(plan::expert_parameters(presets::deepseek_v3) == 44'040'192);
static_assert(plan::expert_parameters(presets::deepseek_v2) == 23'592'960);
static_assert(plan::expert_parameters(presets::deepseek_v2_lite) == 8'650'752);
static_assert(plan::block_parameters(presets::deepseek_v3, 3) == 11'507'286'272);
static_assert(plan::block_parameters(presets::deepseek_v2, 1) == 3'972'116'480);
static_assert(plan::block_parameters(presets::deepseek_v2_lite, 1) == 584'847'872);
static_assert(plan::block_parameters(presets::moonlight, 1) == 584'847'936);
static_assert(plan::main_parameters(presets::deepseek_v3) == 671'026'419'200);
static_assert(plan::main_parameters(presets::deepseek_v2) == 235'741'434'880);
static_assert(plan::main_parameters(presets::deepseek_v2_lite) == 15'706'484'224);
static_assert(plan::main_parameters(presets::moonlight) == 15'960'110'208);
static_assert(plan::activated_parameters(presets::deepseek_v3) == 36'625'618'432);
static_assert(plan::activated_parameters(presets::deepseek_v2) == 20'851'512'320);
static_assert(plan::activated_parameters(presets::deepseek_v2_lite) == 2'451'435'008);
static_assert(plan::activated_parameters(presets::moonlight) == 2'579'231'872);
static_assert(plan::mtp_parameters(presets::deepseek_v3) == 11'610'068'224);
// The module with the two duplicated V x d matrices of the file, and all parameters of the file.
static_assert(plan::mtp_parameters(presets::deepseek_v3) + 2 * Index{129280} * 7168 ==
              13'463'426'304);
static_assert(plan::total_parameters(presets::deepseek_v3) + 2 * Index{129280} * 7168 ==
              684'489'845'504);

// What is published beside the totals (spec 1.2), counted in the three other ways.
constexpr Index both_ends(const ModelConfig& c) { return 2 * plan::embedding_parameters(c); }
constexpr Index activated_with_embedding(const ModelConfig& c) {
  return plan::activated_parameters(c) + plan::embedding_parameters(c);
}
constexpr Index without_ends(const ModelConfig& c) {
  return plan::main_parameters(c) - both_ends(c);
}
constexpr Index activated_without_ends(const ModelConfig& c) {
  return activated_with_embedding(c) - both_ends(c);
}
static_assert(plan::embedding_parameters(presets::deepseek_v3) == 926'679'040);
static_assert(plan::embedding_parameters(presets::deepseek_v2) == 524'288'000);
static_assert(plan::embedding_parameters(presets::deepseek_v2_lite) == 209'715'200);
static_assert(plan::embedding_parameters(presets::moonlight) == 335'544'320);
static_assert(activated_with_embedding(presets::deepseek_v3) == 37'552'297'472);
static_assert(activated_with_embedding(presets::deepseek_v2) == 21'375'800'320);
static_assert(activated_with_embedding(presets::deepseek_v2_lite) == 2'661'150'208);
static_assert(activated_with_embedding(presets::moonlight) == 2'914'776'192);
static_assert(without_ends(presets::deepseek_v3) == 669'173'061'120);
static_assert(without_ends(presets::deepseek_v2) == 234'692'858'880);
static_assert(without_ends(presets::deepseek_v2_lite) == 15'287'053'824);
static_assert(without_ends(presets::moonlight) == 15'289'021'568);
static_assert(activated_without_ends(presets::deepseek_v3) == 35'698'939'392);
static_assert(activated_without_ends(presets::deepseek_v2) == 20'327'224'320);
static_assert(activated_without_ends(presets::deepseek_v2_lite) == 2'241'719'808);
static_assert(activated_without_ends(presets::moonlight) == 2'243'687'552);

// Kimi K2: no exact count is published. Each figure was added up by hand from the shapes of
// spec 9.1. Its page says 1T and 32B: here 1.026T, and 31.69B or, with the embedding, 32.86B.
static_assert(plan::attention_parameters(presets::kimi_k2) == 101'124'096);
static_assert(plan::block_parameters(presets::kimi_k2, 0) == 497'500'160);
static_assert(plan::block_parameters(presets::kimi_k2, 1) == 17'059'365'248);
static_assert(plan::main_parameters(presets::kimi_k2) == 1'026'408'232'448);
static_assert(plan::total_parameters(presets::kimi_k2) == 1'026'408'232'448);
static_assert(plan::activated_parameters(presets::kimi_k2) == 31'687'095'808);

// MTP as README_WEIGHTS counts it: 11.5B is its block alone, 2.4B that block as a token uses it,
// with embedding and head; eh_proj makes them 11.61B and 2.541B (spec 1.2).
static_assert(plan::block_parameters(presets::deepseek_v3, 61) == 11'507'286'272);
constexpr Index millions(Index n) { return (n + 500'000) / 1'000'000; }
static_assert(millions(plan::block_parameters(presets::deepseek_v3, 61, 8) +
                       both_ends(presets::deepseek_v3)) == 2439);
static_assert(millions(plan::mtp_parameters(presets::deepseek_v3, 8) +
                       both_ends(presets::deepseek_v3)) == 2541);

// In FP8 a release stores one byte for each projection's parameter, two for the others, four for a
// gate bias and for each of its 41,540,496 scales: 688,574,839,360 bytes in all (spec 1.2).
constexpr Index projection_parameters(const ModelConfig& c) {
  Index n = 0;
  for (Index l = 0; l < c.num_hidden_layers + c.num_nextn_predict_layers; ++l)
    n += plan::block_parameters(c, l) - plan::block_plain_parameters(c, l);
  return n;
}
constexpr Index release_bytes(const ModelConfig& c, Index elements, Index scales) {
  const Index biases = c.moe_layers() * c.n_routed_experts;
  return 2 * elements - projection_parameters(c) + 2 * biases + 4 * scales;
}
static_assert(release_bytes(presets::deepseek_v3, 684'489'845'504, 41'540'496) == 688'574'839'360);

// Spec 1.3.
static_assert(plan::main_parameters(tiny_dense) == 128'384);
static_assert(plan::activated_parameters(tiny_dense) == 112'000);
static_assert(plan::main_parameters(tiny_moe) == 363'216);
static_assert(plan::activated_parameters(tiny_moe) == 182'992);
static_assert(plan::mtp_parameters(tiny_moe) == 132'512);
static_assert(plan::main_parameters(tiny_fp8) == 2'035'464);
static_assert(plan::activated_parameters(tiny_fp8) == 1'183'496);
static_assert(plan::mtp_parameters(tiny_fp8) == 1'183'240);
static_assert(plan::main_parameters(small_train) == 104'261'344);
static_assert(plan::activated_parameters(small_train) == 25'093'856);
static_assert(plan::mtp_parameters(small_train) == 14'387'872);

}  // namespace

TEST_CASE("parameters are counted as spec 1.2 and 1.3 print them") {
  // Everything above is checked by the compiler; here, once, at run time.
  ModelConfig v3 = presets::deepseek_v3;
  CHECK(plan::main_parameters(v3) == 671'026'419'200);
}
