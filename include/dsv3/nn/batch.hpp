// Batch: what a caller passes to a model, and the flat token list without padding that blocks see.
#pragma once

#include <dsv3/config.hpp>
#include <dsv3/core/arena.hpp>
#include <dsv3/core/check.hpp>
#include <dsv3/nn/sequences.hpp>
#include <vector>

namespace dsv3 {

/// Rows of tokens in the host's memory.
///
/// Shapes   B rows of T tokens. A padded token (mask 0) is not seen by any block, loss or count.
///          With cu_seqlens the rows are packed documents: document d consists of the flat tokens
///          cu_seqlens[d] ... cu_seqlens[d + 1] - 1 (token t of row b is b * T + t), lies within
///          one row, starts at position 0, and neither attention nor MTP leaves it. Labels are the
///          caller's: give the last token of a document none (-1), unless it is to predict the next
///          document's first.
/// Source   spec 4.3; padding and packing as in architecture's decision on packed rows.
struct Batch {
  View<const std::int32_t, 2> tokens;      // [B, T] in [0, vocab_size)
  View<const std::int32_t, 2> labels;      // [B, T] next tokens, negative: ignored; or empty
  View<const std::uint8_t, 2> mask;        // [B, T] 0 for padding; or empty: no padding
  View<const std::int32_t, 1> cu_seqlens;  // [D + 1] ascending from 0 to B T; or empty
};

/// Rows of T + 1 tokens as a batch: inputs are columns 0 ... T - 1, labels columns 1 ... T.
inline Batch next_token_batch(View<const std::int32_t, 2> tokens) {
  check_at_most("next_token_batch", "columns needed", 2, "columns of tokens", tokens.extent(1));
  const Index length = tokens.extent(1) - 1;
  return {tokens.cols(0, length), tokens.cols(1, length), {}, {}};
}

/// The flat token lists of a batch, in the host's memory: level 0 for the main model, level k for
/// MTP depth k, whose position i takes hidden state i of level k - 1 and the embedding of token
/// i + k, and predicts the label of i + k.
class BatchLayout {
 public:
  struct Level {
    std::vector<std::int32_t> row;    // of the level before, for each token (empty at level 0)
    std::vector<std::int32_t> token;  // whose embedding enters
    std::vector<std::int32_t> label;  // negative: ignored
    std::vector<std::int32_t> position, begin, end, sequence;
    std::vector<std::int32_t> first;  // [S + 1]
  };

  std::vector<Level> levels;         // 1 + num_nextn_predict_layers
  std::vector<std::int32_t> source;  // of each token of level 0: b * T + t
  Index targets = 0;                 // labels of level 0 that count
  Index sequences = 0;

  /// Lays out a batch. Reuses the storage of the batch before.
  /// Errors   std::invalid_argument naming what, where and both values; nothing is kept then.
  void assign(const Batch& batch, const ModelConfig& config) {
    check(batch, config);
    source.clear();
    levels.resize(static_cast<std::size_t>(1 + config.num_nextn_predict_layers));
    for (Level& level : levels) clear(level);
    const Index rows = batch.tokens.extent(0), length = batch.tokens.extent(1);
    targets = sequences = 0;
    if (batch.cu_seqlens.data) {
      for (Index d = 0; d + 1 < batch.cu_seqlens.extent(0); ++d)
        add_sequence(batch, batch.cu_seqlens(d), batch.cu_seqlens(d + 1));
    } else {
      for (Index b = 0; b < rows; ++b) add_sequence(batch, b * length, (b + 1) * length);
    }
    for (Level& level : levels) level.first.push_back(size(level));
  }

  Index tokens(std::size_t level) const { return size(levels[level]); }

 private:
  static std::int32_t size(const Level& level) {
    return static_cast<std::int32_t>(level.token.size());
  }

  static void clear(Level& level) {
    for (auto* list : {&level.row, &level.token, &level.label, &level.position, &level.begin,
                       &level.end, &level.sequence, &level.first})
      list->clear();
  }

