#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/mla.hpp>
#include <stdexcept>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

ModelConfig mla_config(Index q_lora_rank) {
  ModelConfig c;
  c.hidden_size = 7;
  c.num_attention_heads = c.num_key_value_heads = 3;
  c.q_lora_rank = q_lora_rank;
  c.kv_lora_rank = 6;
  c.qk_nope_head_dim = 5;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 3;
  c.latent_norm_eps = 1e-3;
  return c;
}

template <class P>
struct Case {
  using T = typename P::activation;
  ModelConfig config;
  Memory memory;
  Lengths lengths;
  Mla<P> mla;
  typename Mla<P>::template Tensors<T> params;
  typename Mla<P>::template Tensors<const T> constants;
  typename Mla<P>::template Tensors<typename P::master> grads;
  typename Mla<P>::Saved saved;
  View<T, 2> x, y, dy, dx;
  std::vector<typename P::accumulator> table;

  Case(const ModelConfig& c, std::initializer_list<std::int32_t> each)
      : config(c), lengths(each), mla(c), table(rope_table<typename P::accumulator>(c, 16)) {
    params = Mla<P>::template make_tensors<T>(c, memory.arena);
    grads = Mla<P>::template make_tensors<typename P::master>(c, memory.arena);
    Mla<P>::for_each_tensor(
        [&](const char*, auto weight, auto gradient) {
          fill(weight, ++memory.stream);
          fill(gradient, 0, 0);
        },
        params, grads);
    constants = {params.q_proj,
                 params.q_a_proj,
                 params.q_a_layernorm,
                 params.q_b_proj,
                 params.kv_a_proj_with_mqa,
                 params.kv_a_layernorm,
                 params.kv_b_proj,
                 params.o_proj};
    const Index tokens = lengths.view().tokens();
    x = memory.template random<T>({tokens, c.hidden_size});
    dy = memory.template random<T>({tokens, c.hidden_size});
    y = memory.template empty<T>({tokens, c.hidden_size});
    dx = memory.template empty<T>({tokens, c.hidden_size});
    saved = mla.make_saved(memory.arena, tokens);
  }

  View<const typename P::accumulator, 3> turns() const {
    return {table.data(), {16, 2, config.qk_rope_head_dim / 2}};
  }

  template <class Backend>
  void forward(Backend& backend) {
    mla.forward(backend, constants, x, lengths.view(), turns(), y, saved, memory.arena);
  }
  template <class Backend>
  void backward(Backend& backend) {
    mla.backward(backend, constants, x, saved, lengths.view(), turns(), dy, dx, grads,
                 memory.arena);
  }
};

}  // namespace

TEST_CASE("Mla::forward of one token is o_proj of its value: softmax of one score is 1") {
  EigenCpu backend;
  Case<Fp64> c(mla_config(0), {1});
  c.forward(backend);
  const ModelConfig& m = c.config;
  // latent, its norm, the value rows of kv_b_proj, o_proj, written down.
  std::vector<double> latent(static_cast<std::size_t>(m.kv_lora_rank));
  double mean_square = 0;
  for (Index r = 0; r < m.kv_lora_rank; ++r) {
    double& value = latent[static_cast<std::size_t>(r)];
    for (Index j = 0; j < 7; ++j) value += c.params.kv_a_proj_with_mqa(r, j) * c.x(0, j);
    mean_square += value * value / static_cast<double>(m.kv_lora_rank);
  }
  for (Index i = 0; i < 7; ++i) {
    double expected = 0;
    for (Index h = 0; h < 3; ++h)
      for (Index d = 0; d < m.v_head_dim; ++d) {
        double value = 0;
        for (Index r = 0; r < m.kv_lora_rank; ++r)
          value += c.params.kv_b_proj(h * 8 + 5 + d, r) * latent[static_cast<std::size_t>(r)] /
                   std::sqrt(mean_square + 1e-3) * c.params.kv_a_layernorm(r);
        expected += c.params.o_proj(i, h * m.v_head_dim + d) * value;
      }
    CHECK(c.y(0, i) == doctest::Approx(expected).epsilon(1e-13));
  }
}

