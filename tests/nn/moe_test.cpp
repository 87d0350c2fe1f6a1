#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/moe.hpp>
#include <stdexcept>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

ModelConfig moe_config() {
  ModelConfig c;
  c.hidden_size = 5;
  c.moe_intermediate_size = 3;
  c.n_routed_experts = 6;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 2;
  c.n_group = 3;
  c.topk_group = 2;
  c.routed_scaling_factor = 2.5;
  return c;
}

template <class P>
struct Case {
  using T = typename P::activation;
  using A = typename P::accumulator;
  ModelConfig config;
  Memory memory;
  Lengths lengths;
  Moe<P> moe;
  typename Moe<P>::template Tensors<T> params;
  typename Moe<P>::template Tensors<const T> constants;
  typename Moe<P>::template Tensors<typename P::master> grads;
  typename Moe<P>::Saved saved;
  View<T, 2> x, y, dy, dx;
  View<A, 1> bias;
  View<std::int32_t, 2> choice;  // of the first forward pass, which later ones may be held to
  double balance_scale = 0;

  Case(const ModelConfig& c, std::initializer_list<std::int32_t> each)
      : config(c), lengths(each), moe(c) {
    params = Moe<P>::template make_tensors<T>(c, memory.arena);
    grads = Moe<P>::template make_tensors<typename P::master>(c, memory.arena);
    Moe<P>::for_each_tensor(
        [&](const std::string&, auto weight, auto gradient) {
          fill(weight, ++memory.stream);
          fill(gradient, 0, 0);
        },
        params, grads);
    constants = {params.gate,
                 params.gate_proj,
                 params.up_proj,
                 params.down_proj,
                 {params.shared_experts.gate_proj, params.shared_experts.up_proj,
                  params.shared_experts.down_proj}};
    const Sequences s = lengths.view();
    x = memory.template random<T>({s.tokens(), c.hidden_size});
    dy = memory.template random<T>({s.tokens(), c.hidden_size});
    y = memory.template empty<T>({s.tokens(), c.hidden_size});
    dx = memory.template empty<T>({s.tokens(), c.hidden_size});
    saved = moe.make_saved(memory.arena, s.tokens(), s.count());
    if (c.has_bias()) bias = memory.template random<A>({c.n_routed_experts}, 0.3);
    choice = memory.template empty<std::int32_t>({s.tokens(), c.num_experts_per_tok});
  }

  template <class Backend>
  void forward(Backend& backend, bool forced = false) {
    moe.forward(backend, constants, bias, forced ? choice : View<std::int32_t, 2>(), x,
                lengths.view(), balance_scale, y, saved, memory.arena);
    if (!forced)
      for (Index i = 0; i < choice.size(); ++i) choice.data[i] = saved.routing.topk_idx.data[i];
  }
  // alpha times the scale of forward, as a model passes it.
  template <class Backend>
  void backward(Backend& backend, double alpha) {
    moe.backward(backend, constants, x, saved, lengths.view(), balance_scale * alpha, dy, dx, grads,
                 memory.arena);
  }
};

// silu(gate x) * (up x) through down, of one expert, written down.
template <class C>
std::vector<double> expert(const C& c, Index e, Index t) {
  const auto dot = [&](const auto& row) {
    double sum = 0;
    for (Index j = 0; j < row.extent(0); ++j) sum += row(j) * c.x(t, j);
    return sum;
  };
  std::vector<double> y(static_cast<std::size_t>(c.config.hidden_size));
  for (Index i = 0; i < c.config.moe_intermediate_size; ++i) {
    const double a = dot(c.params.gate_proj[e][i]), b = dot(c.params.up_proj[e][i]);
    const double h = a / (1 + std::exp(-a)) * b;
    for (Index j = 0; j < c.config.hidden_size; ++j)
      y[static_cast<std::size_t>(j)] += c.params.down_proj(e, j, i) * h;
  }
  return y;
}

}  // namespace

