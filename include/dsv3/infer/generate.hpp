// generate: one prompt, one answer.
#pragma once

#include <dsv3/infer/generator.hpp>

namespace dsv3 {

/// Options of generate(), beside the prompt.
struct GenerateOptions {
  Index max_tokens = 64;
  SamplingOptions sampling = {};
  std::vector<std::int32_t> stop_tokens = {};  ///< beside the model's eos_token_id
  bool ignore_eos = false;
  bool speculative = false;  ///< drafts of all MTP depths, where the model has them
};

/// The tokens that follow a prompt.
///
/// Errors   as Generator. A Generator serves many prompts, streams, and keeps statistics.
template <class Model>
std::vector<std::int32_t> generate(Model& model, const std::vector<std::int32_t>& prompt,
                                   const GenerateOptions& options = {}) {
  GeneratorOptions how;
  how.max_sequences = 1;
  how.max_tokens = static_cast<Index>(prompt.size()) + options.max_tokens;
  if (options.speculative) how.speculate = model.config().num_nextn_predict_layers;
  GenerationRequest request;
  request.prompt = prompt;
  request.max_tokens = options.max_tokens;
  request.sampling = options.sampling;
  request.stop_tokens = options.stop_tokens;
  request.ignore_eos = options.ignore_eos;
  Generator generator(model, how);
  const Index id = generator.add(std::move(request));
  generator.run();
  return generator.take(id).tokens;
}

}  // namespace dsv3
