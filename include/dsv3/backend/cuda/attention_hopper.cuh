// Attention's forward kernel by wgmma and TMA: one warp brings tiles, two groups of four warps
// multiply.
#pragma once

#include <dsv3/backend/cuda/attention_tiles.cuh>
#include <dsv3/backend/cuda/hopper_barrier.cuh>
#include <dsv3/backend/cuda/hopper_wgmma_bf16.cuh>

namespace dsv3::detail {

// What TMA reads, in boxes of 64 columns and 128 rows. `rope` is unused where no part is rotated.
struct AttentionHopperMaps {
  CUtensorMap q, kv, rope;
};

// Heads of 64 * panels columns of q, of which the rotated ones begin at a multiple of 64, and up to
// 128 of v. In turns: one group of warps asks for products, then the other, so that one takes
// exponentials while the other's products run; else the scheduler decides.
template <int qk_panels, bool in_turns>
struct AttentionHopperShape {
  static constexpr int panels = qk_panels, rows = 128, keys = 128, v_panels = 2, stages = 2;
  static constexpr bool turns = in_turns;
  static constexpr int threads = 384, bringing = 40, multiplying = 232;  // registers of a thread
  static_assert(bringing + 2 * multiplying <= 3 * 168);
  static constexpr int panel = keys * 128;  // bytes; of q as of k and v
  static_assert(rows == keys);
  static constexpr int q = 0, k = panels * panel, v = k + stages * panels * panel;
  static constexpr int barriers = v + stages * v_panels * panel;
  // Two places for what is known of a unit: one is read while the next is written.
  static constexpr int units = barriers + 8 * (2 + 4 * stages), unit_words = 4 + rows;
  static constexpr int bytes = units + 2 * 4 * unit_words;
};

// The shared memory of a block, as addresses of the shared window.
template <class Shape>
struct AttentionHopperShared {
  unsigned char* memory;  // at a multiple of 1024
  std::uint32_t start;    // the same place

  __device__ explicit AttentionHopperShared(unsigned char* dynamic)
      : memory(dynamic), start(shared_address(dynamic)) {}
  __device__ std::uint32_t q() const { return start; }
  __device__ std::uint32_t k(int stage) const {
    return start + Shape::k + stage * Shape::panels * Shape::panel;
  }
  __device__ std::uint32_t v(int stage) const {
    return start + Shape::v + stage * Shape::v_panels * Shape::panel;
  }
  // A unit and its queries are there; have been read.
  __device__ std::uint32_t q_full() const { return start + Shape::barriers; }
  __device__ std::uint32_t q_empty() const { return q_full() + 8; }
  __device__ std::uint32_t k_full(int stage) const { return q_full() + 16 + 8 * stage; }
  __device__ std::uint32_t k_empty(int stage) const { return k_full(Shape::stages + stage); }
  __device__ std::uint32_t v_full(int stage) const { return k_full(2 * Shape::stages + stage); }
  __device__ std::uint32_t v_empty(int stage) const { return k_full(3 * Shape::stages + stage); }
  __device__ volatile int* unit(std::uint32_t place) const {
    return reinterpret_cast<int*>(memory + Shape::units) + place * Shape::unit_words;
  }
};

// The words of a unit in shared memory; a head below 0 says that none is left.
struct AttentionHopperUnit {
  static constexpr int head = 0, token = 1, rows = 2, keys = 3, own = 4;
  int head_index, t0, row_count, key_count;  // keys: up to the last one that a row sees
  int first;                                 // of the keys
};

// One warp, which knows of each unit before the other warps do: lane l has the rows l + 32 i.
template <class Shape>
struct AttentionHopperFinder {
  static constexpr int each = Shape::rows / 32;
  int own[each];

  // Rows beyond the sequence see what its last one does.
  __device__ __forceinline__ AttentionHopperUnit find(const AttentionTask& in) {
    const int lane = static_cast<int>(threadIdx.x) % 32, tiles = in.map.words[AttentionMap::tiles];
    const int next = __shfl_sync(~0u, lane == 0 ? in.map.take(0) : 0, 0);
    if (next >= tiles * in.heads()) return {-1, 0, 0, 0, 0};
    const auto [head, tile] = attention_unit(next, tiles, true);
    const int t0 = in.map.words[AttentionMap::first + tile], left = in.end(t0) - t0;
    const int rows = left < Shape::rows ? left : Shape::rows;
    int last = 0;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int row = lane + 32 * i;
      own[i] = in.own_key(t0 + (row < rows ? row : rows - 1));
      last = own[i] > last ? own[i] : last;
    }
    const int first = in.first_key(t0);
    return {head, t0, rows, __reduce_max_sync(~0u, last) + 1 - first, first};
  }
  // Own keys are told as counted from the first one.
  __device__ __forceinline__ void tell(volatile int* words, const AttentionHopperUnit& unit) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane == 0) {
      words[AttentionHopperUnit::head] = unit.head_index;
      words[AttentionHopperUnit::token] = unit.t0;
      words[AttentionHopperUnit::rows] = unit.row_count;
      words[AttentionHopperUnit::keys] = unit.key_count;
    }