TEST_CASE_TEMPLATE("Moe::forward is the weighted sum of the chosen experts", Backend, EigenCpu,
                   Cpu) {
  Backend backend;
  ModelConfig config = moe_config();
  config.n_shared_experts = 0;
  Case<Fp64> c(config, {4, 3});
  c.forward(backend);
  for (Index t = 0; t < 7; ++t) {
    std::vector<double> expected(5);
    double weights = 0;
    for (Index k = 0; k < 2; ++k) {
      const double weight = c.saved.routing.topk_weights(t, k);
      weights += weight;
      const auto part = expert(c, c.choice(t, k), t);
      for (std::size_t j = 0; j < 5; ++j) expected[j] += weight * part[j];
    }
    CHECK(weights == doctest::Approx(2.5).epsilon(1e-15));
    CHECK(c.choice(t, 0) < c.choice(t, 1));  // ascending by expert
    for (Index j = 0; j < 5; ++j)            // a few sums of terms below 3
      CHECK(std::abs(c.y(t, j) - expected[static_cast<std::size_t>(j)]) < 1e-14);
  }
}

TEST_CASE("Moe adds the shared experts as one MLP of their joint width, without weight") {
  EigenCpu backend;
  for (const Index shared : {Index{1}, Index{2}}) {
    ModelConfig config = moe_config();
    config.n_shared_experts = shared;
    Case<Fp64> with(config, {4, 3});
    CHECK(with.params.shared_experts.gate_proj.extent(0) == shared * 3);
    with.forward(backend);
    const auto alone = with.memory.empty<double>({7, 5});
    auto saved = Mlp<Fp64>::make_saved(with.memory.arena, 7, shared * 3);
    Mlp<Fp64>{}.forward(backend, with.constants.shared_experts, with.x, alone, saved,
                        with.memory.arena);
    for (Index t = 0; t < 7; ++t) {
      std::vector<double> routed(5);
      for (Index k = 0; k < 2; ++k) {
        const auto part = expert(with, with.choice(t, k), t);
        for (std::size_t j = 0; j < 5; ++j)
          routed[j] += with.saved.routing.topk_weights(t, k) * part[j];
      }
      for (Index j = 0; j < 5; ++j)
        CHECK(std::abs(with.y(t, j) - alone(t, j) - routed[static_cast<std::size_t>(j)]) < 1e-14);
    }
  }
}

TEST_CASE("Moe's balance loss is sum f P per sequence; uniform routing gives alpha") {
  EigenCpu backend;
  // Gate weights zero: all scores 1/2, so P is 1/6 for each expert, and the ties go to experts 0
  // and 1: f is 3 for both, and f . P = 1 whatever the counts.
  Case<Fp64> c(moe_config(), {4, 3});
  fill(c.params.gate, 0, 0);
  c.balance_scale = 0.5;  // the mean over two sequences
  c.forward(backend);
  CHECK(c.saved.balance(0) == doctest::Approx(1.0).epsilon(1e-15));
  for (Index s = 0; s < 2; ++s)
    for (Index e = 0; e < 6; ++e) CHECK(c.saved.frequency(s, e) == (e < 2 ? 3.0 : 0.0));

  // Other scores: the definition, written down.
  Case<Fp64> d(moe_config(), {4, 3});
  d.balance_scale = 0.5;
  d.forward(backend);
  double expected = 0;
  const Sequences s = d.lengths.view();
  for (Index q = 0; q < 2; ++q) {
    std::vector<double> f(6), p(6);
    const double tokens = static_cast<double>(s.first(q + 1) - s.first(q));
    for (Index t = s.first(q); t < s.first(q + 1); ++t) {
      double total = 0;
      for (Index e = 0; e < 6; ++e) total += d.saved.scores(t, e);
      for (Index e = 0; e < 6; ++e) {
        Index larger = 0;  // unbiased and without groups: the two largest scores
        for (Index o = 0; o < 6; ++o) larger += d.saved.scores(t, o) > d.saved.scores(t, e);
        f[static_cast<std::size_t>(e)] += larger < 2 ? 6 / (2 * tokens) : 0;
        p[static_cast<std::size_t>(e)] += d.saved.scores(t, e) / total / tokens;
      }
    }
    for (std::size_t e = 0; e < 6; ++e) expected += f[e] * p[e] / 2;
  }
  CHECK(d.saved.balance(0) == doctest::Approx(expected).epsilon(1e-14));
}

