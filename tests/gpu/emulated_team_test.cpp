// BlockTeam on emulated blocks against SerialTeam.
#include <doctest/doctest.h>

#include <cmath>
#include <dsv3/backend/cuda/block_team.hpp>
#include <dsv3/backend/host.hpp>
#include <dsv3/core/philox.hpp>
#include <vector>

#include "gpu/emulated_block.hpp"

using namespace dsv3;
using detail::BlockTeam;
using emulated::Block;
using emulated::Machine;

namespace {

constexpr Index lengths[] = {0, 1, 2, 31, 32, 33, 127, 128, 129, 256, 1000};
const double infinity = std::numeric_limits<double>::infinity();
const double nan = std::numeric_limits<double>::quiet_NaN();

template <class A>
std::vector<A> normals(Index n, std::uint64_t stream) {
  std::vector<A> values(static_cast<std::size_t>(n));
  const Philox philox(1, stream);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = A(normal(philox, i));
  return values;
}

// What every thread of the block returns for f(team).
template <class B, class F>
auto of_threads(Machine& machine, F&& f) {
  using Result = decltype(f(std::declval<BlockTeam<B>>()));
  std::vector<Result> results(B::size);
  machine.block(B::size, [&](int thread) {
    unsigned turn = 0;
    results[static_cast<std::size_t>(thread)] = f(BlockTeam<B>(B(machine, thread), turn));
  });
  return results;
}

template <class A>
bool same_bits(const std::vector<A>& values) {
  for (const A& value : values)
    if (std::memcmp(&value, &values[0], sizeof(A)) != 0) return false;
  return true;
}

// Both NaN, or the same value.
template <class A>
bool alike(A a, A b) {
  return a == b || (a != a && b != b);
}

template <class A, int size>
void compare_with_serial() {
  const SerialTeam serial;
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    Machine machine(seed);
    for (const Index n : lengths) {
      CAPTURE(n);
      auto x = normals<A>(n, 1);
      const auto y = normals<A>(n, 2);
      const auto at = [&](Index i) { return x[static_cast<std::size_t>(i)]; };
      const auto other = [&](Index i) { return y[static_cast<std::size_t>(i)]; };
      const auto compare = [&](bool finite) {
        const auto sums = of_threads<Block<size>>(machine, [&](auto t) { return t.sum(n, at); });
        const auto dots =
            of_threads<Block<size>>(machine, [&](auto t) { return t.dot(n, at, other); });
        const auto largest = of_threads<Block<size>>(machine, [&](auto t) { return t.max(n, at); });
        const auto places =
            of_threads<Block<size>>(machine, [&](auto t) { return t.argmax(n, at); });
        CHECK((same_bits(sums) && same_bits(dots) && same_bits(largest) && same_bits(places)));
        CHECK(largest[0] == serial.max(n, at));
        CHECK(places[0] == serial.argmax(n, at));
        const A sum = serial.sum(n, at), dot = serial.dot(n, at, other);
        if (!finite) {
          CHECK(alike(sums[0], sum));
          CHECK(alike(dots[0], dot));
          return;
        }
        const A magnitudes = serial.sum(n, [&](Index i) { return std::fabs(at(i)); });
        const A products = serial.sum(n, [&](Index i) { return std::fabs(at(i) * other(i)); });
        const A ulp = std::numeric_limits<A>::epsilon();
        CHECK(std::fabs(sums[0] - sum) <= 8 * ulp * magnitudes);
        CHECK(std::fabs(dots[0] - dot) <= 8 * ulp * products);
      };
      compare(true);
      if (n == 0) continue;
      auto& middle = x[static_cast<std::size_t>(n / 2)];
      middle = A(-infinity);
      compare(false);
      middle = A(infinity);
      compare(false);
      x[0] = middle;  // a tie
      compare(false);
      middle = A(nan);
      compare(false);
      x.assign(x.size(), A(-infinity));
      compare(false);
      x.back() = A(1);
      compare(false);
      x.assign(x.size(), A(nan));
      compare(false);
    }
  }
}

// A block that forgets to wait.
struct Hasty : Block<128> {
  using Block<128>::Block;
  void barrier() const {}
};

}  // namespace

TEST_CASE(
    "each() takes every index once, an index always in the same thread; once() is one thread") {
  Machine machine(1);
  for (const Index n : lengths) {
    std::vector<int> taker(static_cast<std::size_t>(n), -1), times(taker.size());
    int once = 0;
    machine.block(128, [&](int thread) {
      unsigned turn = 0;
      const BlockTeam<Block<128>> team(Block<128>(machine, thread), turn);
      for (int repeat = 0; repeat < 2; ++repeat)
        team.each(n, [&](Index i) {
          auto& before = taker[static_cast<std::size_t>(i)];
          times[static_cast<std::size_t>(i)] += before == -1 || before == thread;
          before = thread;
        });
      team.once([&] { ++once; });
    });
    CHECK(std::count(times.begin(), times.end(), 2) == n);
    CHECK(once == 1);
  }
}

