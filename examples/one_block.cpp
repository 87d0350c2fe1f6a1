// One block of DeepSeek-V3 in somebody else's program: multi-head latent attention, then the
// mixture of experts, each alone, on the caller's own Eigen matrices, with gradients.
//
// dsv3 allocates nothing here: weights, gradients, inputs and outputs are Eigen's, and working
// memory comes from one block whose size a dry run has counted.
#include <cstdio>
#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen_view.hpp>
#include <dsv3/core/buffer.hpp>
#include <dsv3/core/dry_run.hpp>
#include <dsv3/nn/mla.hpp>
#include <dsv3/nn/moe.hpp>

namespace {

using dsv3::Index;
using dsv3::vector_view_of;
using dsv3::View;
using dsv3::view_of;
using P = dsv3::Fp64;  // or Fp32, or Bf16 with matrices of dsv3::bf16
using Matrix = dsv3::RowMajor<double>;

// Two sequences of five tokens; a model of width 24.
constexpr Index length = 5, sequences = 2, tokens = sequences * length;
constexpr dsv3::ModelConfig config = [] {
  dsv3::ModelConfig c;
  c.hidden_size = 24;
  c.num_attention_heads = c.num_key_value_heads = 2;
  c.q_lora_rank = 12;
  c.kv_lora_rank = 8;
  c.qk_nope_head_dim = 6;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 6;
  c.moe_intermediate_size = 10;
  c.n_routed_experts = 6;
  c.num_experts_per_tok = 2;
  c.n_group = c.topk_group = 1;
  return c;
}();

// Which tokens belong together: token t sees its sequence from the beginning up to itself.
struct Layout {
  std::vector<std::int32_t> position, begin, end, first, sequence;

  Layout() {
    for (Index t = 0; t < tokens; ++t) {
      const auto s = static_cast<std::int32_t>(t / length), n = static_cast<std::int32_t>(length);
      position.push_back(static_cast<std::int32_t>(t) - s * n);
      begin.push_back(s * n);
      end.push_back((s + 1) * n);
      sequence.push_back(s);
    }
    for (Index s = 0; s <= sequences; ++s) first.push_back(static_cast<std::int32_t>(s * length));
  }
  dsv3::Sequences view() const {
    const auto list = [](const std::vector<std::int32_t>& v) {
      return View<const std::int32_t, 1>(v.data(), {static_cast<Index>(v.size())});
    };
    return {list(position), list(begin), list(end), list(first), list(sequence)};
  }
};

// The attention's weights, or their gradients, as the caller keeps them: [out, in], row-major.
struct Attention {
  Matrix q_a, q_norm, q_b, kv_a, kv_norm, kv_b, o;

  Attention() {
    const Index heads = config.num_attention_heads;
    q_a.setZero(config.q_lora_rank, config.hidden_size);
    q_norm.setZero(1, config.q_lora_rank);
    q_b.setZero(heads * config.qk_head_dim(), config.q_lora_rank);
    kv_a.setZero(config.kv_lora_rank + config.qk_rope_head_dim, config.hidden_size);
    kv_norm.setZero(1, config.kv_lora_rank);
    kv_b.setZero(heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank);
    o.setZero(config.hidden_size, heads * config.v_head_dim);
  }
  template <class U>
  dsv3::Mla<P>::Tensors<U> views() {
    return {{},
            view_of(q_a),
            vector_view_of(q_norm),
            view_of(q_b),
            view_of(kv_a),
            vector_view_of(kv_norm),
            view_of(kv_b),
            view_of(o)};
  }
  std::vector<Matrix*> all() { return {&q_a, &q_norm, &q_b, &kv_a, &kv_norm, &kv_b, &o}; }
};

// The experts' weights: those of all routed experts one below the other.
struct Experts {
  Matrix gate, gate_proj, up_proj, down_proj, shared_gate, shared_up, shared_down;

