#include <doctest/doctest.h>

#include <cstdint>
#include <dsv3/backend/host.hpp>
#include <dsv3/core/arena.hpp>
#include <dsv3/core/buffer.hpp>
#include <stdexcept>
#include <utility>

using namespace dsv3;

namespace {

// A backend that counts what it has given out.
struct Counted : HostMemory {
  Index blocks = 0, bytes = 0;
};
void* allocate(Counted& backend, Index bytes) {
  ++backend.blocks;
  backend.bytes += bytes;
  return allocate(static_cast<HostMemory&>(backend), bytes);
}
void deallocate(Counted& backend, void* memory, Index bytes) noexcept {
  --backend.blocks;
  backend.bytes -= bytes;
  deallocate(static_cast<HostMemory&>(backend), memory, bytes);
}

}  // namespace

TEST_CASE("Arena hands out views one after another, each at a multiple of 64 bytes") {
  HostMemory host;
  Buffer<HostMemory> memory(host, 1024);
  Arena arena(memory.data(), memory.bytes());
  const auto a = arena.take<float>({3, 5});  // 60 bytes
  const auto b = arena.take<std::int32_t>({17});
  const auto c = arena.take<double>({1});
  CHECK(a.extent(1) == 5);
  CHECK(a.dense());
  const auto at = [&](const void* p) {
    return static_cast<const std::byte*>(p) - static_cast<const std::byte*>(memory.data());
  };
  CHECK(at(a.data) == 0);
  CHECK(at(b.data) == 64);
  CHECK(at(c.data) == 192);
  CHECK(arena.used() == 256);
  CHECK(reinterpret_cast<std::uintptr_t>(memory.data()) % 64 == 0);
  CHECK(Arena::bytes<float>(16) == 64);
  CHECK(Arena::bytes<float>(17) == 128);
  CHECK(Arena::bytes<float>(0) == 0);
}

TEST_CASE("Arena is a stack: what a scope took is given back, the peak stays") {
  HostMemory host;
  Buffer<HostMemory> memory(host, 512);
  Arena arena(memory.data(), memory.bytes());
  arena.take<char>({64});
  const void* inside = nullptr;
  {
    const ArenaScope scope(arena);
    inside = arena.take<char>({192}).data;
    CHECK(arena.used() == 256);
  }
  CHECK(arena.used() == 64);
  CHECK(arena.peak() == 256);
  CHECK(arena.take<char>({1}).data == inside);
  CHECK(arena.peak() == 256);
}

TEST_CASE("Arena names both sizes where a view does not fit, and stays as it was") {
  HostMemory host;
  Buffer<HostMemory> memory(host, 256);
  Arena arena(memory.data(), memory.bytes());
  arena.take<double>({9});
  CHECK_THROWS_WITH_AS(arena.take<double>({17}),
                       "Arena::take: bytes needed (320) must be at most capacity (256)",
                       std::length_error);
  CHECK(arena.used() == 128);
  CHECK(arena.take<double>({16}).size() == 16);
  CHECK_THROWS_AS(arena.take<char>({1}), std::length_error);
  CHECK(arena.take<char>({0}).size() == 0);  // nothing always fits
}

TEST_CASE("An arena without memory counts what the same calls would take") {
  Arena counting;
  CHECK(counting.counting());
  const auto calls = [](Arena& arena) {
    arena.take<float>({3, 5});
    const ArenaScope scope(arena);
    arena.take<double>({100});
    arena.take<char>({1});
  };
  calls(counting);
  CHECK(counting.take<float>({7}).data == nullptr);
  CHECK(counting.take<float>({7, 2}).extent(1) == 2);
  HostMemory host;
  Buffer<HostMemory> memory(host, counting.peak());
  Arena arena(memory.data(), memory.bytes());
  CHECK_FALSE(arena.counting());
  calls(arena);
  CHECK(arena.peak() == counting.peak());
  CHECK(arena.used() == 64);
}

TEST_CASE("Buffer returns its memory exactly once, also when moved") {
  Counted backend;
  {
    Buffer<Counted> a(backend, 100);
    CHECK(a.bytes() == 100);
    CHECK(backend.blocks == 1);
    void* const data = a.data();
    Buffer<Counted> b(std::move(a));
    CHECK(b.data() == data);
    CHECK(backend.blocks == 1);
    Buffer<Counted> c(backend, 50);
    CHECK(backend.bytes == 150);
    c = std::move(b);
    CHECK(c.data() == data);
    CHECK(backend.bytes == 100);
    c = Buffer<Counted>();
    CHECK(backend.blocks == 0);
    CHECK(c.data() == nullptr);
    CHECK(c.bytes() == 0);
    Buffer<Counted> again(backend, 10);
  }
  CHECK(backend.blocks == 0);
  CHECK(backend.bytes == 0);
}
