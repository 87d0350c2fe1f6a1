// Emulated: a backend whose row kernels and sorting run by the code of a GPU's blocks, on the host.
#pragma once

#include <cxxabi.h>

#include <cmath>
#include <cstdlib>
#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/cuda/block_sort.hpp>
#include <dsv3/backend/cuda/block_team.hpp>
#include <dsv3/infer/sample_row.hpp>
#include <map>
#include <set>
#include <string>
#include <type_traits>
#include <typeinfo>

#include "emulated_block.hpp"

namespace emulated {

inline constexpr int team_size = 128;

/// The rows of a kernel are spread over a few blocks. Products and what else is no kernel of rows
/// are done by a Cpu. Like Guarded it derives from nothing of the library.
///
/// Where it verifies, each team's result is compared with a sum in twice the precision or with
/// SerialTeam's, and in the first launches of each kernel that adds up no floats the memory that it
/// leaves with what Cpu leaves, bit for bit. Verifying takes barriers, which may hide that others
/// are missing: run the same without, and compare.
class Emulated {
 public:
  explicit Emulated(std::uint64_t seed = 1, bool verifies = false)
      : verifies_(verifies), machine_(seed) {}
  Emulated(const Emulated&) = delete;
  Emulated& operator=(const Emulated&) = delete;

  void* take(Index bytes) {
    void* memory = allocate(cpu_, bytes);
    blocks_[static_cast<std::byte*>(memory)] = bytes;
    return memory;
  }
  void give_back(void* memory, Index bytes) {
    blocks_.erase(static_cast<std::byte*>(memory));
    deallocate(cpu_, memory, bytes);
  }

  dsv3::Cpu& cpu() { return cpu_; }
  Machine& machine() { return machine_; }
  bool verifies() const { return verifies_; }

  /// Names of the row kernels that have run.
  const std::map<std::string, int>& launches() const { return launches_; }
  /// Names of those that were compared with Cpu bit for bit.
  const std::set<std::string>& compared() const { return compared_; }
  /// What was found wrong, a sentence each.
  const std::vector<std::string>& faults() const { return faults_; }
  /// The largest error of a sum, in units of 2^-24 (double: 2^-53) of the sum of magnitudes.
  double largest_error() const { return largest_error_; }

  template <class Body>
  void rows(Index rows, const Body& body);

  // Of a team, of thread 0: what it found, and whether it added up floats.
  void found_wrong(const char* function, Index n) {
    if (faults_.size() < 20)
      faults_.push_back(kernel_ + ": " + function + " over " + std::to_string(n) + " elements");
  }
  void found_error(double error) { largest_error_ = std::fmax(largest_error_, error); }
  void adds_floats() { adds_floats_ = true; }

 private:
  using Memory = std::vector<std::vector<std::byte>>;

  Memory snapshot() const {
    Memory copy;
    for (const auto& [begin, bytes] : blocks_) copy.emplace_back(begin, begin + bytes);
    return copy;
  }
  void restore(const Memory& memory) {
    std::size_t i = 0;
    for (const auto& [begin, bytes] : blocks_) {
      std::copy(memory[i].begin(), memory[i].end(), begin);
      ++i;
    }
  }
  void compare(const Memory& memory) {
    std::size_t i = 0;
    for (const auto& [begin, bytes] : blocks_) {
      for (Index at = 0; at < bytes; ++at)
        if (begin[at] != memory[i][static_cast<std::size_t>(at)]) {
          faults_.push_back(kernel_ + ": byte " + std::to_string(at) + " of allocation " +
                            std::to_string(i) + " differs from Cpu's");
          return;
        }
      ++i;
    }
  }

  static constexpr int launches_compared = 4;

  bool verifies_;
  dsv3::Cpu cpu_{1};
  Machine machine_;
  std::map<std::byte*, Index> blocks_;
  std::map<std::string, int> launches_;
  std::set<std::string> compared_;
  std::vector<std::string> faults_;
  std::string kernel_;
  double largest_error_ = 0;
  bool adds_floats_ = false;
};

/// BlockTeam, and what verifies it.
class Team : public dsv3::detail::BlockTeam<Block<team_size>> {
 public:
  using Base = dsv3::detail::BlockTeam<Block<team_size>>;
  Team(Emulated& backend, Block<team_size> block, unsigned& turn)
      : Base(block, turn), backend_(&backend), block_(block) {}

