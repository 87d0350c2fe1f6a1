// Sorting by expert by blocks of threads: of a GPU, or ones that a host emulates.
#pragma once

#include <dsv3/core/check.hpp>
#include <dsv3/core/view.hpp>
#include <limits>

namespace dsv3::detail {

// A stable counting sort in three passes over chunks of the pairs. A block counts each chunk's
// pairs of every expert; blocks of 32 experts turn the counts into sums over the chunks before; a
// block finds the slots of each chunk from both, in order, so that equal experts keep theirs.
//
// A value that is no expert counts as expert 0: whatever runs before somebody asks, every slot and
// pair is within bounds.
//
// The Block has, beside what BlockTeam needs: warp_barrier(); match(value), the bits of the warp's
// threads with the same value; add and lower, atomic in shared memory and in the device's;
// system_fence(), which parts writes to the host's memory.
struct ExpertSort {
  static constexpr int threads = 256;
  static constexpr Index most_chunks = 256, least_chunk = 512;
  static constexpr Index most_shared = 12000;  // counters, in the 48 KB that every block may have
  static constexpr std::int32_t none = std::numeric_limits<std::int32_t>::max();

  View<const std::int32_t, 2> topk_idx;
  View<Index, 1> offsets;
  View<std::int32_t, 1> pair_of_slot;
  View<std::int32_t, 2> slot_of_pair;
  Index pairs, experts;
  Index counters;           // experts, or 1 where there is none
  Index chunks, chunk;      // how many, and pairs in each but the last
  std::int32_t* first_bad;  // [chunks] the first pair that is no expert's, or none
  std::int32_t* totals;     // [counters]
  std::int32_t* counts;     // [chunks, counters]

  // Checks what the primitive promises, and lays the work out in the workspace.
  ExpertSort(View<const std::int32_t, 2> idx, View<Index, 1> to_offsets,
             View<std::int32_t, 1> to_pairs, View<std::int32_t, 2> to_slots, void* workspace,
             Index workspace_bytes)
      : topk_idx(idx), offsets(to_offsets), pair_of_slot(to_pairs), slot_of_pair(to_slots) {
    const char* caller = "sort_by_expert";
    pairs = idx.extent(0) * idx.extent(1);
    experts = offsets.extent(0) - 1;
    counters = experts > 0 ? experts : 1;
    check_equal(caller, "size of pair_of_slot", pair_of_slot.extent(0), "pairs", pairs);
    check_at_most(caller, "pairs", pairs, "largest int32", Index{none});
    const Index words = workspace_bytes / Index{sizeof(std::int32_t)} - most_chunks;
    check_at_most(caller, "experts", experts, "half of the workspace", words / 2);
    const Index fit = words / counters - 1;
    const Index most = fit < most_chunks ? fit : most_chunks;
    const Index even = (pairs + most - 1) / most;
    chunk = even > least_chunk ? even : least_chunk;
    chunks = (pairs + chunk - 1) / chunk;
    first_bad = static_cast<std::int32_t*>(workspace);
    totals = first_bad + most_chunks;
    counts = totals + counters;
  }

  // Words of shared memory of the blocks of count() and place(); 0: they count in the workspace.
  Index shared_words() const { return counters <= most_shared ? counters : 0; }
  Index prefix_blocks() const { return (counters + 31) / 32; }

  DSV3_HD Index begin(Index c) const { return c * chunk; }
  DSV3_HD Index end(Index c) const { return pairs - begin(c) < chunk ? pairs : begin(c) + chunk; }

  DSV3_HD std::int32_t value(Index pair) const {
    const auto p = static_cast<std::uint32_t>(pair),
               k = static_cast<std::uint32_t>(topk_idx.extent(1));
    return topk_idx(p / k, p % k);
  }
  DSV3_HD bool is_expert(std::int32_t e) const { return e >= 0 && e < experts; }

  // Pass 1, block c of `chunks`. shared [counters], or null; first [1], shared.
  template <class Block>
  DSV3_HD void count(const Block& block, Index c, std::int32_t* shared, std::int32_t* first) const {
    std::int32_t* const own = counts + c * counters;
    std::int32_t* const counter = shared ? shared : own;
    for (Index e = block.thread(); e < counters; e += Block::size) counter[e] = 0;
    if (block.thread() == 0) *first = none;
    block.barrier();
    for (Index p = begin(c) + block.thread(); p < end(c); p += Block::size) {
      const std::int32_t e = value(p);
      if (!is_expert(e)) block.lower(first, static_cast<std::int32_t>(p));
      block.add(&counter[is_expert(e) ? e : 0], 1);
    }
    block.barrier();
    if (shared)
      for (Index e = block.thread(); e < counters; e += Block::size) own[e] = shared[e];
    if (block.thread() == 0) first_bad[c] = *first;
  }

