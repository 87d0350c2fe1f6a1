// Drafter: MTP as a proposer of tokens.
#pragma once

#include <dsv3/infer/decoder.hpp>
#include <dsv3/infer/hidden_rows.hpp>

namespace dsv3 {

/// Keeps the MTP levels of a cache in step with the main model, and runs them ahead of it.
///
/// The entry at position i of depth k takes the token i + k and row i that the level before
/// carried. It is final once all its tokens are; an entry made with a draft is dropped if the draft
/// falls.
///
/// Source   DeepSeek-V3 section 2.2; spec 6.1 and 6.6.
template <class Model, class C>
class Drafter {
 public:
  using D = Decoder<Model, C>;
  using T = typename D::T;

  /// For sequences numbered below `sequences`, of which a pass runs at most `most_tokens` each.
  Drafter(D& decoder, Index depths, Index sequences, Index most_tokens)
      : decoder_(&decoder),
        depths_(depths),
        rows_(decoder.model().backend(), sequences, depths, most_tokens + 3 * depths + 2,
              decoder.model().config().hidden_size) {}

  /// A sequence with its tokens: those that are certain, then drafts.
  struct Sequence {
    Index number;
    const std::vector<std::int32_t>* tokens;
  };

  /// To be called after each pass of the main model, with its parts and output: keeps the rows that
  /// MTP will read. Parts began at `starts`.
  void keep(const std::vector<CachePart>& parts, const std::vector<Index>& starts,
            const typename D::Output& output) {
    store(0, parts, starts, output.carried);
  }

  /// Runs depth k over all entries that its sequences' tokens allow and that it has not run, up to
  /// the main model's length. Returns, of each sequence, its last row of h in `output`, or -1.
  std::vector<std::int32_t> run(Index depth, const std::vector<Sequence>& sequences,
                                AttentionForm form, typename D::Output& output) {
    auto& cache = decoder_->cache();
    parts_.clear();
    starts_.clear();
    places_.clear();
    std::vector<std::int32_t> last(sequences.size(), -1);
    std::int32_t row = 0;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const auto& [number, tokens] = sequences[i];
      const Index begin = cache.length(number, depth);
      const Index end =
          std::min(cache.length(number, depth - 1), static_cast<Index>(tokens->size()) - depth);
      if (end <= begin) continue;
      check_at_most("Drafter", "rows to read", cache.length(number, depth - 1) - begin,
                    "rows that are kept", rows_.window());
      parts_.push_back({number, {tokens->begin() + begin + depth, tokens->begin() + end + depth}});
      starts_.push_back(begin);
      for (Index p = begin; p < end; ++p) places_.push_back(rows_.place(number, depth - 1, p));
      row += static_cast<std::int32_t>(end - begin);
      last[i] = row - 1;
    }
    if (parts_.empty()) return last;
    output = decoder_->forward_mtp(depth, parts_, form, rows_.load(places_));
    if (depth < depths_) store(depth, parts_, starts_, output.carried);
    return last;
  }

  /// Drops the entries that were made with tokens beyond the first `certain`.
  void truncate(Index sequence, Index certain) {
    auto& cache = decoder_->cache();
    for (Index k = 1; k <= depths_; ++k) {
      const Index most = std::max(Index{0}, certain - k);
      if (cache.length(sequence, k) > most) cache.truncate(sequence, most, k);
    }
  }

 private:
  void store(Index level, const std::vector<CachePart>& parts, const std::vector<Index>& starts,
             View<const T, 2> rows) {
    std::vector<std::int32_t> places;
    for (std::size_t i = 0; i < parts.size(); ++i)
      for (Index t = 0; t < parts[i].count(); ++t)
        places.push_back(rows_.place(parts[i].sequence, level, starts[i] + t));
    rows_.store(rows, places);
  }

  D* decoder_;
  Index depths_;
  HiddenRows<typename D::Backend, T> rows_;
  std::vector<CachePart> parts_;
  std::vector<Index> starts_;
  std::vector<std::int32_t> places_;
};

}  // namespace dsv3
