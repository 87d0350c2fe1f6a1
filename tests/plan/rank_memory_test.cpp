#include <dsv3/plan/rank_memory.hpp>

#include <doctest/doctest.h>

#include <string>

#include "tiny_configs.hpp"

using namespace dsv3;
using plan::ExpertInputs;
using plan::Layout;
using plan::PipelineSchedule;

namespace {

constexpr ModelConfig v3 = presets::deepseek_v3;

// Spec 10.4, of one token in a block with experts.
constexpr double saved(Keep keep, ExpertInputs inputs) {
  return plan::saved_bytes_per_token<Bf16>(v3, 3, keep, inputs);
}
static_assert(saved(Keep::all, ExpertInputs::gathered) == 140'928);
static_assert(saved(Keep::all, ExpertInputs::kept) == 140'928 + 114'688);
static_assert(saved(Keep::nothing, ExpertInputs::kept) == 0);
static_assert(saved(Keep::inputs, ExpertInputs::kept) == 2 * 7168 + 4 * 8);
// With FP8's recipe by hand: residuals and latents 32,896; attention 128 heads of 128 at 1.5 bytes
// and a scale, and 4: 25,600; 2 * 9 * 2048 codes and 288 scales: 38,016; logits of the gate 1024.
// The dispatched inputs are 8 * 7168 codes and 448 scales.
static_assert(plan::saved_bytes_per_token<Fp8>(v3, 3, Keep::all, ExpertInputs::gathered) == 97'536);
static_assert(plan::saved_bytes_per_token<Fp8>(v3, 3, Keep::all, ExpertInputs::kept) ==
              97'536 + 59'136);
// A dense block has neither gate nor experts, but 2 * 18432 inputs of SwiGLU.
static_assert(plan::saved_bytes_per_token<Bf16>(v3, 0, Keep::all, ExpertInputs::kept) ==
              140'928 - 73'728 - 1024 + 2 * 2 * 18432);
static_assert(plan::saved_bytes_per_token<Fp32>(v3, 0, Keep::inputs, ExpertInputs::kept) ==
              4 * 7168);

// Spec 10.1: DeepSeek-V3's own layout: 4 routed experts a GPU, 32 a node, 120 micro-batches.
constexpr Layout own;
static_assert(own.gpus == own.pp * own.dp && own.expert_nodes() == 8);
static_assert(own.micro_batches() == 120 && own.tokens_of_step() == 62'914'560);
static_assert(plan::block_rank_parameters(v3, 3, own.ep).experts == 4 * 44'040'192);

constexpr Layout one_way(Index pp, Index dp, Index ep) {
  Layout o;
  o.pp = pp, o.dp = dp, o.ep = ep, o.gpus = pp * dp;
  o.schedule = PipelineSchedule::one_f_one_b;
  o.batch = 4 * dp, o.sequence = 64;
  return o;
}

// Of all GPUs together, each parameter once; MTP's copy of the embedding beside where it is needed.
constexpr Index parameters_of_all(const ModelConfig& c, const Layout& o) {
  Index n = 0;
  for (Index s = 0; s < o.pp; ++s) {
    const plan::RankParameters p = plan::stage_parameters(c, o, s);
    n += p.plain + p.coded + p.experts * o.ep;
  }
  return n;
}
static_assert(parameters_of_all(v3, own) == plan::total_parameters(v3));
static_assert(parameters_of_all(v3, one_way(1, 1, 1)) == plan::total_parameters(v3));
static_assert(parameters_of_all(v3, one_way(5, 64, 32)) ==
              plan::total_parameters(v3) + plan::embedding_parameters(v3));
static_assert(parameters_of_all(presets::kimi_k2, one_way(7, 64, 64)) ==
              plan::total_parameters(presets::kimi_k2));

}  // namespace

TEST_CASE("one GPU holds what spec 10.4 counts for each parameter") {
  // One GPU without experts: 128,384 parameters (spec 1.3), one pass of 64 tokens, two blocks.
  Layout o = one_way(1, 1, 1);
  const double n = 128'384;
  const auto fp32 = plan::rank_memory<Fp32>(tiny_dense, o, 0, Keep::inputs);
  CHECK(fp32.masters == 4 * n);
  CHECK(fp32.gradients == 4 * n);
  CHECK(fp32.moments == 8 * n);
  CHECK(fp32.copies == 4 * n);
  CHECK(fp32.activations == 64 * 2 * 64 * 4);
  CHECK(fp32.total() == 20 * n + 64 * 2 * 64 * 4);
  const auto fp8 = plan::rank_memory<Fp8>(tiny_dense, o, 0, Keep::inputs);
  CHECK(fp8.masters == 4 * n);
  CHECK(fp8.moments == 4 * n);
  // Two bytes for embedding, head and norms; one, and a scale for each 128 x 128, else.
  const double plain = 2 * 256 * 64 + 64 + 2 * (2 * 64 + 32);
  CHECK(fp8.copies == 2 * plain + (n - plain) * (1 + 4 / 16384.0));
}

TEST_CASE("ZeRO-1 cuts masters and moments, and nothing else, over the GPUs that hold the same") {
  const auto c = tiny_moe;
  for (const Index ep : {1, 2, 4}) {
    CAPTURE(ep);
    const Layout o = one_way(1, 4, ep);
    const plan::RankParameters p = plan::stage_parameters(c, o, 0);
    const auto m = plan::rank_memory<Bf16>(c, o, 0, Keep::all);
    // All four GPUs together hold each master once, each gradient four times, or four by ep.
    CHECK(4 * m.masters == 4.0 * static_cast<double>(plan::total_parameters(c)));
    CHECK(m.moments == 2 * m.masters);
    CHECK(m.gradients == 4.0 * static_cast<double>(p.total()));
    CHECK(p.experts * ep == 2 * 16 * plan::expert_parameters(c));
  }
}

TEST_CASE("DualPipe's rank holds two stages, and PP + 1 micro-batches") {
  const Layout two_ways;
  Layout one = two_ways;
  one.schedule = PipelineSchedule::one_f_one_b;
  const auto memory = [&](const Layout& o, Index rank) {
    return plan::rank_memory<Fp8>(v3, o, rank, Keep::all);
  };
  for (const Index rank : {1, 7}) {  // stages without embedding and head
    const auto near = memory(one, rank), far = memory(one, 15 - rank),
               both = memory(two_ways, rank);
    CHECK(both.gradients == near.gradients + far.gradients);
    CHECK(both.activations == near.activations + far.activations);
    CHECK(memory(two_ways, 15 - rank).total() == both.total());
  }
  // Stages 1 and 14 have 4 blocks with experts each: 17 micro-batches of 4096 tokens in all.
  CHECK(memory(two_ways, 1).activations == 17.0 * 4096 * 4 * 97'536);
  // The last stage alone: 4 blocks, MTP's, and the two hidden states of 7168 that it begins with.
  CHECK(memory(one, 15).activations == 4096.0 * (5 * 97'536 + 2 * 2 * 7168));
  // An H800 has 80 GB: the published layout fits.
  const Index fullest = plan::fullest_rank<Fp8>(v3, two_ways, Keep::all);
  CHECK(memory(two_ways, fullest).total() < 80e9);
  for (Index r = 0; r < 16; ++r)
    CHECK(memory(two_ways, r).total() <= memory(two_ways, fullest).total());
}

TEST_CASE("a layout that cannot be is refused with both values") {
  const auto refuse = [](auto change, const char* sentence, ModelConfig c = v3) {
    Layout o;
    change(o);
    CHECK_THROWS_WITH_AS(plan::validate(o, c), sentence, std::invalid_argument);
  };
  CHECK_NOTHROW(plan::validate(own, v3));
  refuse([](Layout& o) { o.pp = 15; }, "Layout: gpus (2048) must equal pp * dp (1920)");
  refuse([](Layout& o) { o.ep = 0; }, "Layout: ep (0) must be at least (1)");
  refuse([](Layout& o) { o.batch = 1 << 25; },
         "Layout: batch (33554432) must be at most (16777216)");
  refuse([](Layout& o) { o.ep = 48; }, "Layout: ep (48) must divide dp (128)");
  refuse([](Layout& o) { o.gpus = 16 * 96, o.dp = 96, o.ep = 96; },
         "Layout: ep (96) must divide n_routed_experts (256)");
  refuse([](Layout& o) { o.ep = 1, o.pp = 64, o.gpus = 64 * 128; },
         "Layout: pp (64) must be at most num_hidden_layers (61)");
  refuse([](Layout& o) { o.ep = 2; },
         "Layout: ep (2) must be 1, because there are no experts: n_routed_experts (1)",
         [] {
           auto c = tiny_dense;
           c.num_hidden_layers = c.first_k_dense_replace = 16;
           return c;
         }());
  refuse([](Layout& o) { o.gpus_per_node = 24; },
         "Layout: ep (64) above gpus_per_node must be a multiple of it (24)");
  refuse([](Layout& o) { o.dp = 40, o.gpus = 640, o.ep = 40; },
         "Layout: nodes of ep (5) must divide n_group or be a multiple of it (8)",
         presets::deepseek_v2);
  refuse([](Layout& o) { o.sequence = 1 << 18; },
         "Layout: sequence (262144) must be at most max_position_embeddings (163840)");
  refuse([](Layout& o) { o.micro_batch = 8192; },
         "Layout: micro_batch * sequence (33554432) must be at most (16777216)");
  refuse([](Layout& o) { o.batch = 15361; },
         "Layout: batch (15361) must be a multiple of dp * micro_batch (128)");
  refuse([](Layout& o) { o.pp = 1, o.gpus = 128; },
         "Layout: pp (1) must be even for dual_pipe: a multiple of (2)");
  refuse([](Layout& o) { o.batch = 33 * 128; },
         "Layout: micro-batches of a step (33) must be even for dual_pipe: a multiple of (2)");
  refuse([](Layout& o) { o.batch = 30 * 128; },
         "Layout: micro-batches of a step (30) must be at least 2 * pp for dual_pipe (32)");
  refuse(
      [](Layout& o) { o.schedule = PipelineSchedule::dual_pipe_v; },
      "Layout: schedule dual_pipe_v with pp (16) is not planned in memory: use dual_pipe with pp "
      "(16)");
  refuse([](Layout&) {}, "ModelConfig: n_group (7) must divide n_routed_experts (256)",
         [] {
           auto c = v3;
           c.n_group = 7;
           return c;
         }());
}