#pragma unroll
    for (int i = 0; i < each; ++i)
      words[AttentionHopperUnit::own + lane + 32 * i] = own[i] - unit.first;
    __syncwarp();
  }
};

// As wait_for_phase. After 2^32 to 2^33 clocks the bounded form notes in `fault` who waited and for
// which parity, and ends the kernel by a store to nowhere: a kernel that has a trap beyond
// setmaxnreg is compiled for the registers that it starts with.
template <bool bounded>
__device__ __forceinline__ void wait_for_tile(std::uint32_t barrier, std::uint32_t parity, int who,
                                              Cuda::Fault* fault) {
  if constexpr (bounded) {
    const auto clock = [] {
      std::uint32_t high;
      asm volatile("mov.u32 %0, %%clock_hi;" : "=r"(high));
      return high;
    };
    const std::uint32_t start = clock();
    while (!phase_is_over(barrier, parity))
      if (clock() - start >= 2)
        asm volatile(
            "st.global.u32 [%0], %1;\n"
            "fence.sc.sys;\n"
            "st.global.u32 [%2], %1;" ::"l"(&fault->set),
            "r"(who * 2 + static_cast<int>(parity)), "l"(std::uint64_t{0})
            : "memory");
  } else {
    while (!phase_is_over(barrier, parity)) {
    }
  }
}

// One warp: takes units and asks for their tiles in the order in which they are read: k of a tile
// before v of the one before it.
template <class Shape, bool bounded>
__device__ __forceinline__ void attention_hopper_bring(const AttentionTask& in,
                                                       const AttentionHopperMaps& maps,
                                                       const AttentionHopperShared<Shape>& shared,
                                                       Cuda::Fault* fault) {
  const bool leads = threadIdx.x % 32 == 0;
  const int d_n = in.d_n(), nope_panels = d_n / 64;
  RingPlace<1> unit_at;
  RingPlace<Shape::stages> k_at, v_at;
  AttentionHopperFinder<Shape> finder;
  AttentionHopperUnit unit = finder.find(in);
  for (;; unit_at.advance()) {
    if (leads) wait_for_tile<bounded>(shared.q_empty(), unit_at.parity ^ 1, 1, fault);
    __syncwarp();
    finder.tell(shared.unit(unit_at.parity), unit);
    const int head = unit.head_index, first = unit.first;
    if (head < 0) {
      if (leads) arrive(shared.q_full());
      return;
    }
    if (leads) {
      arrive_expecting(shared.q_full(), Shape::panels * Shape::panel);
      for (int p = 0; p < Shape::panels; ++p)
        copy_box(shared.q() + p * Shape::panel, maps.q, shared.q_full(), 64 * p, head, unit.t0);
    }
    const int tiles = (unit.key_count + Shape::keys - 1) / Shape::keys;
    for (int j = 0; j <= tiles; ++j) {
      if (leads && j < tiles) {
        const int key = first + j * Shape::keys;
        wait_for_tile<bounded>(shared.k_empty(k_at.stage), k_at.parity ^ 1, 2, fault);
        const std::uint32_t full = shared.k_full(k_at.stage), to = shared.k(k_at.stage);
        arrive_expecting(full, Shape::panels * Shape::panel);
        for (int p = 0; p < Shape::panels; ++p) {
          if (p < nope_panels)
            copy_box(to + p * Shape::panel, maps.kv, full, 64 * p, head, key);
          else
            copy_box(to + p * Shape::panel, maps.rope, full, 64 * (p - nope_panels), key);
        }
        k_at.advance();
      }
      if (leads && j > 0) {
        const int key = first + (j - 1) * Shape::keys;
        wait_for_tile<bounded>(shared.v_empty(v_at.stage), v_at.parity ^ 1, 3, fault);
        const std::uint32_t full = shared.v_full(v_at.stage), to = shared.v(v_at.stage);
        arrive_expecting(full, Shape::v_panels * Shape::panel);
        for (int p = 0; p < Shape::v_panels; ++p)
          copy_box(to + p * Shape::panel, maps.kv, full, d_n + 64 * p, head, key);
        v_at.advance();
      }
      // While the tiles of this unit are on their way.
      if (j == 1) unit = finder.find(in);
    }
  }
}

// A barrier of the 128 threads of a multiplying group.
__device__ __forceinline__ void sync_group(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(3 + group) : "memory");
}

}  // namespace dsv3::detail