  auto sum(Index n, auto&& f) const {
    const auto total = Base::sum(n, f);
    verify_sum("sum", n, total, [&](Index i) { return Wide<decltype(f(n))>(f(i)); });
    return total;
  }
  auto dot(Index n, auto&& f, auto&& g) const {
    const auto total = Base::dot(n, f, g);
    verify_sum("dot", n, total,
               [&](Index i) { return Wide<decltype(f(n))>(f(i)) * Wide<decltype(f(n))>(g(i)); });
    return total;
  }
  auto max(Index n, auto&& f) const {
    const auto largest = Base::max(n, f);
    verify("max", n, largest, [&] { return largest == dsv3::SerialTeam{}.max(n, f); });
    return largest;
  }
  Index argmax(Index n, auto&& f) const {
    const Index at = Base::argmax(n, f);
    verify("argmax", n, at, [&] { return at == dsv3::SerialTeam{}.argmax(n, f); });
    return at;
  }

 private:
  template <class A>
  using Wide = std::conditional_t<std::is_same_v<A, float>, double, long double>;

  template <class A>
  void verify_sum(const char* function, Index n, A total, auto&& term) const {
    if constexpr (std::is_floating_point_v<A>) {
      backend_->adds_floats();
      verify(function, n, total, [&] {
        Wide<A> exact = 0, magnitudes = 0;
        for (Index i = 0; i < n; ++i) {
          exact += term(i);
          magnitudes += std::abs(term(i));
        }
        if (!(magnitudes < std::numeric_limits<A>::max()))
          return total != total || std::abs(exact) > std::numeric_limits<A>::max() / 2;
        if (magnitudes == 0) return total == 0;
        const Wide<A> error = std::abs(Wide<A>(total) - exact) / magnitudes;
        const double units = static_cast<double>(error / std::numeric_limits<A>::epsilon() * 2);
        // What is below the smallest normal number is rounded to a multiple of the smallest.
        if (magnitudes > std::numeric_limits<A>::min()) backend_->found_error(units);
        return units <= 8 || magnitudes <= std::numeric_limits<A>::min();
      });
    }
  }

  // The same value in all threads, of which thread 0 says whether it is right.
  template <class A>
  void verify(const char* function, Index n, A value, auto&& right) const {
    if (!backend_->verifies()) return;
    alignas(16) static std::byte first[Machine::largest_value];  // no other code's memory
    block_.barrier();
    if (block_.thread() == 0) {
      std::memcpy(first, &value, sizeof(A));
      if (!right()) backend_->found_wrong(function, n);
    }
    block_.barrier();
    if (std::memcmp(first, &value, sizeof(A)) != 0) backend_->found_wrong(function, n);
  }

