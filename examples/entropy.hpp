// How well counting predicts a text: the baselines of the training example.
#pragma once

#include <cmath>
#include <dsv3/io/text_data.hpp>
#include <unordered_map>

namespace example {

using dsv3::Index;

/// Cross-entropies of the labels of held-out rows, in nats a token, under counts of the training
/// rows. They are finite whatever the text:
///
///     unigram   p(b)     = (n(b) + 1) / (N + V)
///     bigram    p(b | a) = (n(a b) + p(b)) / (n(a) + 1)         unigram as its prior
///
/// n counts tokens and pairs inside training rows, N is the sum of n, V the vocabulary size. The
/// labels are those that the model's held-out loss is the mean of.
struct Entropies {
  double unigram = 0, bigram = 0;
  double bytes_per_token = 0;  ///< in the labels; 0 where the vocabulary is not of bytes

  double bits_per_byte(double nats) const { return nats / std::log(2.0) / bytes_per_token; }
};

/// The i-th of n held-out rows, evenly spaced over all of them.
inline Index sampled_row(const dsv3::TextData& data, Index i, Index n) {
  return i * data.held_out_rows() / n;
}

/// Of `sample` held-out rows, evenly spaced. Counts at most about `most` training tokens, in rows
/// evenly spaced, too.
inline Entropies count_entropies(const dsv3::TextData& data, Index sample,
                                 Index most = Index{1} << 26) {
  const Index width = data.options().row_length + 1, vocab = data.options().vocab_size;
  std::vector<std::int32_t> row(static_cast<std::size_t>(width));
  const dsv3::View<std::int32_t, 1> view(row.data(), {width});
  const dsv3::View<std::int32_t, 2> rows(row.data(), {1, width});
  const auto pair = [&](Index i) {
    return static_cast<std::uint64_t>(view(i)) * static_cast<std::uint64_t>(vocab) +
           static_cast<std::uint64_t>(view(i + 1));
  };
  // Only pairs that the held-out rows ask for are counted: memory is bounded by them.
  std::unordered_map<std::uint64_t, Index> pairs;
  for (Index r = 0; r < sample; ++r) {
    data.held_out_batch(sampled_row(data, r, sample), rows);
    for (Index i = 0; i + 1 < width; ++i) pairs[pair(i)] = 0;
  }
  std::vector<Index> single(static_cast<std::size_t>(vocab)), before(single);
  const auto at = [](std::vector<Index>& counts, std::int32_t token) -> Index& {
    return counts[static_cast<std::size_t>(token)];
  };
  Index total = 0;
  const Index every = 1 + data.training_rows() / (1 + most / width);
  for (Index r = 0; r < data.training_rows(); r += every) {
    data.training_row(r, view);
    for (Index i = 0; i < width; ++i) ++at(single, view(i));
    total += width;
    for (Index i = 0; i + 1 < width; ++i) {
      ++at(before, view(i));
      if (const auto found = pairs.find(pair(i)); found != pairs.end()) ++found->second;
    }
  }
  Entropies e;
  Index labels = 0, bytes = 0;
  for (Index r = 0; r < sample; ++r) {
    data.held_out_batch(sampled_row(data, r, sample), rows);
    for (Index i = 0; i + 1 < width; ++i) {
      const double p =
          static_cast<double>(at(single, view(i + 1)) + 1) / static_cast<double>(total + vocab);
      e.unigram -= std::log(p);
      e.bigram -= std::log((static_cast<double>(pairs[pair(i)]) + p) /
                           static_cast<double>(at(before, view(i)) + 1));
      bytes += view(i + 1) < 256;
      ++labels;
    }
  }
  if (labels == 0) return e;
  e.unigram /= static_cast<double>(labels);
  e.bigram /= static_cast<double>(labels);
  if (data.options().format == dsv3::TextFormat::bytes)
    e.bytes_per_token = static_cast<double>(bytes) / static_cast<double>(labels);
  return e;
}

}  // namespace example
