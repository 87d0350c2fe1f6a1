// Sorting by expert on emulated blocks against the host's.
#include <doctest/doctest.h>

#include <dsv3/backend/host.hpp>
#include <dsv3/core/philox.hpp>

#include "gpu/emulated.hpp"

using namespace dsv3;
using emulated::Fault;
using emulated::Machine;

namespace {

constexpr Index workspace = Index{1} << 20;

// Choices of experts, and where they go. Rows of both matrices may lie apart.
struct Sorted {
  Index tokens, k, experts, stride;
  std::vector<std::int32_t> idx, pair_of_slot, slot_of_pair;
  std::vector<Index> offsets;

  Sorted(Index t, Index per_token, Index e, Index gap = 0)
      : tokens(t), k(per_token), experts(e), stride(per_token + gap) {
    idx.assign(static_cast<std::size_t>(tokens * stride), -7);
    slot_of_pair.assign(idx.size(), -7);
    pair_of_slot.assign(static_cast<std::size_t>(tokens * k), -7);
    offsets.assign(static_cast<std::size_t>(experts + 1), -7);
  }

  std::int32_t& at(Index t, Index j) { return idx[static_cast<std::size_t>(t * stride + j)]; }

  void choose(std::uint64_t seed, Index of_experts) {
    const Philox philox(seed, 0);
    std::uint64_t n = 0;
    for (Index t = 0; t < tokens; ++t)
      for (Index j = 0; j < k; ++j)
        at(t, j) =
            static_cast<std::int32_t>(philox(n++).word[0] % static_cast<std::uint32_t>(of_experts));
  }

  View<std::int32_t, 2> matrix(std::vector<std::int32_t>& values) const {
    View<std::int32_t, 2> view(values.data(), {tokens, k});
    view.strides[0] = stride;
    return view;
  }
  void on(Machine& machine, Index bytes, Fault& fault) {
    emulated::sort_in(machine, bytes, fault, matrix(idx), {offsets.data(), {experts + 1}},
                      {pair_of_slot.data(), {tokens * k}}, matrix(slot_of_pair));
  }
  void on_host() {
    HostMemory host;
    sort_by_expert(host, matrix(idx), {offsets.data(), {experts + 1}},
                   {pair_of_slot.data(), {tokens * k}}, matrix(slot_of_pair));
  }
};

void compare(Sorted ours, Index bytes = workspace) {
  CAPTURE(ours.tokens);
  CAPTURE(ours.k);
  CAPTURE(ours.experts);
  Sorted hosts = ours;
  hosts.on_host();
  Machine machine(static_cast<std::uint64_t>(ours.tokens + 1));
  Fault fault;
  ours.on(machine, bytes, fault);
  CHECK(ours.offsets == hosts.offsets);
  CHECK(ours.pair_of_slot == hosts.pair_of_slot);
  CHECK(ours.slot_of_pair == hosts.slot_of_pair);
  CHECK(fault.set == 0);
}

}  // namespace

TEST_CASE("sorting by blocks of threads gives the slots of the host") {
  for (const Index tokens : {0, 1, 3, 37, 64, 171, 1000})
    for (const Index experts : {1, 8, 33, 256}) {
      Sorted sorted(tokens, 3, experts);
      sorted.choose(1, experts);
      compare(sorted);
    }
  Sorted one_expert(700, 8, 16);
  one_expert.choose(2, 1);
  compare(one_expert);
  Sorted no_pairs(5, 0, 4);
  compare(no_pairs);
}

TEST_CASE("sorting takes rows that lie apart") {
  Sorted sorted(200, 5, 9, 2);
  sorted.choose(3, 9);
  compare(sorted);
}

TEST_CASE(
    "sorting works with few chunks, with many, and with more experts than shared memory has") {
  Sorted sorted(1500, 8, 64);
  sorted.choose(4, 64);
  compare(sorted, (256 + 3 * 64) * 4);  // one chunk besides the totals
  Sorted many(20000, 8, 7);             // 256 chunks of 625 pairs
  many.choose(5, 7);
  compare(many);
  Sorted wide(300, 8, 12001);
  wide.choose(6, 12001);
  compare(wide);
}