TEST_CASE("Mla depends on distances only: later positions give the same output") {
  EigenCpu backend;
  Case<Fp64> c(mla_config(5), {6});
  c.forward(backend);
  std::vector<double> before(c.y.data, c.y.data + c.y.size());
  for (std::int32_t& p : c.lengths.position) p += 9;
  c.forward(backend);
  for (Index i = 0; i < c.y.size(); ++i)  // angles up to 15 have rounding errors of 1e-15
    CHECK(std::abs(c.y.data[i] - before[static_cast<std::size_t>(i)]) < 1e-13);
}

TEST_CASE("Mla multiplies scores by the config's softmax scale, or by one given beside it") {
  ModelConfig c = mla_config(5);
  CHECK(Mla<Fp64>(c).scale == 1.0 / 3);  // 9^(-1/2)
  c.rope_scaling = presets::deepseek_yarn;
  CHECK(Mla<Fp64>(c).scale == doctest::Approx(1.8738542070926265 / 3).epsilon(1e-15));
  CHECK(Mla<Fp64>(c, 0.25).scale == 0.25);
}

TEST_CASE_TEMPLATE("Mla::backward agrees with central differences", Backend, EigenCpu, Cpu) {
  Backend backend;
  for (const Index rank : {Index{0}, Index{5}}) {
    CAPTURE(rank);
    Case<Fp64> c(mla_config(rank), {1, 5, 3});
    c.forward(backend);
    const Index used = c.memory.arena.used();
    c.backward(backend);
    CHECK(c.memory.arena.used() == used);
    const auto loss = [&] {
      c.forward(backend);
      return weighted_sum(c.y, c.dy);
    };
    check_differences("x", c.x.flat(), c.dx.flat(), loss, 100);
    int tensors = 0;
    Mla<Fp64>::for_each_tensor(
        [&](const char* name, auto weight, auto gradient) {
          check_differences(name, weight.flat(), gradient.flat(), loss, 100);
          ++tensors;
        },
        c.params, c.grads);
    CHECK(tensors == (rank ? 7 : 5));
  }
}

TEST_CASE("Mla in bf16 and float is near double") {
  Cpu cpu;
  const auto compare = [&]<class P>(P, double tolerance) {
    ModelConfig m = mla_config(33);
    m.hidden_size = 65;
    m.kv_lora_rank = 34;
    Case<P> c(m, {1, 9, 5});
    Case<Fp64> exact(m, {1, 9, 5});
    const auto widen = [](const auto& from, const auto& to) {
      for (Index i = 0; i < from.size(); ++i) {
        from.data[i] = std::remove_reference_t<decltype(from.data[i])>(0.25 * to.data[i]);
        to.data[i] = double(from.data[i]);
      }
    };
    Mla<P>::for_each_tensor(
        [&](const char*, auto narrow, auto wide) { widen(narrow.flat(), wide.flat()); }, c.params,
        exact.params);
    widen(c.x, exact.x);
    widen(c.dy, exact.dy);
    c.forward(cpu);
    c.backward(cpu);
    exact.forward(cpu);
    exact.backward(cpu);
    CHECK(distance(c.y.flat(), exact.y.flat()) < tolerance);
    CHECK(distance(c.dx.flat(), exact.dx.flat()) < tolerance);
    Mla<P>::for_each_tensor(
        [&](const char* name, auto narrow, auto wide) {
          CAPTURE(name);
          CHECK(distance(narrow.flat(), wide.flat()) < tolerance);
        },
        c.grads, exact.grads);
  };
  compare(Fp32{}, 1e-5);  // about ten roundings of 2^-24, amplified by norms of small latents
  compare(Bf16{}, 5e-2);  // the same of 2^-9
}

TEST_CASE("Mla names extents that disagree") {
  EigenCpu backend;
  Case<Fp64> c(mla_config(5), {2, 3});
  c.y = c.y.rows(0, 4);
  CHECK_THROWS_WITH_AS(c.forward(backend), "Mla::forward: rows of y (4) must equal rows of x (5)",
                       std::invalid_argument);
}
