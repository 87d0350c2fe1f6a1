// What this machine can do at most, measured: the floor beside every other measurement.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <dsv3/backend/cpu/simd.hpp>
#include <thread>
#include <vector>

namespace bench {

using dsv3::Index;

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Runs f(thread) on so many threads that start together; the seconds until the last one is done.
template <class F>
double timed_on(int threads, F f) {
  std::atomic<int> waiting{threads};
  std::vector<double> begin(static_cast<std::size_t>(threads)), end(begin);
  auto run = [&](int thread) {
    waiting.fetch_sub(1);
    while (waiting.load() > 0) {
    }
    begin[static_cast<std::size_t>(thread)] = seconds();
    f(thread);
    end[static_cast<std::size_t>(thread)] = seconds();
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (auto& other : others) other.join();
  return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

/// 10^9 operations a second of a product's own instruction, operands in registers: 2 for each
/// product and its addition.
template <class Kernel>
double arithmetic_peak(int threads) {
  using S = typename Kernel::S;
  constexpr int chains = S::rows * 2;
  constexpr Index rounds = 400000;
  alignas(64) typename Kernel::Packed operand[64] = {};
  std::vector<double> sink(static_cast<std::size_t>(threads));
  const double elapsed = timed_on(threads, [&](int thread) {
    auto a = Kernel::broadcast(operand);
    auto b = Kernel::panel(operand);
    typename S::Vector sum[chains];
    for (int i = 0; i < chains; ++i) sum[i] = S::zero();
    for (Index r = 0; r < rounds; ++r) {
#if defined(__x86_64__)
      asm volatile("" : "+x"(a), "+x"(b));  // the compiler must not see that nothing changes
#endif
#pragma GCC unroll 32
      for (int i = 0; i < chains; ++i) sum[i] = Kernel::multiply_add(a, b, sum[i]);
    }
    typename Kernel::Sum values[S::lanes];
    for (int i = 1; i < chains; ++i) sum[0] = S::add(sum[0], sum[i]);
    S::store(values, sum[0]);
    sink[static_cast<std::size_t>(thread)] = static_cast<double>(values[0]);
  });
  return 2e-9 * static_cast<double>(threads * rounds * chains * S::lanes * Kernel::step) / elapsed;
}

/// 10^9 bytes a second, each thread reading memory of its own far larger than its caches.
inline double memory_read_peak(int threads) {
  constexpr Index bytes = Index{256} << 20;
  static std::vector<std::vector<float>> memory;
  memory.resize(std::max(memory.size(), static_cast<std::size_t>(threads)));
  for (auto& block : memory) block.resize(bytes / sizeof(float), 1.0f);
  std::vector<double> sink(static_cast<std::size_t>(threads));
  const double elapsed = timed_on(threads, [&](int thread) {
    using S = dsv3::detail::Simd<float>;
    const float* p = memory[static_cast<std::size_t>(thread)].data();
    constexpr Index streams = 4, length = bytes / Index{sizeof(float)} / streams;
    typename S::Vector sum[streams];
    for (auto& s : sum) s = S::zero();
    for (Index i = 0; i < length; i += S::lanes)
      for (Index s = 0; s < streams; ++s) sum[s] = S::add(sum[s], S::load(p + s * length + i));
    float values[S::lanes];
    for (Index s = 1; s < streams; ++s) sum[0] = S::add(sum[0], sum[s]);
    S::store(values, sum[0]);
    sink[static_cast<std::size_t>(thread)] = static_cast<double>(values[0]);
  });
  return 1e-9 * static_cast<double>(threads * bytes) / elapsed;
}

}  // namespace bench
