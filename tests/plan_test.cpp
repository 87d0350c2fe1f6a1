#include <dsv3/plan.hpp>

#include <doctest/doctest.h>

#include <dsv3/model.hpp>

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
// Spec 4.5: the latent cache in bf16.
static_assert(plan::cache_bytes_per_token(presets::deepseek_v3) == 70'272);
static_assert(plan::cache_bytes_per_token(presets::deepseek_v2) == 69'120);
static_assert(plan::cache_bytes_per_token(presets::deepseek_v2_lite) == 31'104);
static_assert(plan::cache_bytes_per_token(presets::moonlight) == 31'104);
// With codes: 656 bytes a token and layer, 40,016 a token.
static_assert(CacheElement<e4m3>::bytes(512, 64) == 656);
static_assert(plan::cache_bytes_per_token<e4m3>(presets::deepseek_v3) == 40'016);
static_assert(plan::cache_bytes_per_token<float>(presets::deepseek_v3) == 140'544);
// A whole block is 64 entries: nothing is lost to alignment at these sizes.
static_assert(plan::cache_bytes<bf16>(presets::deepseek_v3, {10, 64, true}) ==
              640 * (70'272 + 1'152));

// Spec 1.3: tiny configs.
constexpr ModelConfig tiny(Index d, Index inter, Index moe_inter, Index layers, Index dense,
                           Index heads, Index r_q, Index r_kv, Index d_n, Index d_r, Index d_v,
                           Index experts, Index k, Index groups, Index kept, Index vocab) {
  ModelConfig c;
  c.hidden_size = d;
  c.intermediate_size = inter;
  c.moe_intermediate_size = moe_inter;
  c.num_hidden_layers = layers;
  c.first_k_dense_replace = dense;
  c.num_attention_heads = c.num_key_value_heads = heads;
  c.q_lora_rank = r_q;
  c.kv_lora_rank = r_kv;
  c.qk_nope_head_dim = d_n;
  c.qk_rope_head_dim = d_r;
  c.v_head_dim = d_v;
  c.n_routed_experts = experts;
  c.num_experts_per_tok = k;
  c.n_group = groups;
  c.topk_group = kept;
  c.vocab_size = vocab;
  return c;
}
constexpr auto tiny_dense = tiny(64, 160, 1, 2, 2, 4, 0, 32, 16, 8, 16, 1, 1, 1, 1, 256);
constexpr auto tiny_moe = tiny(64, 160, 32, 3, 1, 4, 48, 32, 16, 8, 16, 16, 4, 4, 2, 512);
constexpr auto tiny_fp8 = tiny(256, 384, 128, 2, 1, 2, 128, 128, 64, 32, 64, 8, 2, 1, 1, 1024);
constexpr auto small_train = tiny(512, 1408, 256, 8, 1, 8, 0, 128, 64, 32, 64, 32, 4, 4, 2, 4096);
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

// The reference backend, counting the bytes that it has given out.
struct CountingCpu : EigenCpu {
  Index live = 0;
};
void* allocate(CountingCpu& cpu, Index bytes) {
  cpu.live += bytes;
  return allocate(static_cast<HostMemory&>(cpu), bytes);
}
void deallocate(CountingCpu& cpu, void* memory, Index bytes) noexcept {
  cpu.live -= bytes;
  deallocate(static_cast<HostMemory&>(cpu), memory, bytes);
}

// Trains one step and compares the arena's peak, as counted before it and as measured, with the
// plan.
template <class P>
void check_plan(ModelConfig c, Index rows, Index length, bool recompute, int threads) {
  CAPTURE(P::name);
  CAPTURE(rows);
  CAPTURE(length);
  CAPTURE(recompute);
  Cpu backend(threads);
  Model<P, Cpu> model(backend, c, {.seed = 1});
  Trainer trainer(model, {.recompute = recompute});
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(rows * (length + 1)), 3);
  trainer.step(View<const std::int32_t, 2>(tokens.data(), {rows, length + 1}));
  const Index planned =
      plan::pass_bytes<P>(c, rows, length, recompute ? Keep::inputs : Keep::all, threads);
  CHECK(model.counted_bytes() == planned);
  CHECK(model.measured_bytes() == planned);
}

}  // namespace

TEST_CASE("planned memory equals counted memory equals the measured peak of the arena") {
  auto c = tiny_moe;
  for (const Index depth : {0, 1, 2})
    for (const bool recompute : {false, true}) {
      c.num_nextn_predict_layers = depth;
      check_plan<Fp32>(c, 2, 37, recompute, 1);
      check_plan<Bf16>(c, 3, 70, recompute, 2);
      check_plan<Fp8>(c, 3, 70, recompute, 2);
    }
  check_plan<Fp8>(tiny_fp8, 2, 67, false, 1);
  check_plan<Fp8>(tiny_fp8, 1, 300, true, 2);
  check_plan<Fp8>(tiny_dense, 1, 129, false, 3);
  check_plan<Fp32>(tiny_dense, 1, 129, false, 3);
  check_plan<Bf16>(tiny_dense, 1, 1, true, 2);
  c.n_shared_experts = 0;
  c.first_k_dense_replace = 0;
  check_plan<Fp32>(c, 1, 2, false, 2);  // depth 2 of two tokens: an empty level
}

TEST_CASE_TEMPLATE("weights and optimizer take what the plan says", P, Fp32, Bf16, Fp8) {
  CountingCpu backend;
  Model<P, CountingCpu> model(backend, tiny_moe);
  const Index weights = plan::weight_bytes<P>(tiny_moe);
  CHECK(backend.live == weights);
  Trainer trainer(model);
  const Index counters = backend.live - weights - plan::optimizer_bytes<P>(tiny_moe);
  CHECK(counters >= 2 * 16 * 8);  // the load of two MoE layers of 16 experts
  CHECK(counters < plan::optimizer_bytes<P>(tiny_moe) / 100);
}

TEST_CASE("a trained token of DeepSeek-V3 in rows of 4096 costs 250.46 GFLOP") {
  // Spec 10.4 gives two decimals.
  CHECK(std::abs(plan::training_flops_per_token(presets::deepseek_v3, 4096) * 1e-9 - 250.46) <
        0.005);
}
