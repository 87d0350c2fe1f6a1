// What both CPU backends share: host memory, the team of one worker, sorting by expert.
#pragma once

#include <cstdlib>
#include <cstring>
#include <dsv3/core/check.hpp>
#include <dsv3/core/math.hpp>
#include <limits>
#include <new>

namespace dsv3 {

/// Base of the backends whose memory is the host's.
struct HostMemory {};

/// Primitive. Memory of the backend, aligned to 64 bytes, not initialised.
/// Errors   std::bad_alloc.
inline void* allocate(HostMemory&, Index bytes) {
  return ::operator new (static_cast<std::size_t>(bytes), std::align_val_t{64});
}

/// Primitive. Returns what allocate gave.
inline void deallocate(HostMemory&, void* memory, Index /*bytes*/) noexcept {
  ::operator delete (memory, std::align_val_t{64});
}

/// Primitive. Copies host memory into the backend's.
inline void copy_to_backend(HostMemory&, void* to, const void* from, Index bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

/// Primitive. Copies the backend's memory to the host, and waits for it.
inline void copy_to_host(HostMemory&, void* to, const void* from, Index bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

/// Primitive. Sets bytes of the backend's memory to zero.
inline void fill_zero(HostMemory&, void* memory, Index bytes) {
  if (bytes > 0) std::memset(memory, 0, static_cast<std::size_t>(bytes));
}

/// Primitive. Returns when everything that was asked of the backend is done.
inline void synchronize(HostMemory&) {}

namespace detail {

// Minus infinity; 0 for the unsigned integers that magnitudes are compared as.
template <class A>
DSV3_HD constexpr A lowest_of() {
  if constexpr (std::is_unsigned_v<A>)
    return 0;
  else
    return A(-__builtin_bit_cast(float, 0x7F800000));
}

}  // namespace detail

#ifdef __CUDACC__
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675  // nvcc hands pragmas of g++ on, and warns that it does not know them
#endif
/// A team of one worker: what a row kernel gets on a CPU. Iterations of each() must not depend on
/// one another. Sums keep 16 partial sums, so that they vectorise and their order is fixed.
struct SerialTeam {
  /// f(i) for every i in [0, n), in any order.
  DSV3_HD void each(Index n, auto&& f) const {
    // clang's counterpart warns in the caller's file about each body that it can't vectorise.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep
#endif
    for (Index i = 0; i < n; ++i) f(i);
  }

  /// f() by one worker of the team.
  DSV3_HD void once(auto&& f) const { f(); }

  /// Makes what the team has written visible to all of it.
  DSV3_HD void sync() const {}

  /// The sum of f(i) over [0, n).
  DSV3_HD auto sum(Index n, auto&& f) const {
    using A = decltype(f(n));
    constexpr Index lanes = 16;
    A partial[lanes] = {};
    const Index blocked = n - n % lanes;
    for (Index i = 0; i < blocked; i += lanes)
      for (Index k = 0; k < lanes; ++k) partial[k] += f(i + k);
    for (Index i = blocked; i < n; ++i) partial[i - blocked] += f(i);
    for (Index width = lanes / 2; width > 0; width /= 2)
      for (Index k = 0; k < width; ++k) partial[k] += partial[k + width];
    return partial[0];
  }

  /// The sum of f(i) * g(i) over [0, n), each product fused with its addition.
  DSV3_HD auto dot(Index n, auto&& f, auto&& g) const {
    using A = decltype(f(n));
    constexpr Index lanes = 16;
    A partial[lanes] = {};
    const Index blocked = n - n % lanes;
    for (Index i = 0; i < blocked; i += lanes)
      for (Index k = 0; k < lanes; ++k) partial[k] = fma(f(i + k), g(i + k), partial[k]);
    for (Index i = blocked; i < n; ++i)
      partial[i - blocked] = fma(f(i), g(i), partial[i - blocked]);
    for (Index width = lanes / 2; width > 0; width /= 2)
      for (Index k = 0; k < width; ++k) partial[k] += partial[k + width];
    return partial[0];
  }

  /// The largest f(i) over [0, n); minus infinity where n is 0.
  DSV3_HD auto max(Index n, auto&& f) const {
    using A = decltype(f(n));
    A largest = detail::lowest_of<A>();
    for (Index i = 0; i < n; ++i) {
      const A value = f(i);
      largest = value > largest ? value : largest;
    }
    return largest;
  }

  /// The index of the largest f(i) over [0, n), the smallest such index; -1 where every value is
  /// minus infinity or NaN, or n is 0.
  DSV3_HD Index argmax(Index n, auto&& f) const {
    using A = decltype(f(n));
    A largest = detail::lowest_of<A>();
    Index at = -1;
    for (Index i = 0; i < n; ++i) {
      const A value = f(i);
      if (value > largest) {
        largest = value;
        at = i;
      }
    }
    return at;
  }
};

#ifdef __CUDACC__
#pragma nv_diagnostic pop
#endif

/// Primitive. Stable counting sort of the pairs (t, k) by topk_idx(t, k); pair p = t * K + k.
///
/// Errors   std::invalid_argument where a value is not in [0, E), before a slot is written.
/// Shapes   topk_idx [T, K], values in [0, E); offsets [E + 1]; pair_of_slot [T * K]; slot_of_pair
///          [T, K]. Slots offsets[e] ... offsets[e + 1] - 1 hold expert e's pairs in ascending
///          order.
inline void sort_by_expert(HostMemory&, View<const std::int32_t, 2> topk_idx,
                           View<Index, 1> offsets, View<std::int32_t, 1> pair_of_slot,
                           View<std::int32_t, 2> slot_of_pair) {
  const Index tokens = topk_idx.extent(0), k = topk_idx.extent(1), experts = offsets.extent(0) - 1;
  check_equal("sort_by_expert", "size of pair_of_slot", pair_of_slot.extent(0), "pairs",
              tokens * k);
  check_at_most("sort_by_expert", "pairs", tokens * k, "largest int32",
                std::numeric_limits<std::int32_t>::max());
  for (Index e = 0; e <= experts; ++e) offsets(e) = 0;
  for (Index t = 0; t < tokens; ++t)
    for (Index j = 0; j < k; ++j) {
      const Index e = topk_idx(t, j);
      if (e < 0 || e >= experts)
        throw std::invalid_argument("sort_by_expert: topk_idx[" + std::to_string(t) + ", " +
                                    std::to_string(j) + "] (" + std::to_string(e) +
                                    ") must be at least 0 and below the experts (" +
                                    std::to_string(experts) + ")");
      ++offsets(e + 1);
    }
  for (Index e = 0; e < experts; ++e) offsets(e + 1) += offsets(e);
  for (Index t = 0; t < tokens; ++t)  // offsets(e) runs from the start of segment e to its end
    for (Index j = 0; j < k; ++j) {
      const Index slot = offsets(topk_idx(t, j))++;
      pair_of_slot(slot) = static_cast<std::int32_t>(t * k + j);
      slot_of_pair(t, j) = static_cast<std::int32_t>(slot);
    }
  for (Index e = experts; e > 0; --e) offsets(e) = offsets(e - 1);
  offsets(0) = 0;
}

}  // namespace dsv3
