#include <dsv3/plan/pass.hpp>

#include <doctest/doctest.h>

#include <dsv3/model.hpp>
#include <dsv3/plan/training_memory.hpp>

#include "tiny_configs.hpp"

using namespace dsv3;

namespace {

// The tuned backend, counting the bytes that it has given out beside its own workspace.
struct CountingCpu : Cpu {
  using Cpu::Cpu;
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

// Trains one step and compares the arena's peak, as counted before it and as measured, and all that
// is then taken from the backend, with the plan.
template <class P>
void check_plan(ModelConfig c, Index rows, Index length, bool recompute, int threads) {
  CAPTURE(P::name);
  CAPTURE(rows);
  CAPTURE(length);
  CAPTURE(recompute);
  CountingCpu backend(threads);
  Model<P, CountingCpu> model(backend, c, {.seed = 1});
  const Keep keep = recompute ? Keep::inputs : Keep::all;
  const auto planned = plan::training_memory<P>(c, rows, length, keep, threads);
  CHECK(backend.live == planned.weights);
  Trainer trainer(model, {.recompute = recompute});
  CHECK(backend.live == planned.total() - planned.pass);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(rows * (length + 1)), 3);
  trainer.step(View<const std::int32_t, 2>(tokens.data(), {rows, length + 1}));
  CHECK(planned.pass == plan::pass_bytes<P>(c, rows, length, keep, threads));
  CHECK(model.counted_bytes() == planned.pass);
  CHECK(model.measured_bytes() == planned.pass);
  CHECK(backend.live == planned.total());
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
  c.seq_aux = false;
  check_plan<Fp32>(c, 40, 3, false, 2);  // many short sequences: one span instead of 40
  c.seq_aux = true;
  check_plan<Fp8>(tiny_fp8, 2, 67, false, 1);
  check_plan<Fp8>(tiny_fp8, 1, 300, true, 2);
  check_plan<Fp8>(tiny_dense, 1, 129, false, 3);
  check_plan<Fp32>(tiny_dense, 1, 129, false, 3);
  check_plan<Bf16>(tiny_dense, 1, 1, true, 2);
  c.n_shared_experts = 0;
  c.first_k_dense_replace = 0;
  check_plan<Fp32>(c, 1, 2, false, 2);  // depth 2 of two tokens: an empty level
}

TEST_CASE("gradients and moments are what the optimizer takes") {
  const auto m = plan::training_memory<Fp8>(tiny_moe, 1, 8, Keep::all, 1);
  CHECK(m.gradients + m.moments == plan::optimizer_bytes<Fp8>(tiny_moe));
  CHECK(m.moments == 2 * plan::tensor_bytes<Fp8, bf16>(tiny_moe));
  CHECK(m.counters >= 2 * 16 * 8);  // the load of two MoE layers of 16 experts
}