  Emulated* backend_;
  Block<team_size> block_;
};

template <class Body>
void Emulated::rows(Index rows, const Body& body) {
  static_assert(std::is_trivially_copyable_v<Body>, "a launch on a device copies the row kernel");
  if (rows == 0) return;
  int status = 0;
  char* name = abi::__cxa_demangle(typeid(Body).name(), nullptr, nullptr, &status);
  kernel_ = name;
  std::free(name);
  const bool comparing = verifies_ && launches_[kernel_] < launches_compared;
  ++launches_[kernel_];
  Memory before;
  if (comparing) before = snapshot();
  adds_floats_ = false;
  const Index blocks = std::min<Index>(rows, 3);
  for (Index b = 0; b < blocks; ++b)
    machine_.block(team_size, [&](int thread) {
      unsigned turn = 0;
      const Team team(*this, Block<team_size>(machine_, thread), turn);
      dsv3::detail::run_rows(team, b, blocks, rows, body);
    });
  if (!comparing || adds_floats_) return;
  const Memory after = snapshot();
  restore(before);
  for_each_row(cpu_, rows, body);
  compare(after);
  compared_.insert(kernel_);
}

inline void* allocate(Emulated& backend, Index bytes) { return backend.take(bytes); }
inline void deallocate(Emulated& backend, void* memory, Index bytes) noexcept {
  backend.give_back(memory, bytes);
}
inline void copy_to_backend(Emulated& backend, void* to, const void* from, Index bytes) {
  copy_to_backend(backend.cpu(), to, from, bytes);
}
inline void copy_to_host(Emulated& backend, void* to, const void* from, Index bytes) {
  copy_to_host(backend.cpu(), to, from, bytes);
}
inline void fill_zero(Emulated& backend, void* memory, Index bytes) {
  fill_zero(backend.cpu(), memory, bytes);
}
inline void synchronize(Emulated&) {}

template <class Body>
void for_each_row(Emulated& backend, Index rows, Body body) {
  backend.rows(rows, body);
}

/// Tokens are chosen where the logits are, as on Cuda.
template <class A>
void fused_rows(Emulated& backend, Index rows, const dsv3::detail::SampleRow<A>& row) {
  backend.rows(rows, row);
}

template <class... Args>
void gemm(Emulated& backend, Args... args) {
  gemm(backend.cpu(), args...);
}
template <class... Args>
void batched_gemm(Emulated& backend, Args... args) {
  batched_gemm(backend.cpu(), args...);
}
template <class... Args>
void grouped_gemm(Emulated& backend, Args... args) {
  grouped_gemm(backend.cpu(), args...);
}

/// What the kernels of a sort found wrong, as Cuda has it.
struct Fault {
  int set = 0;
  Index row = 0, column = 0, value = 0, bound = 0;
};

/// The three kernels of sort_by_expert(Cuda&, ...), within so much workspace. Shared and workspace
/// memory are poisoned.
inline void sort_in(Machine& machine, Index workspace_bytes, Fault& fault,
                    dsv3::View<const std::int32_t, 2> topk_idx, dsv3::View<Index, 1> offsets,
                    dsv3::View<std::int32_t, 1> pair_of_slot,
                    dsv3::View<std::int32_t, 2> slot_of_pair) {
  using dsv3::detail::ExpertSort;
  using SortBlock = Block<ExpertSort::threads>;
  std::vector<std::int32_t> workspace(static_cast<std::size_t>(workspace_bytes / 4), -1);
  const ExpertSort sort(topk_idx, offsets, pair_of_slot, slot_of_pair, workspace.data(),
                        workspace_bytes);
  if (sort.pairs == 0) {
    std::fill(offsets.data, offsets.data + offsets.size(), Index{0});
    return;
  }
  const auto launch = [&](Index blocks, auto&& f) {
    for (Index b = blocks; b-- > 0;) {  // no order is promised
      std::vector<std::int32_t> shared(static_cast<std::size_t>(sort.shared_words()), -1);
      std::vector<std::int32_t> sums(ExpertSort::threads, -1);
      machine.block(ExpertSort::threads, [&](int thread) {
        f(SortBlock(machine, thread), b, shared.empty() ? nullptr : shared.data(), sums.data());
      });
    }
  };
  launch(sort.chunks, [&](auto block, Index c, std::int32_t* shared, std::int32_t* first) {
    sort.count(block, c, shared, first);
  });
  launch(sort.prefix_blocks(), [&](auto block, Index b, std::int32_t*, std::int32_t* sums) {
    sort.prefix(block, b, sums);
  });
  launch(sort.chunks, [&](auto block, Index c, std::int32_t* shared, std::int32_t* sums) {
    sort.place(block, c, shared, sums, &fault);
  });
}

inline void sort_by_expert(Emulated& backend, dsv3::View<const std::int32_t, 2> topk_idx,
                           dsv3::View<Index, 1> offsets, dsv3::View<std::int32_t, 1> pair_of_slot,
                           dsv3::View<std::int32_t, 2> slot_of_pair) {
  Fault fault;
  sort_in(backend.machine(), Index{1} << 20, fault, topk_idx, offsets, pair_of_slot, slot_of_pair);
}

}  // namespace emulated
