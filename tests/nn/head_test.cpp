#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/head.hpp>
#include <stdexcept>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

TEST_CASE("Head::loss is the mean of -log softmax at the labels that count") {
  // Logits (0, ln 3) give probabilities 1/4 and 3/4; the ignored token counts nothing.
  const double ln3 = std::log(3.0);
  const double weight[] = {0, 1}, x[] = {ln3, ln3, -ln3};
  const std::int32_t labels[] = {0, -100, 0};
  double nll[3], loss[1];
  EigenCpu backend;
  Memory memory;
  Head<Fp64>{}.loss(backend, {weight, {2, 1}}, {x, {3, 1}}, {labels, {3}}, 0.5, {nll, {3}},
                    {loss, {1}}, memory.arena);
  CHECK(nll[0] == doctest::Approx(std::log(4.0)).epsilon(1e-15));
  CHECK(nll[1] == 0.0);
  CHECK(nll[2] == doctest::Approx(std::log(4.0 / 3)).epsilon(1e-15));
  CHECK(loss[0] == doctest::Approx((nll[0] + nll[2]) / 2).epsilon(1e-15));
}

TEST_CASE_TEMPLATE("Head::loss_and_gradients agrees with central differences", Backend, EigenCpu,
                   Cpu) {
  Backend backend;
  // The second vocabulary is so large that its logits come in chunks of 64 tokens.
  bool chunks = false;
  SUBCASE("one chunk") { chunks = false; }
  SUBCASE("two chunks") { chunks = true; }
  const Index tokens = chunks ? 67 : 5, vocab = chunks ? 65537 : 13, hidden = chunks ? 1 : 6;
  REQUIRE((tokens > Head<Fp64>::chunk_tokens(vocab)) == chunks);
  Memory memory(Index{1} << (chunks ? 26 : 20));
  const auto weight = memory.random<double>({vocab, hidden});
  const auto x = memory.random<double>({tokens, hidden});
  const auto dx = memory.empty<double>({tokens, hidden});
  const auto dweight = memory.zeros<double>({vocab, hidden});
  const auto nll = memory.empty<double>({tokens}), loss = memory.empty<double>({1});
  std::vector<std::int32_t> labels(static_cast<std::size_t>(tokens));
  for (std::size_t t = 0; t < labels.size(); ++t)
    labels[t] = t == 2 ? -1 : static_cast<std::int32_t>(t * 5 % 13);
  const View<const std::int32_t, 1> labels_view(labels.data(), {tokens});
  Head<Fp64>{}.loss_and_gradients(backend, as_const(weight), as_const(x), labels_view, 0.5, 2.0,
                                  nll, loss, dx, dweight, memory.arena);
  double sum = 0;
  for (Index t = 0; t < tokens; ++t) sum += nll(t);
  CHECK(loss(0) == doctest::Approx(sum / 2).epsilon(1e-14));
  for (Index j = 0; j < hidden; ++j) CHECK(dx(2, j) == 0.0);  // ignored
  const auto again = [&] {
    Head<Fp64>{}.loss(backend, as_const(weight), as_const(x), labels_view, 2.0, nll, loss,
                      memory.arena);
    return loss(0);
  };
  check_differences("x", x.flat(), dx.flat(), again, chunks ? 3 : 100);
  check_differences("weight", chunks ? weight.flat().rows(0, 13) : weight.flat(),
                    chunks ? dweight.flat().rows(0, 13) : dweight.flat(), again, chunks ? 3 : 100);
}

TEST_CASE("Head survives logits whose exponential would overflow") {
  Cpu backend;
  Memory memory;
  const float weight[] = {1, -1, 0.5f}, x[] = {3000, -3000};
  const std::int32_t labels[] = {0, 0};
  float nll[2], loss[1], dx[2], dweight[3] = {};
  Head<Fp32>{}.loss_and_gradients(backend, {weight, {3, 1}}, {x, {2, 1}}, {labels, {2}}, 1, 1,
                                  {nll, {2}}, {loss, {1}}, {dx, {2, 1}}, {dweight, {3, 1}},
                                  memory.arena);
  CHECK(nll[0] == 0.0f);
  CHECK(nll[1] == 6000.0f);
  CHECK(dx[0] == 0.0f);
  CHECK(dx[1] == -2.0f);  // softmax is all on the second row: -1 - 1
}

TEST_CASE("Head in bf16: gradients near those of double") {
  Cpu backend;
  Memory memory;
  constexpr Index tokens = 9, vocab = 37, hidden = 50;
  const auto weight = memory.random<bf16>({vocab, hidden}, 0.5);
  const auto x = memory.random<bf16>({tokens, hidden}), dx = memory.empty<bf16>({tokens, hidden});
  const auto dweight = memory.zeros<float>({vocab, hidden});
  const auto nll = memory.empty<float>({tokens}), loss = memory.empty<float>({1});
  const auto weight64 = memory.empty<double>({vocab, hidden});
  const auto x64 = memory.empty<double>({tokens, hidden}),
             dx64 = memory.empty<double>({tokens, hidden});
  const auto dweight64 = memory.zeros<double>({vocab, hidden});
  const auto nll64 = memory.empty<double>({tokens}), loss64 = memory.empty<double>({1});
  for (Index i = 0; i < weight.size(); ++i) weight64.data[i] = double(weight.data[i]);
  for (Index i = 0; i < x.size(); ++i) x64.data[i] = double(x.data[i]);
  const std::int32_t labels[] = {0, 36, 5, -1, 7, 7, 7, 30, 2};
  Head<Bf16>{}.loss_and_gradients(backend, as_const(weight), as_const(x), {labels, {tokens}}, 1, 1,
                                  nll, loss, dx, dweight, memory.arena);
  Head<Fp64>{}.loss_and_gradients(backend, as_const(weight64), as_const(x64), {labels, {tokens}}, 1,
                                  1, nll64, loss64, dx64, dweight64, memory.arena);
  CHECK(double(loss(0)) == doctest::Approx(loss64(0)).epsilon(1e-6));  // logits are in float
  CHECK(distance(dx.flat(), dx64.flat()) < 1e-2);  // dz is rounded to 2^-9, dx once more
  CHECK(distance(dweight.flat(), dweight64.flat()) < 1e-2);
}

TEST_CASE("Head names extents that disagree") {
  EigenCpu backend;
  Memory memory;
  const auto weight = memory.random<float>({13, 6}), x = memory.random<float>({5, 6});
  const auto nll = memory.empty<float>({5}), loss = memory.empty<float>({1});
  const std::int32_t labels[4] = {};
  CHECK_THROWS_WITH_AS(Head<Fp32>{}.loss(backend, as_const(weight), as_const(x), {labels, {4}}, 1,
                                         nll, loss, memory.arena),
                       "Head::loss: size of labels (4) must equal rows of x (5)",
                       std::invalid_argument);
}
