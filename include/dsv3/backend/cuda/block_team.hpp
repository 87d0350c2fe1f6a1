// The team of a row kernel as a block of threads: of a GPU, or one that a host emulates.
#pragma once

#include <dsv3/core/math.hpp>

namespace dsv3::detail {

// The contract of SerialTeam. Every function is reached by all threads of the block. Thread i has
// elements i, i + size, ... of every range: what it wrote in one each() it may read in the next.
//
// A Block is what the threads see of the machine; its functions are reached by all threads of the
// block, or of the warp where it says so:
//
//   size                      threads, a multiple of 32; the first 32 are warp 0, and so on
//   thread()                  the caller's number
//   barrier()                 waits for all threads; each sees what the others wrote before
//   shuffle_down(value, by)   warp: the value of the thread `by` further on
//   exchange<A>(half)         shared memory for size / 32 values of type A; that of half 0 and that
//                             of half 1 lie apart, whatever the types
//   largest(bits)             warp, may be left out: the largest of 32 unsigned values
template <class Block>
class BlockTeam {
 public:
  // turn: the thread's own count of exchanges, from 0.
  DSV3_HD BlockTeam(Block block, unsigned& turn) : block_(block), turn_(&turn) {}

  DSV3_HD void each(Index n, auto&& f) const {
    for (Index i = block_.thread(); i < n; i += Block::size) f(i);
  }
  DSV3_HD void once(auto&& f) const {
    if (block_.thread() == 0) f();
  }
  DSV3_HD void sync() const { block_.barrier(); }

  DSV3_HD auto sum(Index n, auto&& f) const {
    using A = decltype(f(n));
    A own = A(0);
    for (Index i = block_.thread(); i < n; i += Block::size) own += f(i);
    return all_of(own, [](A a, A b) { return a + b; });
  }
  DSV3_HD auto dot(Index n, auto&& f, auto&& g) const {
    using A = decltype(f(n));
    A own = A(0);
    for (Index i = block_.thread(); i < n; i += Block::size) own = dsv3::fma(f(i), g(i), own);
    return all_of(own, [](A a, A b) { return a + b; });
  }
  DSV3_HD auto max(Index n, auto&& f) const {
    using A = decltype(f(n));
    A own = lowest<A>();
    for (Index i = block_.thread(); i < n; i += Block::size) {
      const A value = f(i);
      own = value > own ? value : own;
    }
    const auto larger = [](A a, A b) { return b > a ? b : a; };
    if constexpr (std::is_same_v<A, std::uint32_t> && requires { block_.largest(own); })
      return all_warps(block_.largest(own), larger);
    else
      return all_of(own, larger);
  }
  DSV3_HD Index argmax(Index n, auto&& f) const {
    using A = decltype(f(n));
    Best<A> own = {lowest<A>(), -1};
    for (Index i = block_.thread(); i < n; i += Block::size) {
      const A value = f(i);
      if (value > own.value) own = {value, i};
    }
    return all_of(own,
                  [](const Best<A>& a, const Best<A>& b) {
                    const bool right =
                        b.at >= 0 && (b.value > a.value || (b.value == a.value && b.at < a.at));
                    return right || a.at < 0 ? b : a;
                  })
        .at;
  }

 private:
  static constexpr int warps = Block::size / 32;
  static_assert(Block::size % 32 == 0);

  template <class A>
  struct Best {
    A value;
    Index at;
  };

  // Minus infinity; 0 for the unsigned integers that magnitudes are compared as.
  template <class A>
  DSV3_HD static constexpr A lowest() {
    if constexpr (std::is_unsigned_v<A>)
      return 0;
    else
      return -__builtin_bit_cast(float, 0x7F800000);
  }

  template <class A>
  DSV3_HD A down(A value, int by) const {
    return block_.shuffle_down(value, by);
  }
  template <class A>
  DSV3_HD Best<A> down(const Best<A>& best, int by) const {
    return {block_.shuffle_down(best.value, by), block_.shuffle_down(best.at, by)};
  }

  // The values of all threads as one, in an order that depends on nothing, known to all of them.
  template <class A, class F>
  DSV3_HD A all_of(A own, const F& f) const {
    for (int by = 16; by > 0; by /= 2) own = f(own, down(own, by));  // right in a warp's first
    return all_warps(own, f);
  }

  // The same of the values of each warp's first thread. The two halves of the shared memory take
  // turns: when one is written again, every thread has passed the barrier after it read the other.
  template <class A, class F>
  DSV3_HD A all_warps(A own, const F& f) const {
    A* const shared = block_.template exchange<A>((*turn_)++ % 2);
    const int thread = block_.thread();
    if (thread % 32 == 0) shared[thread / 32] = own;
    block_.barrier();
    A all = shared[0];
    for (int warp = 1; warp < warps; ++warp) all = f(all, shared[warp]);
    return all;
  }

  Block block_;
  unsigned* turn_;
};

// Rows first, first + step, ... by the team of one block. Rows do not depend on one another: no
// barrier parts them.
template <class Team, class Body>
DSV3_HD void run_rows(const Team& team, Index first, Index step, Index rows, const Body& body) {
  for (Index row = first; row < rows; row += step) body(team, row);
}

}  // namespace dsv3::detail
