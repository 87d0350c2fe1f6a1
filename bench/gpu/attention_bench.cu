// Attention of training at DeepSeek-V3's sizes: 128 heads, keys of 192, values of 128, causal.
#include <dsv3/nn/attention.hpp>

#include "data.cuh"

namespace gpu_bench {
namespace {

constexpr Index heads = 128, d_n = 128, d_r = 64, d_v = 128;

struct Inputs {
  View<bf16, 3> q, kv, o;
  View<bf16, 2> k_rope;
  View<float, 2> lse;
  dsv3::Sequences sequences;
  dsv3::Attention<bf16> attention{0.07216878364870322};  // 1 / sqrt(192)

  Inputs(Run& run, Index tokens)
      : q(random<bf16>(run, {tokens, heads, d_n + d_r}, 1)),
        kv(random<bf16>(run, {tokens, heads, d_n + d_v}, 2)),
        o(run.take<bf16>({tokens, heads, d_v})),
        k_rope(random<bf16>(run, {tokens, d_r}, 3)),
        lse(run.take<float>({tokens, heads})) {
    const auto n = static_cast<std::size_t>(tokens);
    std::vector<std::int32_t> position(n), begin(n, 0), end(n, static_cast<std::int32_t>(tokens));
    for (std::size_t t = 0; t < n; ++t) position[t] = static_cast<std::int32_t>(t);
    sequences.position = run.upload(position);
    sequences.begin = sequences.sequence = run.upload(begin);
    sequences.end = run.upload(end);
    sequences.first = run.upload(std::vector<std::int32_t>{0, static_cast<std::int32_t>(tokens)});
  }

  auto forward(Run& run) const {
    return run.planned([this](auto& backend, dsv3::Arena& scratch) {
      attention.forward(backend, as_const(q), as_const(kv), as_const(k_rope), sequences, o, lse,
                        scratch);
    });
  }
};

// Half of the pairs of a square, each of so many multiplications.
double flop(Index tokens, Index width) {
  return static_cast<double>(heads) * static_cast<double>(tokens) * static_cast<double>(tokens) *
         static_cast<double>(width);
}

void forward_case(Run& run, Index tokens) {
  run.work(flop(tokens, d_n + d_r + d_v), "TFLOP/s");
  run.torch("sdpa " + std::to_string(tokens), 0.6);
  const Inputs in(run, tokens);
  const auto forward = in.forward(run);
  forward();
  check_output(run, "o", in.o);
  check_output(run, "lse", in.lse);
  run.measure([&](Index) { forward(); });
}

void backward_case(Run& run, Index tokens) {
  // Five products: scores again, dP, dV, dQ, dK.
  run.work(flop(tokens, 3 * (d_n + d_r) + 2 * d_v), "TFLOP/s");
  run.torch("sdpa_backward " + std::to_string(tokens), 0.6);
  const Inputs in(run, tokens);
  in.forward(run)();
  const auto d_o = random<bf16>(run, {tokens, heads, d_v}, 4);
  const auto dq = run.take<bf16>({tokens, heads, d_n + d_r});
  const auto dkv = run.take<bf16>({tokens, heads, d_n + d_v});
  const auto dk_rope = run.take<bf16>({tokens, d_r});
  const auto backward = run.planned([&](auto& backend, dsv3::Arena& scratch) {
    in.attention.backward(backend, as_const(in.q), as_const(in.kv), as_const(in.k_rope),
                          in.sequences, as_const(in.o), as_const(in.lse), as_const(d_o), dq, dkv,
                          dk_rope, scratch);
  });
  backward();
  check_output(run, "dq", dq);
  check_output(run, "dkv", dkv);
  check_output(run, "dk_rope", dk_rope);
  run.measure([&](Index) { backward(); });
}

}  // namespace

void attention_cases(Cases& cases) {
  for (const Index tokens : {Index{4096}, Index{2048}}) {
    const auto name = std::to_string(tokens) + " x 128 heads, 192/128";
    cases.push_back({"attention forward " + name, [=](Run& run) { forward_case(run, tokens); }});
    cases.push_back({"attention backward " + name, [=](Run& run) { backward_case(run, tokens); }});
  }
}

}  // namespace gpu_bench
