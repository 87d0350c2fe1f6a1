// Cpu: the threads of one machine, as tag and context of every primitive.
#pragma once

#include <algorithm>
#include <dsv3/backend/cpu/features.hpp>
#include <dsv3/backend/cpu/thread_pool.hpp>
#include <dsv3/backend/cpu/tile.hpp>
#include <dsv3/backend/host.hpp>
#include <dsv3/core/buffer.hpp>

namespace dsv3 {

/// Tag and context in one: the first argument of every primitive, passed by reference. Owns its
/// threads (1 starts none) and a workspace of fixed size for each; primitives allocate nothing.
///
/// Deterministic: the bits of a result depend on the operands and on the lengths of its sums, not
/// on the number of threads, nor on what else is computed in the same call. They are promised for
/// one binary, not across instruction sets.
///
/// One caller at a time; several objects live side by side.
///
/// Errors   std::invalid_argument for a number of threads outside [1, 4096]; std::runtime_error
///          when the processor cannot run what was compiled; std::bad_alloc, std::system_error.
class Cpu : public HostMemory {
 public:
  static constexpr int max_threads = 4096;

  explicit Cpu(int threads = default_threads())
      : pool_(checked(threads)), workspace_(*this, workspace_bytes(threads)) {}
  Cpu(const Cpu&) = delete;
  Cpu& operator=(const Cpu&) = delete;

  int threads() const { return pool_.threads(); }

  /// The threads that the machine runs at once.
  static int default_threads() {
    const unsigned n = std::thread::hardware_concurrency();
    return n == 0 ? 1 : static_cast<int>(std::min(n, unsigned{max_threads}));
  }

  /// Bytes of workspace that a Cpu of so many threads owns.
  static constexpr Index workspace_bytes(int threads) {
    return detail::TileLimits::bytes * threads;
  }

  /// The workspace of one thread: workspace_bytes(1) bytes, aligned to 64.
  std::byte* workspace(int worker) const {
    return static_cast<std::byte*>(workspace_.data()) + workspace_bytes(1) * worker;
  }

  /// body(first, last, worker) for chunks of at most `chunk` units that cover [0, count), in any
  /// order; worker, in [0, threads()), is the thread that runs it. Not to be nested.
  /// Errors   the first exception of a body, after every thread has left the loop.
  template <class Body>
  void parallel(Index count, Index chunk, Body body) {
    pool_.run(count, chunk, body);
  }

 private:
  static int checked(int threads) {
    check_at_most("Cpu", "one", 1, "threads", threads);
    check_at_most("Cpu", "threads", threads, "max_threads", max_threads);
    require(cpu_features());
    return threads;
  }

  detail::ThreadPool pool_;
  Buffer<HostMemory> workspace_;
};

/// Primitive. Calls body(team, row) for every row in [0, rows), in any order.
template <class Body>
void for_each_row(Cpu& cpu, Index rows, Body body) {
  // A few rows are done sooner than another thread has come.
  const Index chunk = rows <= 8 ? 8 : std::max<Index>(1, rows / (Index{8} * cpu.threads()));
  cpu.parallel(rows, chunk, [&](Index first, Index last, int) {
    for (Index row = first; row < last; ++row) body(SerialTeam{}, row);
  });
}

}  // namespace dsv3
