// BlockPool: which blocks of a latent cache belong to which sequence. Numbers only, on the host.
#pragma once

#include <algorithm>
#include <dsv3/core/check.hpp>
#include <dsv3/core/quantized.hpp>
#include <vector>

namespace dsv3 {

/// A pool of blocks of equal size that sequences take from, share and give back. A sequence has one
/// length for each level: level 0 is the main model, level k MTP depth k, whose entries lie in the
/// same blocks. A block that several sequences share is copied before one of them writes to it.
///
/// Contiguous caches are the case of one block for each sequence, as long as a sequence can be.
///
/// Errors   std::invalid_argument for a sequence that does not exist, a length beyond the present
///          one, or where blocks run out; nothing has changed then.
class BlockPool {
 public:
  /// A block to copy before a pass writes to it.
  struct Copy {
    std::int32_t from, to;
  };

  BlockPool(Index blocks, Index block_size, Index levels)
      : block_size_(block_size), levels_(levels) {
    check_at_most("BlockPool", "one", 1, "blocks", blocks);
    check_at_most("BlockPool", "one", 1, "block_size", block_size);
    check_at_most("BlockPool", "one", 1, "levels", levels);
    check_at_most("BlockPool", "blocks", blocks, "slots that int32 can number, in blocks",
                  ((Index{1} << 31) - 1) / block_size);
    users_.resize(static_cast<std::size_t>(blocks), 0);
    for (Index b = blocks; b-- > 0;) free_.push_back(static_cast<std::int32_t>(b));
  }

  Index block_size() const { return block_size_; }
  Index levels() const { return levels_; }
  Index blocks() const { return static_cast<Index>(users_.size()); }
  Index free_blocks() const { return static_cast<Index>(free_.size()); }
  /// Blocks that hold `tokens` entries.
  Index blocks_for(Index tokens) const { return groups_of(tokens, block_size_); }

  /// A new sequence without entries: its number, the smallest that is free.
  Index create() {
    std::size_t id = 0;
    while (id < sequences_.size() && sequences_[id].exists) ++id;
    if (id == sequences_.size()) sequences_.emplace_back();
    sequences_[id].exists = true;
    sequences_[id].lengths.assign(static_cast<std::size_t>(levels_), 0);
    return static_cast<Index>(id);
  }

  /// A new sequence that shares the entries of another. No entry is copied before one of the two
  /// writes to its block.
  Index fork(Index sequence) {
    at("fork", sequence);
    const Index id = create();
    Sequence& copy = sequences_[static_cast<std::size_t>(id)];
    copy = sequences_[static_cast<std::size_t>(sequence)];
    for (const std::int32_t block : copy.blocks) ++users_[static_cast<std::size_t>(block)];
    return id;
  }

  /// Forgets a sequence.
  void erase(Index sequence) {
    Sequence& s = at("erase", sequence);
    shrink(s, 0);
    s.exists = false;
  }

  Index length(Index sequence, Index level = 0) const {
    return at("length", sequence).lengths[checked("length", level)];
  }

  const std::vector<std::int32_t>& blocks_of(Index sequence) const {
    return at("blocks_of", sequence).blocks;
  }

  /// Forgets the entries of a level from `length` on.
  void truncate(Index sequence, Index length, Index level = 0) {
    Sequence& s = at("truncate", sequence);
    const std::size_t l = checked("truncate", level);
    check_at_most("BlockPool::truncate", "zero", 0, "length", length);
    check_at_most("BlockPool::truncate", "length", length, "length of the sequence", s.lengths[l]);
    s.lengths[l] = length;
    shrink(s, *std::max_element(s.lengths.begin(), s.lengths.end()));
  }

  /// Blocks that `prepare` would take for `count` more entries of a level, copies included.
  Index blocks_needed(Index sequence, Index count, Index level = 0) const {
    const Sequence& s = at("blocks_needed", sequence);
    const Index begin = s.lengths[checked("blocks_needed", level)];
    Index needed = std::max(Index{0}, blocks_for(begin + count) - size(s));
    for (Index b = begin / block_size_;
         count > 0 && b < std::min(size(s), blocks_for(begin + count)); ++b)
      needed += users_[static_cast<std::size_t>(s.blocks[static_cast<std::size_t>(b)])] > 1;
    return needed;
  }

  /// Makes room for `count` more entries of a level and appends to `copies` the blocks whose
  /// content must be copied before they are written. The length is unchanged until advance().
  void prepare(Index sequence, Index count, Index level, std::vector<Copy>& copies) {
    Sequence& s = at("prepare", sequence);
    const Index begin = s.lengths[checked("prepare", level)], end = begin + count;
    check_at_most("BlockPool::prepare", "blocks needed", blocks_needed(sequence, count, level),
                  "free blocks", free_blocks());
    for (Index b = begin / block_size_; count > 0 && b < blocks_for(end); ++b) {
      if (b == size(s)) {
        s.blocks.push_back(take());
        continue;
      }
      std::int32_t& block = s.blocks[static_cast<std::size_t>(b)];
      if (users_[static_cast<std::size_t>(block)] == 1) continue;
      const std::int32_t own = take();
      --users_[static_cast<std::size_t>(block)];
      copies.push_back({block, own});
      block = own;
    }
  }

  /// Counts `count` more entries of a level, for which prepare() has made room.
  void advance(Index sequence, Index count, Index level = 0) {
    Sequence& s = at("advance", sequence);
    Index& length = s.lengths[checked("advance", level)];
    check_at_most("BlockPool::advance", "entries", length + count, "entries with room",
                  size(s) * block_size_);
    length += count;
  }

 private:
  struct Sequence {
    bool exists = false;
    std::vector<std::int32_t> blocks;
    std::vector<Index> lengths;  // of each level
  };

  static Index size(const Sequence& s) { return static_cast<Index>(s.blocks.size()); }

  const Sequence& at(const char* function, Index sequence) const {
    if (sequence < 0 || sequence >= static_cast<Index>(sequences_.size()) ||
        !sequences_[static_cast<std::size_t>(sequence)].exists)
      throw std::invalid_argument(std::string("BlockPool::") + function + ": sequence (" +
                                  std::to_string(sequence) + ") must be one that exists");
    return sequences_[static_cast<std::size_t>(sequence)];
  }
  Sequence& at(const char* function, Index sequence) {
    return const_cast<Sequence&>(static_cast<const BlockPool*>(this)->at(function, sequence));
  }

  std::size_t checked(const char* function, Index level) const {
    if (level < 0 || level >= levels_)
      throw std::invalid_argument(std::string("BlockPool::") + function + ": level (" +
                                  std::to_string(level) + ") must be below the levels (" +
                                  std::to_string(levels_) + ")");
    return static_cast<std::size_t>(level);
  }

  std::int32_t take() {
    const std::int32_t block = free_.back();
    free_.pop_back();
    users_[static_cast<std::size_t>(block)] = 1;
    return block;
  }

  void shrink(Sequence& s, Index entries) {
    while (size(s) > blocks_for(entries)) {
      const std::int32_t block = s.blocks.back();
      s.blocks.pop_back();
      if (--users_[static_cast<std::size_t>(block)] == 0) free_.push_back(block);
    }
  }

  Index block_size_, levels_;
  std::vector<std::int32_t> users_;  // sequences that hold each block
  std::vector<std::int32_t> free_;
  std::vector<Sequence> sequences_;
};

}  // namespace dsv3