TEST_CASE("Moe's balance loss without seq_aux is that of all tokens as one sequence") {
  EigenCpu backend;
  ModelConfig config = moe_config();
  config.seq_aux = false;
  Case<Fp64> batch(config, {4, 0, 3}), one(moe_config(), {7});
  batch.balance_scale = 1.0 / 3;  // three sequences, one of them empty: together they weigh 1
  one.balance_scale = 1;
  batch.forward(backend);
  one.forward(backend);
  CHECK(batch.saved.frequency.extent(0) == 1);
  for (Index e = 0; e < 6; ++e) CHECK(batch.saved.frequency(0, e) == one.saved.frequency(0, e));
  CHECK(batch.saved.balance(0) == doctest::Approx(one.saved.balance(0)).epsilon(1e-15));
  batch.backward(backend, 0.7);
  one.backward(backend, 0.7);
  CHECK(distance(batch.grads.gate.flat(), one.grads.gate.flat()) < 1e-14);

  // Two sequences that use experts unlike each other, but evenly between them: the loss of the
  // batch is the least there is, 1; that of the sequences is not.
  for (const bool seq_aux : {false, true}) {
    config.seq_aux = seq_aux;
    config.num_experts_per_tok = 3;
    Case<Fp64> c(config, {2, 2});
    fill(c.params.gate, 0, 0);
    for (Index e = 0; e < 6; ++e) c.params.gate(e, 0) = e < 3 ? 2 : -2;
    for (Index t = 0; t < 4; ++t) c.x(t, 0) = t < 2 ? 1 : -1;
    c.balance_scale = 0.5;
    c.forward(backend);
    // Scores s(2) and s(-2) = 1 - s(2): P of the three used is s(2) / 3, and f is 2.
    const double expected = seq_aux ? 2 / (1 + std::exp(-2.0)) : 1;
    CHECK(c.saved.balance(0) == doctest::Approx(expected).epsilon(1e-14));
  }
}

TEST_CASE_TEMPLATE("Moe::backward agrees with central differences", Backend, EigenCpu, Cpu) {
  Backend backend;
  ModelConfig config = moe_config();
  SUBCASE("sigmoid, normalised, bias, groups, one shared expert") {}
  SUBCASE("sigmoid, not normalised, two shared experts") {
    config.norm_topk_prob = false;
    config.n_shared_experts = 2;
  }
  SUBCASE("softmax, not normalised, groups, no bias, no shared expert") {
    config.scoring_func = ScoringFunc::softmax;
    config.topk_method = TopkMethod::group_limited_greedy;
    config.norm_topk_prob = false;
    config.n_shared_experts = 0;
  }
  SUBCASE("softmax, normalised, greedy") {
    config.scoring_func = ScoringFunc::softmax;
    config.topk_method = TopkMethod::greedy;
  }
  SUBCASE("softmax with a bias") { config.scoring_func = ScoringFunc::softmax; }
  SUBCASE("sigmoid, balance loss over the batch") { config.seq_aux = false; }
  SUBCASE("softmax, balance loss over the batch") {
    config.scoring_func = ScoringFunc::softmax;
    config.seq_aux = false;
  }
  SUBCASE("K = 1, sigmoid, not normalised") {
    config.num_experts_per_tok = 1;
    config.norm_topk_prob = false;
  }
  SUBCASE("K = E") {
    config.num_experts_per_tok = 6;
    config.topk_group = 3;
  }
  constexpr double alpha = 0.7;
  Case<Fp64> c(config, {1, 4, 6});
  c.balance_scale = 1.0 / 3;
  c.forward(backend);
  const Index used = c.memory.arena.used();
  c.backward(backend, alpha);
  CHECK(c.memory.arena.used() == used);
  // Scores stay apart by far more than the differences' step moves them, so that the choice of
  // experts that the balance loss counts on its own does not change.
  const auto loss = [&] {
    c.forward(backend, true);
    return weighted_sum(c.y, c.dy) + alpha * c.saved.balance(0);
  };
  check_differences("x", c.x.flat(), c.dx.flat(), loss, 100);
  Moe<Fp64>::for_each_tensor(
      [&](const std::string& name, auto weight, auto gradient) {
        bool used_expert = !name.starts_with("experts.");
        for (Index i = 0; i < c.choice.size(); ++i)
          used_expert |= name.starts_with("experts." + std::to_string(c.choice.data[i]) + ".");
        if (used_expert) {
          check_differences(name, weight.flat(), gradient.flat(), loss, 100);
        } else {
          for (Index i = 0; i < gradient.size(); ++i) CHECK(gradient.data[i] == 0.0);
        }
      },
      c.params, c.grads);
}

