// Arena: one block of a backend's memory, handed out as a stack. Nothing below the model allocates.
#pragma once

#include <dsv3/core/view.hpp>
#include <stdexcept>
#include <string>

namespace dsv3 {

/// A stack of views in one block of memory that somebody else owns, or, made without memory, a dry
/// run: it hands out views of null and counts, so that the peak of a computation is known before
/// anything is allocated.
///
/// Units    bytes; each view starts at a multiple of 64 and occupies a multiple of 64.
/// Errors   std::length_error when a view does not fit, naming both sizes.
class Arena {
 public:
  static constexpr Index alignment = 64;

  /// A dry run.
  constexpr Arena() = default;

  /// Hands out [base, base + capacity). base is a multiple of 64.
  constexpr Arena(void* base, Index capacity)
      : base_(static_cast<std::byte*>(base)), capacity_(capacity) {}

  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Bytes that a view of n elements of T occupies.
  template <class T>
  static constexpr Index bytes(Index n) {
    return (n * static_cast<Index>(sizeof(T)) + alignment - 1) / alignment * alignment;
  }

  /// The next view of the stack. Its content is not initialised.
  template <class T, int Rank>
  constexpr View<T, Rank> take(const Index (&shape)[Rank]) {
    Index n = 1;
    for (int d = 0; d < Rank; ++d) n *= shape[d];
    const Index size = bytes<T>(n), first = used_;
    if (!counting() && size > capacity_ - used_)
      throw std::length_error("Arena::take: bytes needed (" + std::to_string(used_ + size) +
                              ") must be at most capacity (" + std::to_string(capacity_) + ")");
    used_ += size;
    if (used_ > peak_) peak_ = used_;
    return View<T, Rank>(counting() ? nullptr : reinterpret_cast<T*>(base_ + first), shape);
  }

  constexpr bool counting() const { return capacity_ < 0; }
  constexpr Index used() const { return used_; }
  constexpr Index peak() const { return peak_; }

  /// Gives back everything that was taken since used() returned `mark`.
  constexpr void release(Index mark) { used_ = mark; }

 private:
  std::byte* base_ = nullptr;
  Index capacity_ = -1;
  Index used_ = 0, peak_ = 0;
};

/// Gives back, at the end of its scope, what was taken from the arena inside it.
class ArenaScope {
 public:
  constexpr explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.used()) {}
  constexpr ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Index mark_;
};

}  // namespace dsv3