  // Pass 2, block b of prefix_blocks(): counts of experts [32 b, 32 b + 32) become the sums over
  // the chunks before. A thread has an expert and a run of chunks. shared [Block::size].
  template <class Block>
  DSV3_HD void prefix(const Block& block, Index b, std::int32_t* shared) const {
    constexpr Index runs = Block::size / 32;
    const Index e = b * 32 + block.thread() % 32, run = block.thread() / 32;
    const Index each = (chunks + runs - 1) / runs;
    const Index from = run * each < chunks ? run * each : chunks;
    const Index to = from + each < chunks ? from + each : chunks;
    std::int32_t sum = 0;
    if (e < counters)
      for (Index c = from; c < to; ++c) sum += counts[c * counters + e];
    shared[block.thread()] = sum;
    block.barrier();
    std::int32_t before = 0;
    for (Index r = 0; r < run; ++r) before += shared[r * 32 + block.thread() % 32];
    if (e >= counters) return;
    constexpr int ahead = 8;  // loads at once
    for (Index c = from; c < to; c += ahead) {
      std::int32_t count[ahead];
      for (int i = 0; i < ahead; ++i) count[i] = c + i < to ? counts[(c + i) * counters + e] : 0;
      for (int i = 0; i < ahead; ++i) {
        if (c + i < to) counts[(c + i) * counters + e] = before;
        before += count[i];
      }
    }
    if (run == runs - 1) totals[e] = before;
  }

  // Pass 3, block c of `chunks`. shared [counters], or null; sums [Block::size], shared.
  template <class Block>
  DSV3_HD void place(const Block& block, Index c, std::int32_t* shared, std::int32_t* sums,
                     auto* fault) const {
    std::int32_t* const next = shared ? shared : counts + c * counters;  // free slot of each expert
    start(block, c, next, sums);
    block.barrier();
    if (block.thread() == 0) report(block, c, fault);
    if (block.thread() >= 32) return;
    constexpr int ahead = 4;  // loads at once
    const Index last = end(c);
    for (Index from = begin(c); from < last; from += 32 * ahead) {
      std::int32_t of[ahead];
      for (int i = 0; i < ahead; ++i) {
        const Index p = from + 32 * i + block.thread();
        const std::int32_t e = p < last ? value(p) : -1;
        of[i] = p >= last ? -1 : is_expert(e) ? e : 0;
      }
      for (int i = 0; i < ahead; ++i) {
        const Index p = from + 32 * i + block.thread();
        const std::uint32_t same = block.match(of[i]);
        const std::uint32_t lower = same & ((1u << block.thread()) - 1);
        std::int32_t slot = 0;
        if (of[i] >= 0) slot = next[of[i]] + bits(lower);
        block.warp_barrier();  // all have read
        if (of[i] >= 0) {
          if (lower == 0) next[of[i]] = slot + bits(same);
          pair_of_slot(slot) = static_cast<std::int32_t>(p);
          const auto q = static_cast<std::uint32_t>(p);
          const auto k = static_cast<std::uint32_t>(topk_idx.extent(1));
          slot_of_pair(q / k, q % k) = slot;
        }
        block.warp_barrier();  // the leaders have written; match() orders no memory
      }
    }
  }

 private:
  DSV3_HD static std::int32_t bits(std::uint32_t mask) {
#ifdef __CUDA_ARCH__
    return __popc(mask);
#else
    return __builtin_popcount(mask);
#endif
  }

  // The first slot of each expert in chunk c, from the totals of the experts before and the
  // expert's counts in the chunks before. Block 0 writes the offsets.
  template <class Block>
  DSV3_HD void start(const Block& block, Index c, std::int32_t* next, std::int32_t* sums) const {
    const Index each = (counters + Block::size - 1) / Block::size;
    const Index at = block.thread() * each;
    const Index from = at < counters ? at : counters;
    const Index to = from + each < counters ? from + each : counters;
    std::int32_t sum = 0;
    for (Index e = from; e < to; ++e) sum += totals[e];
    sums[block.thread()] = sum;
    block.barrier();
    std::int32_t before = 0;
    for (int i = 0; i < block.thread(); ++i) before += sums[i];
    for (Index e = from; e < to; ++e) {
      if (c == 0 && e < experts) offsets(e) = before;
      next[e] = before + counts[c * counters + e];
      before += totals[e];
    }
    if (c == 0 && block.thread() == 0 && experts >= 0) offsets(experts) = experts > 0 ? pairs : 0;
  }

  // The first pair of all that is no expert's, by the chunk that has it.
  template <class Block>
  DSV3_HD void report(const Block& block, Index c, auto* fault) const {
    const std::int32_t pair = first_bad[c];
    if (pair == none) return;
    for (Index before = 0; before < c; ++before)
      if (first_bad[before] != none) return;
    if (fault->set) return;  // of an earlier call
    fault->row = pair / topk_idx.extent(1);
    fault->column = pair % topk_idx.extent(1);
    fault->value = value(pair);
    fault->bound = experts;
    block.system_fence();
    fault->set = 1;
  }
};

}  // namespace dsv3::detail
