// Byte pair encoding: from the bytes of a word to ids, in O(n log n).
#pragma once

#include <algorithm>
#include <cstdint>
#include <dsv3/io/probe_table.hpp>
#include <functional>
#include <limits>

namespace dsv3::detail {

// Which pairs of tokens merge, in which order, and into what.
class MergeTable {
 public:
  static constexpr std::uint32_t never = std::numeric_limits<std::uint32_t>::max();

  struct Merge {
    std::int32_t left = -1, right = -1;
    std::uint32_t rank = never;  // lower ranks merge first
    std::int32_t result = -1;
    explicit operator bool() const { return rank != never; }
  };

  // Why a table cannot be made: the index of a merge whose pair an earlier one has.
  struct Duplicate {
    std::size_t index;
  };

  MergeTable() = default;

  // merge(i), for i in [0, n), is merge number i, whose rank is i.
  // Errors   Duplicate. False in ok() where the pairs were made to collide.
  template <class MergeOf>
  MergeTable(std::size_t n, MergeOf merge) {
    ok_ = fill_with_seed(seed_, [&](std::uint64_t seed) {
      seed_ = seed;
      table_ = ProbeTable<Merge>(n);
      for (std::size_t i = 0; i < n; ++i) {
        Merge added = merge(i);
        added.rank = static_cast<std::uint32_t>(i);
        if (find(added.left, added.right)) throw Duplicate{i};
        if (!table_.insert(hash(added.left, added.right), added)) return false;
      }
      return true;
    });
  }

  bool ok() const { return ok_; }

  // The merge of this pair, or null.
  const Merge* find(std::int32_t left, std::int32_t right) const {
    return table_.find(hash(left, right), [&](const Merge& merge) {
      return merge.left == left && merge.right == right;
    });
  }

 private:
  std::uint64_t hash(std::int32_t left, std::int32_t right) const {
    return spread(static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
                      static_cast<std::uint32_t>(right),
                  seed_);
  }

  ProbeTable<Merge> table_;
  std::uint64_t seed_ = 1;
  bool ok_ = true;
};

// Merges the tokens of one word: again and again the pair of lowest rank, the leftmost of equals.
// The word is a linked list; its pairs wait in a heap, and one that has changed since is passed
// over. Keeps its memory from word to word.
// Source   Sennrich et al. 2016, arXiv:1508.07909, algorithm 1, with ranks instead of counts.
class Merger {
 public:
  // Appends the tokens that those of `word`, at most 2^31 - 1, become.
  void merge(const MergeTable& merges, const std::int32_t* word, std::size_t n,
             std::vector<std::int32_t>& out) {
    if (n == 1) {
      out.push_back(*word);
      return;
    }
    symbols_.resize(n);
    heap_.clear();
    const auto size = static_cast<std::int32_t>(n);
    for (std::int32_t i = 0; i < size; ++i)
      symbols_[static_cast<std::size_t>(i)] = {word[i], i - 1, i + 1 < size ? i + 1 : -1, never,
                                               -1};
    for (std::int32_t i = 0; i + 1 < size; ++i) look_up(merges, i);
    std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
    while (!heap_.empty()) {
      const std::uint64_t top = heap_.front();
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      heap_.pop_back();
      const auto at = static_cast<std::int32_t>(top & 0xFFFFFFFFu);
      if (symbol(at).rank == static_cast<std::uint32_t>(top >> 32)) join(merges, at);
    }
    for (std::int32_t i = 0; i >= 0; i = symbol(i).next) out.push_back(symbol(i).id);
  }

 private:
  static constexpr std::uint32_t never = MergeTable::never;

  struct Symbol {
    std::int32_t id, previous, next;  // -1: none
    std::uint32_t rank;               // of the merge with the next one
    std::int32_t result;              // of that merge
  };

  Symbol& symbol(std::int32_t i) { return symbols_[static_cast<std::size_t>(i)]; }

  // Appends to the heap what `at` and its next would merge into, if anything.
  bool look_up(const MergeTable& merges, std::int32_t at) {
    Symbol& s = symbol(at);
    s.rank = never;
    if (s.next < 0) return false;
    const MergeTable::Merge* found = merges.find(s.id, symbol(s.next).id);
    if (!found) return false;
    s.rank = found->rank;
    s.result = found->result;
    heap_.push_back(static_cast<std::uint64_t>(s.rank) << 32 | static_cast<std::uint32_t>(at));
    return true;
  }

  void join(const MergeTable& merges, std::int32_t at) {
    Symbol& s = symbol(at);
    Symbol& gone = symbol(s.next);
    s.id = s.result;
    s.next = gone.next;
    gone.rank = never;
    if (s.next >= 0) symbol(s.next).previous = at;
    if (look_up(merges, at)) std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
    if (s.previous >= 0 && look_up(merges, s.previous))
      std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  }

  std::vector<Symbol> symbols_;
  std::vector<std::uint64_t> heap_;  // rank above, position below
};

}  // namespace dsv3::detail
