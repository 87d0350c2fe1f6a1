// A pool of threads for loops over independent units.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <dsv3/core/view.hpp>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace dsv3::detail {

// Tells the core that this thread is waiting for another.
inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Runs loops on `threads` threads, the caller's among them; 1 starts none. One loop at a time, from
// one caller; a unit must not start another loop on the same pool.
//
// Threads take chunks of units from a counter. A thread that is late finds the loop closed and is
// not waited for, so a disturbed core delays nobody.
class ThreadPool {
 public:
  explicit ThreadPool(int threads) {
    threads_.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int worker = 1; worker < threads; ++worker)
        threads_.emplace_back([this, worker] { work(worker); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { stop(); }

  int threads() const { return static_cast<int>(threads_.size()) + 1; }

  // body(first, last, worker) for chunks that cover [0, count); worker in [0, threads()). Rethrows
  // the first exception of a unit after every thread has left the loop; units that had not begun by
  // then are skipped.
  template <class Body>
  void run(Index count, Index chunk, Body& body) {
    if (count <= 0) return;
    if (threads_.empty() || count <= chunk) {
      body(Index{0}, count, 0);
      return;
    }
    job_.call = [](void* context, Index first, Index last, int worker) {
      (*static_cast<Body*>(context))(first, last, worker);
    };
    job_.context = std::addressof(body);
    job_.count = count;
    job_.chunk = chunk;
    job_.next.store(0, std::memory_order_relaxed);
    job_.failure = nullptr;
    open();
    drain(0);
    close();
    if (job_.failure) std::rethrow_exception(std::exchange(job_.failure, nullptr));
  }

 private:
  struct Job {
    void (*call)(void*, Index, Index, int) = nullptr;
    void* context = nullptr;
    Index count = 0, chunk = 1;
    std::atomic<Index> next{0};
    std::exception_ptr failure;
    std::mutex failure_mutex;
  };

  // The gate holds the number of the loop, whether it may be joined, and how many threads are in.
  static constexpr std::uint64_t inside = 0xFFFF, is_open = 0x10000, one_loop = 0x20000;
  static constexpr int spins = 4000;  // about 50 to 100 microseconds before a thread sleeps

  void open() {
    const std::uint64_t gate = gate_.load(std::memory_order_relaxed);
    gate_.store((gate + one_loop) | is_open);  // sequentially consistent: see work()
    if (sleeping_.load() > 0) {
      { const std::lock_guard lock(mutex_); }
      wake_.notify_all();
    }
  }

  void close() {
    gate_.fetch_and(~is_open, std::memory_order_acq_rel);
    for (int i = 0; gate_.load(std::memory_order_acquire) & inside; ++i)
      i < spins ? pause_briefly() : std::this_thread::yield();
  }

  void drain(int worker) {
    for (;;) {
      const Index first = job_.next.fetch_add(job_.chunk, std::memory_order_relaxed);
      if (first >= job_.count) return;
      const Index last = first + job_.chunk < job_.count ? first + job_.chunk : job_.count;
      try {
        job_.call(job_.context, first, last, worker);
      } catch (...) {
        const std::lock_guard lock(job_.failure_mutex);
        if (!job_.failure) job_.failure = std::current_exception();
        job_.next.store(job_.count, std::memory_order_relaxed);
      }
    }
  }

  // Whether the gate shows an open loop that this thread has not worked in yet.
  static bool is_new(std::uint64_t gate, std::uint64_t seen) {
    return (gate & is_open) && gate / one_loop != seen;
  }

  void work(int worker) {
    std::uint64_t seen = 0;
    for (;;) {
      std::uint64_t gate = gate_.load(std::memory_order_acquire);
      for (int i = 0; i < spins && !is_new(gate, seen) && !stopping_.load(); ++i) {
        pause_briefly();
        gate = gate_.load(std::memory_order_acquire);
      }
      if (!is_new(gate, seen)) {
        // Either open() sees the count of sleepers, or this thread sees the open gate.
        std::unique_lock lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return is_new(gate = gate_.load(), seen) || stopping_.load(); });
        sleeping_.fetch_sub(1);
      }
      if (stopping_.load()) return;
      if (!gate_.compare_exchange_strong(gate, gate + 1, std::memory_order_acq_rel)) continue;
      seen = gate / one_loop;
      drain(worker);
      gate_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_.store(true);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  Job job_;
  alignas(64) std::atomic<std::uint64_t> gate_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace dsv3::detail
