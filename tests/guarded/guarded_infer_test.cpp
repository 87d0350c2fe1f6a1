#include <dsv3/infer/generator.hpp>

#include "guarded/guarded.hpp"

#include "small_model.hpp"

#include <doctest/doctest.h>

using namespace dsv3;
using guarded::Guarded;

namespace {

// What sampled generation with speculation gives on a backend, in two sequences of which the second
// waits for the first.
template <class P, class C, class Backend>
std::vector<GenerationResult> generate_on(Backend& backend) {
  Model<P, Backend> model(backend, small::config(), {.seed = 3, .init_std = 0.1});
  Generator<Model<P, Backend>, C> generator(
      model,
      {.max_sequences = 2, .max_tokens = 60, .block_size = 8, .prefill_tokens = 9, .speculate = 1});
  for (std::uint64_t i = 0; i < 3; ++i) {
    GenerationRequest request;
    for (std::uint64_t t = 0; t < 5 + 6 * i; ++t)
      request.prompt.push_back(static_cast<std::int32_t>((t * t + i) % 53));
    request.max_tokens = 8;
    request.ignore_eos = true;
    request.sampling = {.temperature = 1, .seed = i};
    generator.add(request);
  }
  generator.run();
  std::vector<GenerationResult> results;
  for (Index i = 0; i < 3; ++i) results.push_back(generator.take(i));
  return results;
}

template <class P, class C>
void compare() {
  Cpu cpu(1);
  Guarded backend(2);
  const auto expected = generate_on<P, C>(cpu), results = generate_on<P, C>(backend);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(results[i].tokens.size() == 8);
    CHECK(results[i].tokens == expected[i].tokens);
    CHECK(results[i].log_probabilities == expected[i].log_probabilities);
  }
}

}  // namespace

TEST_CASE("Generation on Guarded has the bits of Cpu") {
  compare<Fp32, float>();
  compare<Bf16, e4m3>();
  compare<Fp8, bf16>();
}
