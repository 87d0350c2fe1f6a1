// Attention's backward kernels by wgmma and TMA: what they hold, and the warp that brings tiles.
#pragma once

#include <dsv3/backend/cuda/attention_backward.cuh>
#include <dsv3/backend/cuda/attention_hopper.cuh>

namespace dsv3::detail {

// What a kernel sums: dQ over keys, dK over queries, dV over queries. Three kernels, since dK and
// dV of a tile leave no registers for scores.
enum class AttentionPart { queries, keys, values };

// What TMA reads, in boxes of 64 columns and 64 rows.
struct AttentionHopperBackwardMaps {
  CUtensorMap q, kv, rope, d_o;
};

// Heads of up to 192 columns of q, of which the rotated ones begin at a multiple of 64, and up to
// 128 of v. A block holds 128 rows, of queries or of keys: of them `wide` rows of q or k, and
// `narrow` ones of dO or v. As many rows of the other side pass in steps of 64.
template <AttentionPart which>
struct AttentionHopperBackwardShape {
  static constexpr AttentionPart part = which;
  static constexpr bool by_keys = part != AttentionPart::queries;
  static constexpr bool slopes = part != AttentionPart::values;
  static constexpr int rows = 128, step = 64, panels = 3, v_panels = 2;
  static constexpr int threads = 384, bringing = 40, multiplying = 232;  // registers of a thread
  static_assert(bringing + 2 * multiplying <= 3 * 168);
  static constexpr int stages = slopes ? 3 : 4;
  // Bytes. A panel is 64 columns of a step; of a block's own rows, two such halves.
  static constexpr int panel = step * 128, own_panel = 2 * panel;
  static constexpr int wide = panels * own_panel, narrow = slopes ? v_panels * own_panel : 0;
  static constexpr int stage = wide + narrow, stage_bytes = (panels + v_panels) * panel;
  static constexpr int stage_narrow = panels * panel;
  // Two numbers for each query of a step.
  static constexpr int numbers = stage + stages * stage_bytes, numbers_bytes = 2 * step * 4;
  static constexpr int barriers = numbers + stages * numbers_bytes;
  static constexpr int units = barriers + 8 * (2 + 2 * stages), unit_words = 8;
  static constexpr int bytes = units + 2 * 4 * unit_words;
  static_assert(bytes <= 227 * 1024);
};

// The shared memory of a block, as addresses of the shared window.
template <class Shape>
struct AttentionHopperBackwardShared {
  unsigned char* memory;  // at a multiple of 1024
  std::uint32_t start;    // the same place

  __device__ explicit AttentionHopperBackwardShared(unsigned char* dynamic)
      : memory(dynamic), start(shared_address(dynamic)) {}
  __device__ std::uint32_t wide() const { return start; }
  __device__ std::uint32_t narrow() const { return start + Shape::wide; }
  __device__ std::uint32_t stage(int place) const {
    return start + Shape::stage + place * Shape::stage_bytes;
  }
  __device__ std::uint32_t numbers(int place) const {
    return start + Shape::numbers + place * Shape::numbers_bytes;
  }
  // A unit and its own rows are there; have been read. The same of a step.
  __device__ std::uint32_t own_full() const { return start + Shape::barriers; }
  __device__ std::uint32_t own_empty() const { return own_full() + 8; }
  __device__ std::uint32_t full(int place) const { return own_full() + 16 + 8 * place; }
  __device__ std::uint32_t empty(int place) const { return full(Shape::stages + place); }
  __device__ volatile int* unit(std::uint32_t place) const {
    return reinterpret_cast<int*>(memory + Shape::units) + place * Shape::unit_words;
  }
};

// A tile of a head; a head below 0 says that none is left. Tokens of the same sequence: own rows
// from `row` on, below row_end; of the other side from `first` on, below `last`.
struct AttentionHopperSpan {
  int head, row, row_end, first, last;

  template <class Shape>
  __device__ static AttentionHopperSpan find(const AttentionTask& in) {
    const int lane = static_cast<int>(threadIdx.x) % 32, tiles = in.map.words[AttentionMap::tiles];
    const int next =
        __shfl_sync(~0u, lane == 0 ? in.map.take(static_cast<int>(Shape::part)) : 0, 0);
    if (next >= tiles * in.heads()) return {-1, 0, 0, 0, 0};
    const auto [head, tile] = attention_unit(next, tiles, !Shape::by_keys);
    const int row = in.map.words[AttentionMap::first + tile], end = in.end(row);
    const int row_end = row + Shape::rows < end ? row + Shape::rows : end;
    if (Shape::by_keys) return {head, row, row_end, row, end};
    return {head, row, row_end, in.begin(row), row_end};
  }
  // By one thread, and what others then read.
  __device__ void tell(volatile int* words) const {
    words[0] = head, words[1] = row, words[2] = row_end, words[3] = first, words[4] = last;
  }
  __device__ static AttentionHopperSpan told(const volatile int* words) {
    return {words[0], words[1], words[2], words[3], words[4]};
  }
};

// One thread: 64 rows of one head of each tensor, panel by panel, `apart` bytes from each other.
struct AttentionHopperBoxes {
  const AttentionHopperBackwardMaps& maps;
  int d_n;