  Experts() {
    const Index E = config.n_routed_experts, I = config.moe_intermediate_size;
    const Index H = config.hidden_size, shared = config.n_shared_experts * I;
    gate.setZero(E, H);
    gate_proj.setZero(E * I, H);
    up_proj.setZero(E * I, H);
    down_proj.setZero(E * H, I);
    shared_gate.setZero(shared, H);
    shared_up.setZero(shared, H);
    shared_down.setZero(H, shared);
  }
  template <class U>
  dsv3::Moe<P>::Tensors<U> views() {
    const Index E = config.n_routed_experts;
    const auto stacked = [&](Matrix& m) {
      return View<U, 3>(m.data(), {E, m.rows() / E, m.cols()});
    };
    return {view_of(gate),
            stacked(gate_proj),
            stacked(up_proj),
            stacked(down_proj),
            {view_of(shared_gate), view_of(shared_up), view_of(shared_down)}};
  }
  std::vector<Matrix*> all() {
    return {&gate, &gate_proj, &up_proj, &down_proj, &shared_gate, &shared_up, &shared_down};
  }
};

// The loss is sum(y * dy) for a fixed dy. Compares its slope along the gradient, by central
// differences, with the gradient's squared norm, which it must be.
void compare(const char* name, std::vector<Matrix*> weights, std::vector<Matrix*> gradients,
             auto&& loss) {
  double squared = 0;
  for (const Matrix* g : gradients) squared += g->squaredNorm();
  const double step = 1e-6 / std::sqrt(squared);
  const auto move = [&](double by) {
    for (std::size_t i = 0; i < weights.size(); ++i) *weights[i] += by * *gradients[i];
  };
  move(step);
  const double above = loss();
  move(-2 * step);
  const double below = loss();
  move(step);
  const double slope = (above - below) / (2 * step);
  std::printf("%s: |gradient|^2 = %.9g, by differences %.9g\n", name, squared, slope);
  if (std::abs(slope - squared) > 1e-6 * squared)
    throw std::runtime_error("the gradient is not the slope of the loss");
}

void attention_alone(dsv3::Cpu& backend, const Matrix& x, const Matrix& dy) {
  Attention weights, gradients;  // gradients start at zero: backward adds to them
  for (Matrix* m : weights.all()) m->setRandom();
  weights.q_norm.setOnes();
  weights.kv_norm.setOnes();
  Matrix y(tokens, config.hidden_size), dx(tokens, config.hidden_size);
  const Layout layout;
  const auto cos_sin = dsv3::rope_table<double>(config, length);
  const View<const double, 3> table(cos_sin.data(), {length, 2, config.qk_rope_head_dim / 2});
  const dsv3::Mla<P> mla(config);

  // Runs on any backend and arena: first dry, to count bytes, then for real.
  const auto forward_backward = [&](auto& on, dsv3::Arena& arena, bool backward) {
    auto saved = mla.make_saved(arena, tokens);
    const auto params = weights.views<const double>();
    mla.forward(on, params, view_of(x), layout.view(), table, view_of(y), saved, arena);
    if (backward)
      mla.backward(on, params, view_of(x), saved, layout.view(), table, view_of(dy), view_of(dx),
                   gradients.views<double>(), arena);
  };
  dsv3::DryRun<dsv3::Cpu> dry{backend};
  dsv3::Arena counting;
  forward_backward(dry, counting, true);
  const dsv3::Buffer<dsv3::Cpu> memory(backend, counting.peak());
  const auto run = [&](bool backward) {
    dsv3::Arena arena(memory.data(), memory.bytes());
    forward_backward(backend, arena, backward);
    return y.cwiseProduct(dy).sum();
  };
  run(true);
  std::printf("MLA works in %td bytes; |dx| = %.6f\n", memory.bytes(), dx.norm());
  compare("MLA", weights.all(), gradients.all(), [&] { return run(false); });
}

void experts_alone(dsv3::Cpu& backend, const Matrix& x, const Matrix& dy) {
  Experts weights, gradients;
  for (Matrix* m : weights.all()) m->setRandom();
  Matrix bias = Matrix::Zero(1, config.n_routed_experts);  // chooses experts, never weighs them
  Matrix y(tokens, config.hidden_size), dx(tokens, config.hidden_size);
  const Layout layout;
  const dsv3::Moe<P> moe(config);

  const auto forward_backward = [&](auto& on, dsv3::Arena& arena, bool backward) {
    auto saved = moe.make_saved(arena, tokens, sequences);
    const auto params = weights.views<const double>();
    moe.forward(on, params, vector_view_of(bias), {}, view_of(x), layout.view(), 0, view_of(y),
                saved, arena);
    if (backward)
      moe.backward(on, params, view_of(x), saved, layout.view(), 0, view_of(dy), view_of(dx),
                   gradients.views<double>(), arena);
    return saved;
  };
  dsv3::DryRun<dsv3::Cpu> dry{backend};
  dsv3::Arena counting;
  forward_backward(dry, counting, true);
  const dsv3::Buffer<dsv3::Cpu> memory(backend, counting.peak());
  const auto run = [&](bool backward) {
    dsv3::Arena arena(memory.data(), memory.bytes());
    const auto saved = forward_backward(backend, arena, backward);
    if (backward) {
      std::printf("MoE works in %td bytes; tokens of each expert:", memory.bytes());
      for (Index e = 0; e < config.n_routed_experts; ++e)
        std::printf(" %td", saved.routing.offsets(e + 1) - saved.routing.offsets(e));
      std::printf("\n");
    }
    return y.cwiseProduct(dy).sum();
  };
  run(true);
  compare("MoE", weights.all(), gradients.all(), [&] { return run(false); });
}

}  // namespace

int main() {
  dsv3::Cpu backend;
  const Matrix x = Matrix::Random(tokens, config.hidden_size);
  const Matrix dy = Matrix::Random(tokens, config.hidden_size);
  attention_alone(backend, x, dy);
  experts_alone(backend, x, dy);
}
