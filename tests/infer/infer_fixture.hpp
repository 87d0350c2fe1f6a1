// What the tests of inference share: a small model, texts, caches.
#pragma once

#include <dsv3/infer/generate.hpp>

#include "../nn/model_fixture.hpp"

namespace infer {

using namespace dsv3;
using fixture::Text;

/// Odd sizes, one dense layer, YaRN, experts in groups.
constexpr ModelConfig config(Index depth = 0, bool dense = false) {
  ModelConfig c = fixture::tiny_config(depth);
  c.vocab_size = 43;
  c.hidden_size = 30;
  c.qk_rope_head_dim = 6;
  if (dense) c.first_k_dense_replace = c.num_hidden_layers;
  c.rope_scaling = presets::deepseek_yarn;
  c.rope_scaling.factor = 4;
  c.rope_scaling.original_max_position_embeddings = 32;
  return c;
}

inline std::vector<std::int32_t> text(Index count, std::uint64_t seed = 5) {
  return Text(1, count, config().vocab_size, seed).tokens;
}

inline std::vector<std::int32_t> part(const std::vector<std::int32_t>& tokens, Index from,
                                      Index to) {
  return {tokens.begin() + from, tokens.begin() + to};
}

template <class P, class Backend>
struct Fixture {
  using TheModel = Model<P, Backend>;
  TheModel model;

  Fixture(Backend& backend, const ModelConfig& c, double size = 0.4) : model(backend, c) {
    fixture::randomize(model, size);
  }

  /// Logits [T, V] of a text by the training form.
  std::vector<typename P::accumulator> forward(const std::vector<std::int32_t>& tokens) {
    return model.logits({{tokens.data(), {1, static_cast<Index>(tokens.size())}}, {}, {}, {}});
  }
};

/// Logits of every token, cut into passes of the given sizes: the first `prefilled` tokens in the
/// expanded form, the others absorbed.
template <class C, class Model>
std::vector<typename Model::A> run(Model& model, const std::vector<std::int32_t>& tokens,
                                   Index prefilled, const std::vector<Index>& sizes,
                                   const CacheOptions& options) {
  using Backend = std::remove_reference_t<decltype(model.backend())>;
  LatentCache<Backend, C> cache(model.backend(), model.config(), options);
  Decoder<Model, C> decoder(model, cache);
  const Index sequence = cache.create(), size = static_cast<Index>(tokens.size());
  std::vector<typename Model::A> all;
  std::size_t next = 0;
  for (Index from = 0; from < size;) {
    const bool expanded = from < prefilled;
    const Index end = std::min(expanded ? prefilled : size, from + sizes[next++ % sizes.size()]);
    const auto output =
        decoder.forward({{sequence, part(tokens, from, end)}},
                        expanded ? AttentionForm::expanded : AttentionForm::absorbed);
    std::vector<std::int32_t> rows;
    for (Index r = 0; r < end - from; ++r) rows.push_back(static_cast<std::int32_t>(r));
    const auto logits = decoder.logits(output.h, rows);
    all.insert(all.end(), logits.begin(), logits.end());
    from = end;
  }
  return all;
}

/// |a - b| / |b| over all values.
template <class A>
double distance(const std::vector<A>& a, const std::vector<A>& b) {
  double difference = 0, size = 0;
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / size);
}

}  // namespace infer
