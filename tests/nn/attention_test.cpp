#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/attention.hpp>
#include <stdexcept>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

// Everything that attention reads and writes, for sequences of the given lengths.
template <class T>
struct Case {
  Memory memory{Index{1} << 24};
  Lengths lengths;
  Index tokens, heads, d_n, d_r, d_v;
  Attention<T> attention;
  View<T, 3> q, kv, o, d_o, dq, dkv;
  View<T, 2> k_rope, dk_rope;
  View<accum_t<T>, 2> lse;

  Case(std::initializer_list<std::int32_t> each, Index n, Index nope, Index rope, Index value,
       double scale, double size = 1)
      : lengths(each),
        tokens(lengths.view().tokens()),
        heads(n),
        d_n(nope),
        d_r(rope),
        d_v(value),
        attention{scale} {
    q = memory.random<T>({tokens, heads, d_n + d_r}, size);
    kv = memory.random<T>({tokens, heads, d_n + d_v}, size);
    k_rope = memory.random<T>({tokens, d_r}, size);
    d_o = memory.random<T>({tokens, heads, d_v});
    o = memory.empty<T>({tokens, heads, d_v});
    lse = memory.empty<accum_t<T>>({tokens, heads});
    dq = memory.empty<T>({tokens, heads, d_n + d_r});
    dkv = memory.empty<T>({tokens, heads, d_n + d_v});
    dk_rope = memory.empty<T>({tokens, d_r});
  }

  template <class Backend>
  void forward(Backend& backend) {
    attention.forward(backend, q, kv, k_rope, lengths.view(), o, lse, memory.arena);
  }
  template <class Backend>
  void backward(Backend& backend) {
    attention.backward(backend, q, kv, k_rope, lengths.view(), o, lse, d_o, dq, dkv, dk_rope,
                       memory.arena);
  }
};

// softmax(scale Q K^T) V written down as the definition says.
template <class T>
void check_against_definition(const Case<T>& c, double tolerance) {
  const Sequences s = c.lengths.view();
  double worst = 0, worst_lse = 0;
  for (Index t = 0; t < c.tokens; ++t)
    for (Index h = 0; h < c.heads; ++h) {
      std::vector<double> scores;
      double sum = 0;
      for (Index j = s.begin(t); j <= t; ++j) {
        double score = 0;
        for (Index d = 0; d < c.d_n; ++d) score += double(c.q(t, h, d)) * double(c.kv(j, h, d));
        for (Index d = 0; d < c.d_r; ++d)
          score += double(c.q(t, h, c.d_n + d)) * double(c.k_rope(j, d));
        scores.push_back(std::exp(c.attention.scale * score));
        sum += scores.back();
      }
      keep_largest(worst_lse, std::abs(double(c.lse(t, h)) - std::log(sum)));
      for (Index d = 0; d < c.d_v; ++d) {
        double value = 0;
        for (Index j = s.begin(t); j <= t; ++j)
          value += scores[static_cast<std::size_t>(j - s.begin(t))] / sum *
                   double(c.kv(j, h, c.d_n + d));
        keep_largest(worst, std::abs(double(c.o(t, h, d)) - value));
      }
    }
  CHECK(worst <= tolerance);
  CHECK(worst_lse <= tolerance * 4);
}

}  // namespace

TEST_CASE_TEMPLATE("Attention of hand-checked tokens", Backend, EigenCpu, Cpu) {
  // One head, d_n = d_r = d_v = 1, scale 1. Token 1 scores ln 3 on itself and 0 on token 0.
  Backend backend;
  Memory memory;
  const Lengths lengths{2};
  const double ln3 = std::log(3.0);
  const double q[] = {5, 7, 1, 2}, kv[] = {0, 10, ln3 - 4, 20}, k_rope[] = {0, 2};
  double o[2], lse[2];
  Attention<double>{1}.forward(backend, {q, {2, 1, 2}}, {kv, {2, 1, 2}}, {k_rope, {2, 1}},
                               lengths.view(), {o, {2, 1, 1}}, {lse, {2, 1}}, memory.arena);
  CHECK(o[0] == 10.0);  // a first token sees itself only
  CHECK(lse[0] == 0.0);
  CHECK(o[1] == doctest::Approx(17.5).epsilon(1e-14));  // (10 + 3 * 20) / 4
  CHECK(lse[1] == doctest::Approx(std::log(4.0)).epsilon(1e-14));
}