TEST_CASE("sum, dot, max and argmax of a block are SerialTeam's, the same in all threads") {
  compare_with_serial<float, 128>();
  compare_with_serial<double, 128>();
  compare_with_serial<float, 32>();
  compare_with_serial<double, 256>();
}

TEST_CASE_TEMPLATE("the largest of unsigned integers is SerialTeam's", A, std::uint32_t,
                   std::uint64_t) {
  Machine machine(1);
  for (const Index n : lengths) {
    const auto value = [&](Index i) { return A(i * 2654435761 % 1009) << (sizeof(A) * 8 - 12); };
    const auto largest = of_threads<Block<128>>(machine, [&](auto t) { return t.max(n, value); });
    CHECK(same_bits(largest));
    CHECK(largest[0] == SerialTeam{}.max(n, value));
  }
}

TEST_CASE("a sum has one order, whatever the order in which the threads run") {
  const auto x = normals<float>(1000, 1);
  const auto at = [&](Index i) { return x[static_cast<std::size_t>(i)]; };
  std::vector<float> own(128, 0.0f);  // of each thread; then each warp's sum in its first thread
  for (Index i = 0; i < 1000; ++i) own[static_cast<std::size_t>(i % 128)] += at(i);
  for (std::size_t by = 16; by > 0; by /= 2)
    for (std::size_t i = 0; i < 128; ++i)
      if (i % 32 < by) own[i] += own[i + by];
  const float sum = own[0] + own[32] + own[64] + own[96];
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    Machine machine(seed);
    const auto sums = of_threads<Block<128>>(machine, [&](auto t) { return t.sum(1000, at); });
    CHECK(sums == std::vector<float>(128, sum));
  }
}

TEST_CASE("sums one after the other, of whatever types, do not overwrite one another") {
  Machine machine(5);
  const auto wrong = of_threads<Block<128>>(machine, [&](auto team) {
    int errors = 0;
    for (Index n = 0; n < 40; ++n) {
      errors += team.sum(n, [](Index) { return 1.0f; }) != float(n);
      errors += team.argmax(n, [](Index i) { return double(i); }) != n - 1;
      errors +=
          team.max(n, [](Index i) { return std::uint32_t(i); }) != (n ? std::uint32_t(n - 1) : 0u);
    }
    return errors;
  });
  CHECK(wrong == std::vector<int>(128, 0));
}

TEST_CASE("what each() wrote is there for all after sync()") {
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    Machine machine(seed);
    std::vector<int> value(1000, -1);
    const auto wrong = of_threads<Block<128>>(machine, [&](auto team) {
      team.each(1000, [&](Index i) { value[static_cast<std::size_t>(i)] = int(i); });
      team.sync();
      int errors = 0;
      for (Index i = 0; i < 1000; ++i) errors += value[static_cast<std::size_t>(i)] != int(i);
      return errors;
    });
    CHECK(wrong == std::vector<int>(128, 0));
  }
}

TEST_CASE("the emulator shows it when a barrier is missing") {
  Machine machine(1);
  const auto ones = [](auto team) { return team.sum(1000, [](Index) { return 1.0f; }); };
  SUBCASE("between writing and reading the shared memory") {
    const auto sums = of_threads<Hasty>(machine, ones);
    CHECK(std::count(sums.begin(), sums.end(), 1000.0f) < 128);
    CHECK(of_threads<Block<128>>(machine, ones) == std::vector<float>(128, 1000.0f));
  }
  SUBCASE("where two sums in a row use the same half of the shared memory") {
    std::vector<int> wrong(128);
    machine.block(128, [&](int thread) {
      for (Index n = 1; n < 40; ++n) {
        unsigned turn = 0;
        const BlockTeam<Block<128>> team(Block<128>(machine, thread), turn);
        wrong[static_cast<std::size_t>(thread)] +=
            team.sum(n, [](Index) { return 1.0f; }) != float(n);
      }
    });
    CHECK(std::count(wrong.begin(), wrong.end(), 0) < 128);
  }
  SUBCASE("after each()") {
    std::vector<int> value(128, -1);
    const auto right = of_threads<Block<128>>(machine, [&](auto team) {
      team.each(128, [&](Index i) { value[static_cast<std::size_t>(i)] = int(i); });
      int sum = 0;
      for (const int v : value) sum += v;
      return sum == 127 * 64;
    });
    CHECK(std::count(right.begin(), right.end(), true) < 128);
  }
}

TEST_CASE("the emulator shows it when not all threads reach a barrier or a shuffle") {
  Machine machine(1);
  const auto message = "emulated block: not all threads reach the same barriers and shuffles";
  CHECK_THROWS_WITH(machine.block(64,
                                  [&](int thread) {
                                    if (thread != 7) Block<64>(machine, thread).barrier();
                                  }),
                    message);
  CHECK_THROWS_WITH(machine.block(64,
                                  [&](int thread) {
                                    if (thread != 7) Block<64>(machine, thread).shuffle_down(1, 1);
                                  }),
                    message);
  const auto ones = [](auto team) { return team.sum(5, [](Index) { return 1.0f; }); };
  CHECK(of_threads<Block<128>>(machine, ones) == std::vector<float>(128, 5.0f));
}