  static void check(const Batch& batch, const ModelConfig& config) {
    const char* caller = "Batch";
    const Index rows = batch.tokens.extent(0), length = batch.tokens.extent(1);
    check_at_most(caller, "rows needed", 1, "rows of tokens", rows);
    check_at_most(caller, "columns needed", 1, "columns of tokens", length);
    check_at_most(caller, "tokens", rows * length, "largest count", Index{1} << 30);
    const auto cell = [](Index b, Index t) {
      return "[" + std::to_string(b) + ", " + std::to_string(t) + "]";
    };
    if (batch.labels.data)
      check_shape(caller, "labels", batch.labels, rows, "rows of tokens", length,
                  "columns of tokens");
    if (batch.mask.data)
      check_shape(caller, "mask", batch.mask, rows, "rows of tokens", length, "columns of tokens");
    for (Index b = 0; b < rows; ++b)
      for (Index t = 0; t < length; ++t) {
        if (batch.mask.data && !batch.mask(b, t)) continue;
        const Index token = batch.tokens(b, t);
        if (token < 0 || token >= config.vocab_size)
          throw std::invalid_argument("Batch: tokens" + cell(b, t) + " (" + std::to_string(token) +
                                      ") must be at least 0 and below vocab_size (" +
                                      std::to_string(config.vocab_size) + ")");
        if (batch.labels.data && batch.labels(b, t) >= config.vocab_size)
          throw std::invalid_argument(
              "Batch: labels" + cell(b, t) + " (" + std::to_string(batch.labels(b, t)) +
              ") must be below vocab_size (" + std::to_string(config.vocab_size) + ")");
      }
    if (!batch.cu_seqlens.data) return;
    const auto& cu = batch.cu_seqlens;
    const Index documents = cu.extent(0) - 1;
    check_at_most(caller, "documents needed", 1, "documents of cu_seqlens", documents);
    check_equal(caller, "cu_seqlens[0]", cu(0), "first token", 0);
    check_equal(caller, "last of cu_seqlens", cu(documents), "tokens", rows * length);
    for (Index d = 0; d < documents; ++d) {
      const std::string name = "cu_seqlens[" + std::to_string(d) + "]";
      const std::string next = "cu_seqlens[" + std::to_string(d + 1) + "]";
      check_at_most(caller, name.c_str(), cu(d), next.c_str(), cu(d + 1));
      if (cu(d) < cu(d + 1))
        check_equal(caller, ("row of the last token before " + next).c_str(),
                    (cu(d + 1) - 1) / length, ("row of " + name).c_str(), cu(d) / length);
    }
  }

  // Adds the flat tokens [from, to) as one sequence, to every level.
  void add_sequence(const Batch& batch, Index from, Index to) {
    const Index length = batch.tokens.extent(1);
    Level& main = levels[0];
    const std::int32_t begin = size(main);
    for (Index i = from; i < to; ++i) {
      const Index b = i / length, t = i % length;
      if (batch.mask.data && !batch.mask(b, t)) continue;
      const std::int32_t label = batch.labels.data ? batch.labels(b, t) : -1;
      main.token.push_back(batch.tokens(b, t));
      main.label.push_back(label < 0 ? -1 : label);
      main.position.push_back(static_cast<std::int32_t>(i - from));
      source.push_back(static_cast<std::int32_t>(i));
      targets += label >= 0;
    }
    const std::int32_t end = size(main);
    if (begin == end) return;  // nothing but padding: no sequence
    const auto number = static_cast<std::int32_t>(sequences++);
    std::int32_t before = begin;  // where the sequence starts in the level before
    for (std::size_t k = 0; k < levels.size(); ++k) {
      Level& level = levels[k];
      const std::int32_t start = k == 0 ? begin : size(level);
      const auto count = static_cast<std::int32_t>(end - begin > static_cast<std::int32_t>(k)
                                                       ? end - begin - static_cast<std::int32_t>(k)
                                                       : 0);
      for (std::int32_t i = 0; i < count; ++i) {
        const auto at = static_cast<std::size_t>(begin + i), ahead = at + k;
        if (k > 0) {
          level.row.push_back(before + i);
          level.token.push_back(main.token[ahead]);
          level.label.push_back(main.label[ahead]);
          level.position.push_back(main.position[at]);
        }
        level.begin.push_back(start);
        level.end.push_back(start + count);
        level.sequence.push_back(number);
      }
      level.first.push_back(start);
      before = start;
    }
  }
};

/// A level's lists in the backend's memory.
struct DeviceLevel {
  View<const std::int32_t, 1> row, token, label;
  Sequences sequences;

  /// Takes the lists' memory from the arena, and, unless it only counts, copies them there.
  template <class Backend>
  static DeviceLevel upload(Backend& backend, const BatchLayout::Level& level, Arena& arena) {
    const auto copy = [&](const std::vector<std::int32_t>& list) {
      const auto view = arena.take<std::int32_t>({static_cast<Index>(list.size())});
      if (!arena.counting())
        copy_to_backend(backend, view.data, list.data(),
                        static_cast<Index>(list.size() * sizeof(std::int32_t)));
      return View<const std::int32_t, 1>(view);
    };
    DeviceLevel device;
    device.row = copy(level.row);
    device.token = copy(level.token);
    device.label = copy(level.label);
    device.sequences = {copy(level.position), copy(level.begin), copy(level.end), copy(level.first),
                        copy(level.sequence)};
    return device;
  }
};

}  // namespace dsv3
