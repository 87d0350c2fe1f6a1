// Crew: a backend whose team is three threads, as a GPU's is a block of them. Under a thread
// sanitizer it finds row kernels that read what another worker wrote without team.sync().
#pragma once

#include <barrier>
#include <cstring>
#include <dsv3/backend/cpu.hpp>
#include <dsv3/infer/sample_row.hpp>
#include <limits>
#include <thread>
#include <vector>

namespace crew {

using dsv3::Index;

inline constexpr int size = 3;  // divides no group and no width, so that columns change hands

struct Crew : dsv3::HostMemory {
  dsv3::Cpu cpu{1};  // for what is no row kernel
};

/// The contract of dsv3::SerialTeam. Every function is reached by all workers.
class Team {
 public:
  struct Shared {
    std::barrier<> barrier{size};
    alignas(16) std::byte value[size][16];
  };
  Team(Shared& shared, int worker) : shared_(&shared), worker_(worker) {}

  void each(Index n, auto&& f) const {
    for (Index i = worker_; i < n; i += size) f(i);
  }
  void once(auto&& f) const {
    if (worker_ == 0) f();
  }
  void sync() const { shared_->barrier.arrive_and_wait(); }

  auto sum(Index n, auto&& f) const {
    using A = decltype(f(n));
    A own = A(0);
    each(n, [&](Index i) { own += f(i); });
    return combine(own, [](A a, A b) { return a + b; });
  }
  auto dot(Index n, auto&& f, auto&& g) const {
    using A = decltype(f(n));
    A own = A(0);
    each(n, [&](Index i) { own = dsv3::fma(f(i), g(i), own); });
    return combine(own, [](A a, A b) { return a + b; });
  }
  auto max(Index n, auto&& f) const {
    using A = decltype(f(n));
    A own = -std::numeric_limits<A>::infinity();
    each(n, [&](Index i) {
      const A value = f(i);
      own = value > own ? value : own;
    });
    return combine(own, [](A a, A b) { return b > a ? b : a; });
  }
  Index argmax(Index n, auto&& f) const {
    using A = decltype(f(n));
    struct Best {
      A value;
      Index at;
    };
    Best own = {-std::numeric_limits<A>::infinity(), -1};
    each(n, [&](Index i) {
      const A value = f(i);
      if (value > own.value) own = {value, i};
    });
    return combine(own,
                   [](Best a, Best b) {
                     const bool right =
                         b.at >= 0 && (b.value > a.value || (b.value == a.value && b.at < a.at));
                     return right || a.at < 0 ? b : a;
                   })
        .at;
  }

 private:
  template <class A, class F>
  A combine(A own, F f) const {
    static_assert(sizeof(A) <= sizeof(Shared::value[0]));
    sync();
    std::memcpy(shared_->value[worker_], &own, sizeof(A));
    sync();
    A values[size];
    for (int i = 0; i < size; ++i) std::memcpy(&values[i], shared_->value[i], sizeof(A));
    for (int i = 1; i < size; ++i) values[0] = f(values[0], values[i]);
    return values[0];
  }

  Shared* shared_;
  int worker_;
};

template <class Body>
void for_each_row(Crew&, Index rows, Body body) {
  if (rows == 0) return;
  Team::Shared shared;
  std::vector<std::thread> threads;
  for (int worker = 0; worker < size; ++worker)
    threads.emplace_back([&shared, body, rows, worker] {
      const Team team(shared, worker);
      for (Index row = 0; row < rows; ++row) {
        body(team, row);
        team.sync();
      }
    });
  for (auto& thread : threads) thread.join();
}

/// Tokens are chosen where the logits are.
template <class A>
void fused_rows(Crew& crew, Index rows, const dsv3::detail::SampleRow<A>& row) {
  for_each_row(crew, rows, row);
}

template <class... Args>
void gemm(Crew& crew, Args... args) {
  gemm(crew.cpu, args...);
}
template <class... Args>
void batched_gemm(Crew& crew, Args... args) {
  batched_gemm(crew.cpu, args...);
}
template <class... Args>
void grouped_gemm(Crew& crew, Args... args) {
  grouped_gemm(crew.cpu, args...);
}

}  // namespace crew
