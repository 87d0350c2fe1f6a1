#include <doctest/doctest.h>

#include <dsv3/backend/cpu/thread_pool.hpp>
#include <numeric>
#include <stdexcept>
#include <string>

using namespace dsv3;
using dsv3::detail::ThreadPool;

namespace {

TEST_CASE("ThreadPool covers every unit once, in chunks of at most the size asked for") {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (const Index count : {1, 2, 17, 1000})
      for (const Index chunk : {1, 7, 2000}) {
        std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
        std::atomic<bool> sound{true};
        auto body = [&](Index first, Index last, int worker) {
          if (worker < 0 || worker >= threads || last > count) sound = false;
          if (threads > 1 && last - first > chunk) sound = false;
          for (Index i = first; i < last; ++i) ++calls[static_cast<std::size_t>(i)];
        };
        pool.run(count, chunk, body);
        CHECK(sound);
        int wrong = 0;
        for (const auto& n : calls) wrong += n != 1;
        CHECK(wrong == 0);
      }
  }
}

TEST_CASE("ThreadPool: each thread has a number of its own while it works") {
  ThreadPool pool(3);
  std::vector<int> inside(3, 0);
  std::atomic<bool> alone{true};
  auto body = [&](Index, Index, int worker) {
    const auto w = static_cast<std::size_t>(worker);
    if (++inside[w] != 1) alone = false;
    if (--inside[w] != 0) alone = false;
  };
  for (int i = 0; i < 200; ++i) pool.run(100, 1, body);
  CHECK(alone);
}

TEST_CASE("ThreadPool rethrows the first failure on the caller and works on afterwards") {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 20; ++repeat) {
      auto failing = [](Index first, Index, int) {
        if (first == 13 || first == 0)
          throw std::runtime_error("unit " + std::to_string(first % 13));
      };
      CHECK_THROWS_WITH_AS(pool.run(100, 1, failing), "unit 0", std::runtime_error);
      std::atomic<Index> sum{0};
      auto adding = [&](Index first, Index last, int) {
        for (Index i = first; i < last; ++i) sum += i;
      };
      pool.run(100, 1, adding);
      CHECK(sum == 4950);
    }
  }
}

TEST_CASE("ThreadPool wakes threads that have gone to sleep") {
  ThreadPool pool(2);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> ran{0};
    auto body = [&](Index, Index, int) { ++ran; };
    pool.run(8, 1, body);
    CHECK(ran == 8);
  }
}

TEST_CASE("ThreadPool runs many short loops") {
  ThreadPool pool(3);
  std::atomic<Index> total{0};
  auto body = [&](Index first, Index last, int) { total += last - first; };
  for (int i = 0; i < 20000; ++i) pool.run(3, 1, body);
  CHECK(total == 60000);
}

TEST_CASE("several pools live side by side, and end without having worked") {
  ThreadPool idle(2), first(2), second(3);
  std::atomic<int> ran{0};
  auto body = [&](Index, Index, int) { ++ran; };
  first.run(10, 1, body);
  second.run(10, 1, body);
  CHECK(ran == 20);
}

}  // namespace
