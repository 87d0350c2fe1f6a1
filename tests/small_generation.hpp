// Sampled generation with speculation from a small model, on any backend.
#pragma once

#include <dsv3/infer/generator.hpp>

#include "small_model.hpp"

namespace small {

/// Three sequences, of which two run at once and the third joins; both forms of attention, blocks
/// of a cache with elements C, drafts of MTP.
template <class P, class C, class Backend>
std::vector<dsv3::GenerationResult> generate(Backend& backend) {
  using Model = dsv3::Model<P, Backend>;
  Model model(backend, config(), {.seed = 3, .init_std = 0.1});
  dsv3::Generator<Model, C> generator(
      model,
      {.max_sequences = 2, .max_tokens = 60, .block_size = 8, .prefill_tokens = 9, .speculate = 1});
  for (std::uint64_t i = 0; i < 3; ++i) {
    dsv3::GenerationRequest request;
    for (std::uint64_t t = 0; t < 5 + 6 * i; ++t)
      request.prompt.push_back(static_cast<std::int32_t>((t * t + i) % 53));
    request.max_tokens = 8;
    request.ignore_eos = true;
    request.sampling = {.repetition_penalty = i == 1 ? 1.3 : 1.0, .temperature = 1, .seed = i};
    generator.add(request);
  }
  generator.run();
  std::vector<dsv3::GenerationResult> results;
  for (Index i = 0; i < 3; ++i) results.push_back(generator.take(i));
  return results;
}

}  // namespace small