TEST_CASE_TEMPLATE("Attention is softmax(Q K^T) V within each sequence", Backend, EigenCpu, Cpu) {
  Backend backend;
  SUBCASE("sequences of unequal lengths") {
    Case<double> c({1, 4, 2, 7}, 3, 5, 2, 3, 0.7);
    c.forward(backend);
    check_against_definition(c, 1e-14);  // sums of less than 8 terms below 1
  }
  SUBCASE("sequences longer than a tile of keys") {
    Case<double> c({67, 130}, 2, 5, 2, 9, 0.7);
    c.forward(backend);
    check_against_definition(c, 1e-13);  // sums of up to 130 terms
  }
  SUBCASE("float") {
    Case<float> c({67, 3, 131}, 2, 18, 6, 20, 0.4);
    c.forward(backend);
    check_against_definition(c, 2e-6);  // scores below 4 and weights in float: some 2^-22
  }
  SUBCASE("bf16") {
    Case<bf16> c({67, 3, 131}, 2, 18, 6, 20, 0.4);
    c.forward(backend);
    check_against_definition(c, 2e-2);  // weights and outputs below 1 with 8 bits
  }
}

TEST_CASE_TEMPLATE("Attention survives scores whose exponential would overflow", Backend, EigenCpu,
                   Cpu) {
  Backend backend;
  Case<float> c({40}, 1, 4, 2, 3, 500);  // scores up to 3000
  c.forward(backend);
  c.backward(backend);
  for (Index i = 0; i < c.o.size(); ++i) CHECK(std::abs(c.o.data[i]) <= 1);
  for (Index i = 0; i < c.dq.size(); ++i) CHECK(std::isfinite(c.dq.data[i]));
}

TEST_CASE_TEMPLATE("Attention::backward agrees with central differences", Backend, EigenCpu, Cpu) {
  Backend backend;
  const auto check = [&](Case<double>& c, Index most) {
    c.forward(backend);
    c.backward(backend);
    const auto loss = [&] {
      c.forward(backend);
      double sum = 0;
      for (Index i = 0; i < c.o.size(); ++i) sum += c.o.data[i] * c.d_o.data[i];
      return sum;
    };
    check_differences("q", c.q.flat(), c.dq.flat(), loss, most);
    check_differences("kv", c.kv.flat(), c.dkv.flat(), loss, most);
    check_differences("k_rope", c.k_rope.flat(), c.dk_rope.flat(), loss, most);
  };
  SUBCASE("unequal lengths") {
    Case<double> c({1, 4, 2, 7}, 3, 5, 2, 3, 0.7);
    check(c, 500);
  }
  SUBCASE("longer than a tile of keys") {
    Case<double> c({67, 5}, 2, 5, 2, 3, 0.9);
    check(c, 60);
  }
}

TEST_CASE("Attention on Cpu in float and bf16 has the gradients of double") {
  Cpu cpu;
  EigenCpu eigen;
  const auto compare = [&](auto narrow, double tolerance) {
    using T = decltype(narrow);
    Case<T> c({67, 3, 131}, 2, 18, 6, 20, 0.4);
    Case<double> exact({67, 3, 131}, 2, 18, 6, 20, 0.4);
    const auto widen = [](const auto& from, const auto& to) {
      for (Index i = 0; i < from.size(); ++i) to.data[i] = double(from.data[i]);
    };
    widen(c.q, exact.q);
    widen(c.kv, exact.kv);
    widen(c.k_rope, exact.k_rope);
    widen(c.d_o, exact.d_o);
    c.forward(cpu);
    c.backward(cpu);
    exact.forward(eigen);
    exact.backward(eigen);
    CHECK(distance(c.dq.flat(), exact.dq.flat()) < tolerance);
    CHECK(distance(c.dkv.flat(), exact.dkv.flat()) < tolerance);
    CHECK(distance(c.dk_rope.flat(), exact.dk_rope.flat()) < tolerance);
  };
  compare(float{}, 4e-6);  // some tens of roundings of 2^-24
  compare(bf16{}, 2e-2);   // P, dP and o rounded to 2^-9; dS is a difference of the two
}

TEST_CASE("Attention names extents that disagree") {
  EigenCpu backend;
  Case<float> c({3}, 2, 4, 2, 3, 1);
  const auto lse = c.memory.empty<float>({3, 1});
  CHECK_THROWS_WITH_AS(c.attention.forward(backend, c.q, c.kv, c.k_rope, Lengths{2, 2}.view(), c.o,
                                           c.lse, c.memory.arena),
                       "Attention::forward: tokens of sequences (4) must equal tokens of q (3)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      c.attention.forward(backend, c.q, c.kv, c.k_rope, c.lengths.view(), c.o, lse, c.memory.arena),
      "Attention::forward: columns of lse (1) must equal heads of q (2)", std::invalid_argument);
  CHECK_THROWS_WITH_AS(c.attention.forward(backend, c.q, c.q, c.k_rope, c.lengths.view(), c.o,
                                           c.lse, c.memory.arena),
                       "Attention::forward: width of o plus width of q (9) must equal width of kv "
                       "plus width of k_rope (8)",
                       std::invalid_argument);
}
