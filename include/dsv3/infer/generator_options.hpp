// What a Generator is told about itself.
#pragma once

#include <dsv3/core/check.hpp>
#include <dsv3/infer/latent_cache.hpp>

namespace dsv3 {

/// How a Generator works.
struct GeneratorOptions {
  Index max_sequences = 8;     ///< that run at once; the others wait
  Index max_tokens = 4096;     ///< room in the cache, prompts included, for all of them together
  Index block_size = 64;       ///< of the cache; 0: contiguous, max_tokens / max_sequences for each
  Index prefill_tokens = 512;  ///< of prompts in one pass
  Index speculate = 0;         ///< drafts of MTP a pass verifies; at most num_nextn_predict_layers

  /// Errors   std::invalid_argument naming the option and both values.
  void validate(const ModelConfig& config) const {
    const char* caller = "Generator";
    check_at_most(caller, "one", 1, "max_sequences", max_sequences);
    check_at_most(caller, "max_sequences", max_sequences, "max_tokens", max_tokens);
    check_at_most(caller, "zero", 0, "block_size", block_size);
    check_at_most(caller, "one", 1, "prefill_tokens", prefill_tokens);
    check_at_most(caller, "zero", 0, "speculate", speculate);
    check_at_most(caller, "speculate", speculate, "num_nextn_predict_layers",
                  config.num_nextn_predict_layers);
  }

  /// The cache that serves them.
  CacheOptions cache() const {
    const bool mtp = speculate > 0;
    if (block_size == 0)
      return CacheOptions::contiguous(max_sequences, max_tokens / max_sequences, mtp);
    return CacheOptions::paged(max_tokens, max_sequences, block_size, mtp);
  }
};

}  // namespace dsv3
