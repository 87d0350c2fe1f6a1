// What a trained model does with rows longer than those it was trained on.
#pragma once

#include <dsv3/infer/inference_model.hpp>

#include "trained.hpp"

namespace experiment {

// What one way of extending showed, for one seed.
struct Long {
  std::vector<double> loss;                    // [longest / bin] nats a token, by position
  std::vector<std::vector<double>> retrieved;  // [lengths][depths] share of bytes found again
};

inline constexpr Index longest = 512, bin = 32;
inline constexpr Index lengths[] = {128, 256, 384, 512}, depths = 5, needle = 12, asked = 6;

template <class Decoder>
std::vector<float> logits_of(Decoder& decoder, const std::vector<std::int32_t>& tokens,
                             const std::vector<std::int32_t>& rows) {
  auto& cache = decoder.cache();
  const Index sequence = cache.create();
  const auto out = decoder.forward({{sequence, tokens}}, dsv3::AttentionForm::expanded);
  auto z = decoder.logits(out.h, rows);
  cache.erase(sequence);
  return z;
}

// A string of random letters, put at a depth into text and begun again at its end: how many of the
// following letters come out first?
template <class Decoder>
double retrieved(Decoder& decoder, std::vector<std::int32_t> text, Index depth,
                 std::uint64_t seed) {
  const dsv3::Philox philox(77, seed);
  std::vector<std::int32_t> word;
  for (std::uint64_t i = 0; i < needle; ++i)
    word.push_back(static_cast<std::int32_t>('a' + philox(i).word[0] % 26));
  const Index at = depth * (static_cast<Index>(text.size()) - 2 * needle) / (depths - 1);
  std::copy(word.begin(), word.end(), text.begin() + at);
  std::copy(word.begin(), word.end(), text.end() - needle);
  std::vector<std::int32_t> rows;  // the letters before those that are asked for
  for (Index i = 0; i < asked; ++i)
    rows.push_back(static_cast<std::int32_t>(static_cast<Index>(text.size()) - asked - 1 + i));
  const auto z = logits_of(decoder, text, rows);
  const std::size_t vocab = z.size() / rows.size();
  double right = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto first = z.begin() + static_cast<std::ptrdiff_t>(i * vocab);
    const auto best = std::max_element(first, first + static_cast<std::ptrdiff_t>(vocab)) - first;
    if (best == text[static_cast<std::size_t>(rows[i] + 1)]) right += 1;
  }
  return right / static_cast<double>(asked);
}

/// The weights of a trained model under another config of the same shapes, on rows of the longest
/// length.
inline Long measure(Trained& t, const dsv3::ModelConfig& config, const Domains& rows) {
  using P = dsv3::Bf16;
  dsv3::Model<P, dsv3::Cpu> copy(t.model.backend(), config);
  copy_weights(t.model, copy);
  dsv3::InferenceModel<P, dsv3::Cpu> model(t.model.backend(), config);
  model.take_operands(copy);
  dsv3::LatentCache<dsv3::Cpu, dsv3::bf16> cache(model.backend(), config,
                                                 dsv3::CacheOptions::contiguous(1, longest));
  dsv3::Decoder<decltype(model)> decoder(model, cache);

  Long result;
  result.loss.resize(longest / bin);
  std::vector<std::vector<std::int32_t>> texts;
  std::vector<std::int32_t> storage(
      static_cast<std::size_t>(Domains::held_out_rows * (longest + 1)));
  for (Index d = 0; d < rows.size(); ++d) {
    rows.held_out_batch(d, {storage.data(), {Domains::held_out_rows, longest + 1}});
    for (Index r = 0; r < Domains::held_out_rows; ++r) {
      const auto* row = storage.data() + r * (longest + 1);
      const Index sequence = cache.create();
      const auto out =
          decoder.forward({{sequence, {row, row + longest}}}, dsv3::AttentionForm::expanded);
      const auto p = decoder.log_probs(out.h, {row + 1, row + longest + 1});
      cache.erase(sequence);
      for (std::size_t i = 0; i < p.size(); ++i)
        result.loss[i / bin] -=
            double(p[i]) / static_cast<double>(bin * rows.size() * Domains::held_out_rows);
      if (r == 0) texts.emplace_back(row, row + longest);
    }
  }
  for (const Index length : lengths) {
    result.retrieved.emplace_back();
    for (Index depth = 0; depth < depths; ++depth) {
      double sum = 0;
      for (std::size_t d = 0; d < texts.size(); ++d)
        sum += retrieved(decoder, {texts[d].begin(), texts[d].begin() + length}, depth,
                         static_cast<std::uint64_t>(d)) /
               static_cast<double>(texts.size());
      result.retrieved.back().push_back(sum);
    }
  }
  return result;
}

}  // namespace experiment