TEST_CASE("Moe: normalised weights of K = 1 are the factor, and give the gate no gradient") {
  EigenCpu backend;
  ModelConfig config = moe_config();
  config.num_experts_per_tok = 1;
  Case<Fp64> c(config, {5});
  c.forward(backend);
  c.backward(backend, 0);
  for (Index t = 0; t < 5; ++t) CHECK(c.saved.routing.topk_weights(t, 0) == 2.5);
  for (Index i = 0; i < c.grads.gate.size(); ++i)  // a difference of equal numbers near 1
    CHECK(std::abs(c.grads.gate.data[i]) < 1e-15);
}

TEST_CASE_TEMPLATE("Moe: all tokens on one expert, the others without a token", Backend, EigenCpu,
                   Cpu) {
  Backend backend;
  ModelConfig config = moe_config();
  config.num_experts_per_tok = 1;
  config.n_shared_experts = 0;
  Case<Fp64> c(config, {3, 4});
  for (Index e = 0; e < 6; ++e) c.bias(e) = e == 4 ? 10 : 0;
  c.forward(backend);
  c.backward(backend, 0);
  for (Index e = 0; e <= 6; ++e) CHECK(c.saved.routing.offsets(e) == (e <= 4 ? 0 : 7));
  for (Index t = 0; t < 7; ++t) {
    CHECK(c.choice(t, 0) == 4);
    const auto part = expert(c, 4, t);
    for (Index j = 0; j < 5; ++j)
      CHECK(c.y(t, j) == doctest::Approx(2.5 * part[static_cast<std::size_t>(j)]).epsilon(1e-12));
  }
  for (Index e = 0; e < 6; ++e)
    for (const auto& gradient : {c.grads.gate_proj[e], c.grads.up_proj[e], c.grads.down_proj[e]}) {
      bool zero = true;
      for (Index i = 0; i < gradient.size(); ++i) zero &= gradient.flat()(i) == 0.0;
      CHECK(zero == (e != 4));
    }
}

TEST_CASE("Moe on Cpu in float and bf16 is near double, experts held fixed") {
  Cpu backend;
  const auto compare = [&]<class P>(P, double tolerance, double gate_tolerance) {
    ModelConfig config = moe_config();
    config.hidden_size = 35;
    config.moe_intermediate_size = 33;
    Case<P> c(config, {9, 40});
    Case<Fp64> exact(config, {9, 40});
    const auto widen = [](const auto& from, const auto& to) {
      for (Index i = 0; i < from.size(); ++i) {
        from.data[i] = std::remove_reference_t<decltype(from.data[i])>(0.25 * to.data[i]);
        to.data[i] = double(from.data[i]);
      }
    };
    Moe<P>::for_each_tensor(
        [&](const std::string&, auto narrow, auto wide) { widen(narrow.flat(), wide.flat()); },
        c.params, exact.params);
    widen(c.x, exact.x);
    widen(c.dy, exact.dy);
    fill(exact.bias, 0, 0);  // so that every expert has tokens
    exact.forward(backend);
    exact.backward(backend, 0);
    for (Index i = 0; i < c.choice.size(); ++i) c.choice.data[i] = exact.choice.data[i];
    c.forward(backend, true);
    c.backward(backend, 0);
    CHECK(distance(c.y.flat(), exact.y.flat()) < tolerance);
    CHECK(distance(c.dx.flat(), exact.dx.flat()) < tolerance);
    Moe<P>::for_each_tensor(
        [&](const std::string& name, auto narrow, auto wide) {
          CAPTURE(name);
          CHECK(distance(narrow.flat(), wide.flat()) <
                (name == "gate.weight" ? gate_tolerance : tolerance));
        },
        c.grads, exact.grads);
  };
  compare(Fp32{}, 1e-6, 1e-5);  // a few roundings of 2^-24; the gate's gradient is a difference
  compare(Bf16{}, 2e-2, 5e-2);  // the same of 2^-9
}

TEST_CASE("Moe names extents that disagree") {
  EigenCpu backend;
  Case<Fp64> c(moe_config(), {2, 3});
  const auto bias = c.bias;
  c.bias = bias.rows(0, 5);
  CHECK_THROWS_WITH_AS(c.forward(backend),
                       "Moe::forward: size of bias (5) must equal n_routed_experts (6)",
                       std::invalid_argument);
  c.bias = bias;
  c.choice = c.choice.cols(0, 1);
  CHECK_THROWS_WITH_AS(c.forward(backend, true),
                       "Moe::forward: columns of forced (1) must equal num_experts_per_tok (2)",
                       std::invalid_argument);
}
