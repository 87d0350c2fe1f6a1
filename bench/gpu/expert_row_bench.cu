// What lies between the products of experts, for T = 4096 and eight of 256 experts: gate, sort,
// dispatch, SwiGLU with quantising, combination.
#include <dsv3/nn/moe.hpp>

#include "data.cuh"

namespace gpu_bench {
namespace {

constexpr Index tokens = 4096, hidden = 7168, width = 2048, experts = 256, chosen = 8;
constexpr Index pairs = tokens * chosen;
using Fp8Projection = dsv3::Projection<dsv3::Fp8>;

struct Routed {
  View<std::int32_t, 2> topk_idx, slot_of_pair;
  View<std::int32_t, 1> pair_of_slot;
  View<Index, 1> offsets;

  explicit Routed(Run& run)
      : topk_idx(run.take<std::int32_t>({tokens, chosen})),
        slot_of_pair(run.take<std::int32_t>({tokens, chosen})),
        pair_of_slot(run.take<std::int32_t>({pairs})),
        offsets(run.take<Index>({experts + 1})) {}

  void sort(dsv3::Cuda& cuda) const {
    sort_by_expert(cuda, as_const(topk_idx), offsets, pair_of_slot, slot_of_pair);
  }
  // One expert of each 32 in a row: as a gate writes them, ascending.
  void route_randomly(Run& run) const {
    std::vector<std::int32_t> host(static_cast<std::size_t>(pairs));
    for (std::size_t i = 0; i < host.size(); ++i)
      host[i] = static_cast<std::int32_t>(i % 8 * 32 + mixed(5, i) % 32);
    copy_to_backend(run.cuda, topk_idx.data, host.data(), pairs * Index{sizeof(std::int32_t)});
    sort(run.cuda);
    synchronize(run.cuda);
  }
};

void gate_case(Run& run) {
  run.work(static_cast<double>(tokens), "tok/s");
  run.torch("gate 4096 256 8", 8);
  const dsv3::GateRule rule(dsv3::presets::deepseek_v3);
  const auto bias = random<float>(run, {experts}, 1, 0.01f);
  const auto logits = random<float>(run, {tokens, experts}, 2);
  const auto work = run.take<float>({tokens, experts + rule.n_group});
  const auto balance_idx = run.take<std::int32_t>({tokens, chosen});
  const auto weights = run.take<float>({tokens, chosen});
  const Routed routed(run);
  const auto gate = [&](Index) {
    // Scores replace the logits; the next call's logits are these scores, which are as good.
    for_each_row(
        run.cuda, tokens,
        dsv3::detail::GateForwardRow<float>{
            rule, as_const(bias), {}, logits, work, routed.topk_idx, balance_idx, weights});
    routed.sort(run.cuda);
  };
  gate(0);
  check_output(run, "weights", weights);
  run.measure(gate);
}

void dispatch_bf16(Run& run) {
  run.work(2.0 * 2 * static_cast<double>(pairs * hidden), "GB/s");
  run.against_copy(0.85);
  run.torch("index_select 4096 8 7168", 1);
  const auto x = random<bf16>(run, {tokens, hidden}, 1);
  const auto slots = run.take<bf16>({pairs, hidden});
  const Routed routed(run);
  routed.route_randomly(run);
  const auto dispatch = [&](Index) {
    for_each_row_fused(
        run.cuda, pairs,
        dsv3::detail::DispatchRow<bf16>{as_const(x), as_const(routed.pair_of_slot), chosen, slots});
  };
  dispatch(0);
  check_output(run, "slots", slots);
  run.measure(dispatch);
}

void dispatch_codes(Run& run) {
  run.work(2.0 * (1 + 4.0 / 128) * static_cast<double>(pairs * hidden), "GB/s");
  run.against_copy(0.85);
  const auto take = [](Index rows) {
    return [rows](dsv3::Arena& arena) { return Fp8Projection::take_rows(arena, rows, hidden); };
  };
  const auto x = run.arena_for(take(tokens)), slots = run.arena_for(take(pairs));
  randomize(run, x, 1, 1e-2f);
  const Routed routed(run);
  routed.route_randomly(run);
  const auto dispatch = [&](Index) {
    for_each_row_fused(run.cuda, pairs,
                       dsv3::detail::DispatchCodesRow<e4m3>{
                           as_const(x), as_const(routed.pair_of_slot), chosen, slots});
  };
  dispatch(0);
  check_output(run, "codes", slots.codes);
  run.measure(dispatch);
}

void combine_case(Run& run) {
  run.work(2.0 * static_cast<double>(pairs * hidden + 2 * tokens * hidden), "GB/s");
  run.against_copy(0.85);
  run.torch("index_add 4096 8 7168", 1);
  const auto slots = random<bf16>(run, {pairs, hidden}, 1);
  const auto shared = random<bf16>(run, {tokens, hidden}, 2);
  const auto weights = random<float>(run, {tokens, chosen}, 3, 0.1f, 0.3f);
  const auto y = run.take<bf16>({tokens, hidden});
  const Routed routed(run);
  routed.route_randomly(run);
  const auto combine = [&](Index) {
    for_each_row_fused(
        run.cuda, tokens,
        dsv3::detail::CombineRow<bf16>{as_const(slots), as_const(routed.slot_of_pair),
                                       as_const(weights), as_const(shared), y});
  };
  combine(0);
  check_output(run, "y", y);
  run.measure(combine);
}

// With `kept`, the codes of a and b that backward reads are written too.
void swiglu_case(Run& run, bool kept) {
  const auto n = static_cast<double>(pairs * width);
  run.work(n * (4 + (kept ? 3 : 1) * (1 + 4.0 / 128)), "GB/s");
  run.against_copy(0.85);
  if (!kept) run.torch("swiglu_quantize 32768 2048", 1.3);
  const auto a = random<bf16>(run, {pairs, width}, 1), b = random<bf16>(run, {pairs, width}, 2);
  const auto take = [](dsv3::Arena& arena) {
    return Fp8Projection::take_rows(arena, pairs, width);
  };
  Quantized<e4m3> saved_a, saved_b;
  if (kept) {
    saved_a = run.arena_for(take);
    saved_b = run.arena_for(take);
  }
  const auto h = run.arena_for(take);
  const auto swiglu = run.planned([&](auto& backend, dsv3::Arena& scratch) {
    Fp8Projection{}.swiglu(backend, {}, as_const(a), as_const(b), saved_a, saved_b, h, scratch);
  });
  swiglu();
  check_output(run, "codes", h.codes);
  run.measure([&](Index) { swiglu(); });
}

void swiglu_bf16(Run& run) {
  run.work(6.0 * static_cast<double>(pairs * width), "GB/s");
  run.against_copy(0.85);
  run.torch("swiglu 32768 2048", 1);
  const auto a = random<bf16>(run, {pairs, width}, 1), b = random<bf16>(run, {pairs, width}, 2);
  const auto h = run.take<bf16>({pairs, width});
  const auto swiglu = [&](Index) { dsv3::detail::swiglu_forward<bf16>(run.cuda, a, b, h); };
  swiglu(0);
  check_output(run, "h", h);
  run.measure(swiglu);
}

}  // namespace

void expert_row_cases(Cases& cases) {
  cases.push_back({"gate + sort 4096 x 256, 8 chosen", gate_case});
  cases.push_back({"dispatch bf16 4096 x 8 x 7168", dispatch_bf16});
  cases.push_back({"dispatch codes 4096 x 8 x 7168", dispatch_codes});
  cases.push_back({"combine bf16 4096 x 8 x 7168", combine_case});
  cases.push_back({"SwiGLU 32768 x 2048, bf16", swiglu_bf16});
  cases.push_back({"SwiGLU + quantise 32768 x 2048", [](Run& run) { swiglu_case(run, false); }});
  cases.push_back(
      {"SwiGLU + quantise three, 32768 x 2048", [](Run& run) { swiglu_case(run, true); }});
}

}  // namespace gpu_bench
