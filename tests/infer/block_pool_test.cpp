#include <doctest/doctest.h>

#include <dsv3/infer/block_pool.hpp>

using namespace dsv3;

namespace {

// Room for `count` more entries, as a pass makes it. Returns the copies that it asks for.
std::vector<BlockPool::Copy> append(BlockPool& pool, Index sequence, Index count, Index level = 0) {
  std::vector<BlockPool::Copy> copies;
  pool.prepare(sequence, count, level, copies);
  pool.advance(sequence, count, level);
  return copies;
}

}  // namespace

TEST_CASE("A sequence takes a block when its last one is full") {
  BlockPool pool(4, 3, 1);
  const Index s = pool.create();
  CHECK(pool.blocks_of(s).empty());
  append(pool, s, 3);
  CHECK(pool.blocks_of(s) == std::vector<std::int32_t>{0});
  append(pool, s, 1);
  CHECK(pool.blocks_of(s) == std::vector<std::int32_t>{0, 1});
  CHECK(pool.length(s) == 4);
  CHECK(pool.free_blocks() == 2);
}

TEST_CASE("Truncation and erasure give blocks back") {
  BlockPool pool(4, 3, 1);
  const Index s = pool.create();
  append(pool, s, 10);
  CHECK(pool.free_blocks() == 0);
  pool.truncate(s, 6);
  CHECK(pool.free_blocks() == 2);
  pool.truncate(s, 5);  // within a block
  CHECK(pool.free_blocks() == 2);
  pool.erase(s);
  CHECK(pool.free_blocks() == 4);
  CHECK(pool.create() == s);  // the number is free again
}

TEST_CASE("A block goes when no level has entries in it") {
  BlockPool pool(4, 2, 2);
  const Index s = pool.create();
  append(pool, s, 6);
  append(pool, s, 5, 1);
  pool.truncate(s, 1);
  CHECK(pool.blocks_of(s).size() == 3);  // level 1 still has 5 entries
  pool.truncate(s, 2, 1);
  CHECK(pool.blocks_of(s).size() == 1);
}

TEST_CASE("A fork shares blocks until one of the two writes") {
  BlockPool pool(6, 4, 1);
  const Index a = pool.create();
  append(pool, a, 6);  // blocks 0 and 1, the second half full
  const Index b = pool.fork(a);
  CHECK(pool.blocks_of(b) == pool.blocks_of(a));
  CHECK(pool.length(b) == 6);
  CHECK(pool.free_blocks() == 4);
  CHECK(pool.blocks_needed(b, 1) == 1);
  const auto copies = append(pool, b, 1);
  REQUIRE(copies.size() == 1);
  CHECK(copies[0].from == 1);
  CHECK(copies[0].to == 2);
  CHECK(pool.blocks_of(b) == std::vector<std::int32_t>{0, 2});
  CHECK(append(pool, a, 1).empty());  // the block is its own again
  pool.erase(a);
  CHECK(pool.free_blocks() == 4);  // block 0 is still b's
  pool.erase(b);
  CHECK(pool.free_blocks() == 6);
}

TEST_CASE("A fork whose blocks are full copies nothing") {
  BlockPool pool(3, 4, 1);
  const Index a = pool.create();
  append(pool, a, 8);
  const Index b = pool.fork(a);
  CHECK(append(pool, b, 1).empty());
  CHECK(pool.blocks_of(b) == std::vector<std::int32_t>{0, 1, 2});
}

TEST_CASE("Mistakes name what is wrong and change nothing") {
  BlockPool pool(2, 3, 1);
  const Index s = pool.create();
  append(pool, s, 5);
  std::vector<BlockPool::Copy> copies;
  CHECK_THROWS_WITH_AS(pool.prepare(s, 2, 0, copies),
                       "BlockPool::prepare: blocks needed (1) must be at most free blocks (0)",
                       std::invalid_argument);
  CHECK(pool.length(s) == 5);
  CHECK_THROWS_WITH_AS(pool.length(7), "BlockPool::length: sequence (7) must be one that exists",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(pool.length(s, 1),
                       "BlockPool::length: level (1) must be below the levels (1)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(pool.truncate(s, 6),
                       "BlockPool::truncate: length (6) must be at most length of the sequence (5)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(pool.truncate(s, -1),
                       "BlockPool::truncate: zero (0) must be at most length (-1)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(pool.advance(s, 2),
                       "BlockPool::advance: entries (7) must be at most entries with room (6)",
                       std::invalid_argument);
  CHECK_THROWS_AS(BlockPool(0, 3, 1), std::invalid_argument);
  CHECK_THROWS_AS(BlockPool(Index{1} << 25, 64, 1), std::invalid_argument);
}