  __device__ void q(std::uint32_t to, int apart, std::uint32_t barrier, int row, int head) const {
    for (int p = 0; p < 3; ++p) copy_box(to + p * apart, maps.q, barrier, 64 * p, head, row);
  }
  __device__ void k(std::uint32_t to, int apart, std::uint32_t barrier, int row, int head) const {
    for (int p = 0; p < 3; ++p) {
      if (64 * p < d_n)
        copy_box(to + p * apart, maps.kv, barrier, 64 * p, head, row);
      else
        copy_box(to + p * apart, maps.rope, barrier, 64 * p - d_n, row);
    }
  }
  __device__ void v(std::uint32_t to, int apart, std::uint32_t barrier, int row, int head) const {
    for (int p = 0; p < 2; ++p) copy_box(to + p * apart, maps.kv, barrier, d_n + 64 * p, head, row);
  }
  __device__ void d_o(std::uint32_t to, int apart, std::uint32_t barrier, int row, int head) const {
    for (int p = 0; p < 2; ++p) copy_box(to + p * apart, maps.d_o, barrier, 64 * p, head, row);
  }
};

__device__ inline void store_float_at(std::uint32_t to, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}

// One warp: takes units, and asks for their own rows and for the steps.
template <class Shape, bool bounded>
__device__ __forceinline__ void attention_hopper_bring_steps(
    const AttentionBackwardTask& task, const AttentionHopperBackwardMaps& maps,
    const AttentionHopperBackwardShared<Shape>& shared, Cuda::Fault* fault) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool leads = lane == 0;
  const AttentionHopperBoxes boxes{maps, task.in.d_n()};
  RingPlace<1> unit_at;
  RingPlace<Shape::stages> at;
  auto unit = AttentionHopperSpan::find<Shape>(task.in);
  for (;; unit_at.advance()) {
    if (leads) {
      const std::uint32_t full = shared.own_full();
      wait_for_tile<bounded>(shared.own_empty(), unit_at.parity ^ 1, 1, fault);
      unit.tell(shared.unit(unit_at.parity));
      if (unit.head < 0) {
        arrive(full);
      } else {
        arrive_expecting(full, Shape::wide + Shape::narrow);
        for (int half = 0; half < 2; ++half) {
          const std::uint32_t wide = shared.wide() + half * Shape::panel;
          const std::uint32_t narrow = shared.narrow() + half * Shape::panel;
          const int row = unit.row + half * Shape::step;
          if (Shape::by_keys)
            boxes.k(wide, Shape::own_panel, full, row, unit.head);
          else
            boxes.q(wide, Shape::own_panel, full, row, unit.head);
          if (Shape::part == AttentionPart::keys)
            boxes.v(narrow, Shape::own_panel, full, row, unit.head);
          if (Shape::part == AttentionPart::queries)
            boxes.d_o(narrow, Shape::own_panel, full, row, unit.head);
        }
      }
    }
    if (unit.head < 0) return;
    auto next = unit;
    for (int t = unit.first; t < unit.last; t += Shape::step, at.advance()) {
      float numbers[4] = {};  // of two queries, zeros beyond the sequence
      if (Shape::by_keys) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (t + lane + 32 * i < unit.last) {
            numbers[i] = task.numbers.lse2(unit.head, t + lane + 32 * i);
            if (Shape::slopes) numbers[2 + i] = task.numbers.delta(unit.head, t + lane + 32 * i);
          }
      }
      const std::uint32_t full = shared.full(at.stage), to = shared.stage(at.stage);
      if (leads) wait_for_tile<bounded>(shared.empty(at.stage), at.parity ^ 1, 2, fault);
      __syncwarp();
      if (Shape::by_keys) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          store_float_at(shared.numbers(at.stage) + 4 * (lane + 32 * i), numbers[i]);
        __syncwarp();
      }
      if (leads) {
        arrive_expecting(full, Shape::stage_bytes);
        if (Shape::by_keys) {
          boxes.q(to, Shape::panel, full, t, unit.head);
          boxes.d_o(to + Shape::stage_narrow, Shape::panel, full, t, unit.head);
        } else {
          boxes.k(to, Shape::panel, full, t, unit.head);
          boxes.v(to + Shape::stage_narrow, Shape::panel, full, t, unit.head);
        }
      }
      // While the first of this unit is on its way.
      if (t == unit.first) next = AttentionHopperSpan::find<Shape>(task.in);
    }
    unit = next;
  }
}

}  // namespace dsv3::detail