TEST_CASE("the first pair that is no expert's is reported, and all slots stay within bounds") {
  Sorted sorted(700, 3, 11);
  sorted.choose(7, 11);
  sorted.at(650, 0) = 1 << 30;
  sorted.at(500, 2) = 11;
  sorted.at(501, 0) = -1;
  Machine machine(1);
  Fault fault;
  Sorted ours = sorted;
  ours.on(machine, workspace, fault);
  CHECK(fault.set == 1);
  CHECK(fault.row == 500);
  CHECK(fault.column == 2);
  CHECK(fault.value == 11);
  CHECK(fault.bound == 11);
  CHECK_THROWS_WITH(sorted.on_host(),
                    "sort_by_expert: topk_idx[500, 2] (11) must be at least 0 and below the "
                    "experts (11)");
  Sorted clamped = sorted;
  clamped.at(650, 0) = clamped.at(500, 2) = clamped.at(501, 0) = 0;
  clamped.on_host();
  CHECK(ours.offsets == clamped.offsets);
  CHECK(ours.pair_of_slot == clamped.pair_of_slot);
  CHECK(ours.slot_of_pair == clamped.slot_of_pair);
  SUBCASE("the first call's, until somebody asks") {
    Sorted next(4, 2, 3);
    next.choose(1, 3);
    next.at(0, 0) = 3;
    next.on(machine, workspace, fault);
    CHECK(fault.row == 500);
  }
  SUBCASE("also where there is no expert") {
    Sorted none(4, 2, 0);
    none.choose(1, 1);
    Fault found;
    none.on(machine, workspace, found);
    CHECK(found.set == 1);
    CHECK(found.bound == 0);
    CHECK(none.offsets == std::vector<Index>{0});
    CHECK(none.pair_of_slot == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  }
}

TEST_CASE("sorting checks extents as the host does") {
  Machine machine(1);
  Fault fault;
  Sorted sorted(3, 2, 4);
  sorted.pair_of_slot.resize(5);
  CHECK_THROWS_WITH_AS(
      emulated::sort_in(machine, workspace, fault, sorted.matrix(sorted.idx),
                        {sorted.offsets.data(), {5}}, {sorted.pair_of_slot.data(), {5}},
                        sorted.matrix(sorted.slot_of_pair)),
      "sort_by_expert: size of pair_of_slot (5) must equal pairs (6)", std::invalid_argument);
  const Index many = Index{1} << 31;
  CHECK_THROWS_WITH_AS(
      emulated::sort_in(machine, workspace, fault, {nullptr, {many / 2, 2}}, {nullptr, {5}},
                        {nullptr, {many}}, {nullptr, {many / 2, 2}}),
      "sort_by_expert: pairs (2147483648) must be at most largest int32 (2147483647)",
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(emulated::sort_in(machine, 4096, fault, {nullptr, {0, 2}}, {nullptr, {386}},
                                         {nullptr, {0}}, {nullptr, {0, 2}}),
                       "sort_by_expert: experts (385) must be at most half of the workspace (384)",
                       std::invalid_argument);
}

TEST_CASE("chunks cover all pairs once, up to the largest number of them") {
  std::vector<std::int32_t> memory(1);
  for (const Index pairs :
       {Index{1}, Index{512}, Index{513}, Index{131072}, Index{131073}, Index{2147483647}})
    for (const Index experts : {1, 256, 5000}) {
      const detail::ExpertSort sort({nullptr, {pairs, 1}}, {nullptr, {experts + 1}},
                                    {nullptr, {pairs}}, {nullptr, {pairs, 1}}, memory.data(),
                                    Index{32} << 20);
      CHECK(sort.chunks <= 256);
      CHECK((256 + sort.counters * (sort.chunks + 1)) * 4 <= Index{32} << 20);
      CHECK(sort.begin(0) == 0);
      for (Index c = 0; c + 1 < sort.chunks; ++c) CHECK(sort.end(c) == sort.begin(c + 1));
      CHECK(sort.end(sort.chunks - 1) == pairs);
      CHECK(sort.begin(sort.chunks - 1) < pairs);
    }
}
