#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/embedding.hpp>
#include <stdexcept>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

TEST_CASE_TEMPLATE("Embedding copies the token's row and adds its gradient to that row", Backend,
                   EigenCpu, Cpu) {
  Backend backend;
  Memory memory;
  const double weight[] = {1, 2, 3, 4, 5, 6};  // three tokens of width 2
  const std::int32_t tokens[] = {2, 0, 2, 2};
  double y[8];
  Embedding{}.forward(backend, View<const double, 2>(weight, {3, 2}), {tokens, {4}},
                      View<double, 2>(y, {4, 2}));
  const double expected[] = {5, 6, 1, 2, 5, 6, 5, 6};
  for (int i = 0; i < 8; ++i) CHECK(y[i] == expected[i]);

  const double dy[] = {1, 10, 2, 20, 4, 40, 8, 80};
  double dweight[] = {0, 0, 7, 7, 1000, 1000};
  Embedding{}.backward(backend, {tokens, {4}}, View<const double, 2>(dy, {4, 2}),
                       View<double, 2>(dweight, {3, 2}), memory.arena);
  const double sums[] = {2, 20, 7, 7, 1013, 1130};  // token 1 does not occur: 7 stays
  for (int i = 0; i < 6; ++i) CHECK(dweight[i] == sums[i]);
}

TEST_CASE("Embedding sums the gradient of a token in the order of its positions, in float") {
  Cpu backend(3);
  Memory memory;
  constexpr Index tokens_count = 301;
  std::vector<std::int32_t> tokens(tokens_count);
  for (Index t = 0; t < tokens_count; ++t)
    tokens[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(t % 3);
  const auto dy = memory.random<bf16>({tokens_count, 5});
  const auto dweight = memory.zeros<float>({3, 5});
  Embedding{}.backward(backend, {tokens.data(), {tokens_count}}, as_const(dy), dweight,
                       memory.arena);
  for (Index id = 0; id < 3; ++id)
    for (Index j = 0; j < 5; ++j) {
      float sum = 0;
      for (Index t = id; t < tokens_count; t += 3) sum += float(dy(t, j));
      CHECK(dweight(id, j) == sum);
    }
}

TEST_CASE("Embedding names extents that disagree") {
  EigenCpu backend;
  Memory memory;
  const std::int32_t tokens[] = {0, 1};
  const auto weight = memory.random<float>({3, 4}), y = memory.empty<float>({2, 5});
  CHECK_THROWS_WITH_AS(Embedding{}.forward(backend, as_const(weight), {tokens, {2}}, y),
                       "Embedding::forward: columns of y (5) must equal columns of weight (4)",
                       std::invalid_argument);
}
