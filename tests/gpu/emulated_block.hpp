// A block of a GPU's threads as fibers of the host, for the code over a Block: see BlockTeam.
#pragma once

#include <algorithm>
#include <cstddef>
#include <dsv3/core/view.hpp>

#include "fibers.hpp"

namespace emulated {

using dsv3::Index;

/// The threads of one block at a time, and what they share. Memory is poisoned when a block
/// starts: all bits set, which is NaN, -1 or an address that nobody has.
class Machine {
 public:
  static constexpr int most_threads = 1024;
  static constexpr std::size_t largest_value = 24;  // the fragments of a product

  explicit Machine(std::uint64_t seed) : fibers_(most_threads, seed), threads_(most_threads) {}

  /// f(thread) by `threads` threads.
  void block(int threads, auto&& f) {
    std::memset(exchange_, 0xFF, sizeof(exchange_));
    std::fill(threads_.begin(), threads_.end(), Thread{});
    fibers_.run(threads, f);
  }

  /// Of a thread: the value of thread `from`, which is of the same warp and brings one too.
  template <class A>
  A take(int thread, int from, A value) {
    const std::size_t turn = bring(thread, value);
    std::memcpy(&value, threads_[static_cast<std::size_t>(from)].brought[turn], sizeof(A));
    return value;
  }

  /// Of a thread: f(lane) is the value that a thread of its warp brings, until the next exchange.
  template <class A>
  auto of_warp(int thread, const A& value) {
    const std::size_t turn = bring(thread, value);
    return [first = &threads_[static_cast<std::size_t>(thread / 32 * 32)], turn](int lane) {
      A brought;
      std::memcpy(&brought, first[lane].brought[turn], sizeof(A));
      return brought;
    };
  }

  /// Of a thread: the threads of its warp that bring the same value, as bits.
  template <class A>
  std::uint32_t match(int thread, A value) {
    const std::size_t turn = bring(thread, value);
    std::uint32_t same = 0;
    for (int i = 0; i < 32; ++i)
      if (std::memcmp(threads_[static_cast<std::size_t>(thread / 32 * 32 + i)].brought[turn],
                      &value, sizeof(A)) == 0)
        same |= 1u << i;
    return same;
  }

  Fibers& fibers() { return fibers_; }
  std::byte* exchange(unsigned half) { return exchange_[half]; }

 private:
  struct Thread {
    unsigned turn = 0;
    std::byte brought[2][largest_value] = {};
  };

  // The values of two turns lie apart, so that one wait for the warp is enough.
  template <class A>
  std::size_t bring(int thread, const A& value) {
    static_assert(sizeof(A) <= largest_value);
    Thread& own = threads_[static_cast<std::size_t>(thread)];
    const std::size_t turn = own.turn++ % 2;
    std::memcpy(own.brought[turn], &value, sizeof(A));
    fibers_.warp_barrier(thread);
    return turn;
  }

  Fibers fibers_;
  std::vector<Thread> threads_;
  alignas(16) std::byte exchange_[2][most_threads / 32 * largest_value];
};

/// The Block of the library's code for blocks.
template <int threads>
class Block {
 public:
  static constexpr int size = threads;
  static_assert(threads % 32 == 0 && threads <= Machine::most_threads);

  Block(Machine& machine, int thread) : machine_(&machine), thread_(thread) {}

  int thread() const { return thread_; }
  void barrier() const { machine_->fibers().barrier(thread_); }
  void warp_barrier() const { machine_->fibers().warp_barrier(thread_); }
  template <class A>
  A shuffle_down(A value, int by) const {
    return machine_->take(thread_, thread_ % 32 + by < 32 ? thread_ + by : thread_, value);
  }
  std::uint32_t match(std::int32_t value) const { return machine_->match(thread_, value); }
  template <class A>
  A* exchange(unsigned half) const {
    static_assert(sizeof(A) <= Machine::largest_value);
    return reinterpret_cast<A*>(machine_->exchange(half));
  }
  void add(std::int32_t* to, std::int32_t value) const { *to += value; }
  void lower(std::int32_t* to, std::int32_t value) const { *to = std::min(*to, value); }
  void system_fence() const {}

 private:
  Machine* machine_;
  int thread_;
};

}  // namespace emulated
