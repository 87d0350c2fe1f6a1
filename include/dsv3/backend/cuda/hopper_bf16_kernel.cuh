// The kernel of grouped products of bf16 on Hopper: one thread asks TMA for tiles, eight warps
// multiply and store. wgmma takes 16-bit operands that lie across the sum as they are.
#pragma once

#include <dsv3/backend/cuda/hopper_bf16_wgmma.cuh>
#include <dsv3/backend/cuda/hopper_codes_kernel.cuh>
#include <dsv3/backend/cuda/tile_memory.cuh>

namespace dsv3::detail {

constexpr int hopper_bf16_step = 64;            // elements of the sum in a stage: 128 bytes
constexpr int hopper_bf16_panel = 64 * 64 * 2;  // bytes of 64 tokens or rows of 64 elements

// A form of the kernel: tiles of 128 x `width`. The bits of the result do not depend on it: every
// element is one accumulator, to which ascending steps of 16 are added.
//
// Apart: each group of four warps has a tile and a ring of stages of its own, and one stores while
// the other multiplies. Else they share a tile, 64 rows each.
template <Product p, int tile_width, bool tiles_apart>
struct HopperBf16Form {
  static constexpr Product product = p;
  static constexpr int width = tile_width, height = 128;
  static constexpr bool apart = tiles_apart;
  static constexpr int rings = apart ? 2 : 1, waves = apart ? 2 : 1, step = apart ? 64 : 128;
  // Whether the sum runs over the rows of the operand's panels.
  static constexpr bool a_across = p == Product::tn, b_across = p != Product::nt;
  static_assert(waves * width <= 256);

  // Stages, and where they lie in shared memory: offsets from a multiple of 1024.
  static constexpr int stages = width == 256 ? 4 : 6, ring = stages / rings;
  static constexpr int a_bytes = height * 128, b_bytes = width * 128;
  static constexpr int b = stages * a_bytes, barriers = b + stages * b_bytes;
  static constexpr int groups = barriers + 2 * 8 * stages;
  static constexpr int bytes = groups + 2 * 4 * (hopper_most_groups + 1);
  static_assert(bytes <= 227 * 1024);
  static constexpr int bringing = 40, multiplying = 232;  // registers of a thread
  static_assert(bringing + 2 * multiplying <= 3 * 168);
};

DSV3_HD constexpr int hopper_bf16_blocks(int length) {
  return (length + hopper_bf16_step - 1) / hopper_bf16_step;
}

struct HopperBf16Maps {
  CUtensorMap a, b;
};

// The shared memory of a block, as addresses of the shared window.
template <class Form>
struct HopperBf16Shared {
  char* memory;         // at a multiple of 1024
  std::uint32_t start;  // the same place

  __device__ explicit HopperBf16Shared(char* dynamic)
      : memory(dynamic), start(static_cast<std::uint32_t>(__cvta_generic_to_shared(dynamic))) {}
  __device__ std::uint32_t a(int stage) const { return start + stage * Form::a_bytes; }
  __device__ std::uint32_t b(int stage) const { return start + Form::b + stage * Form::b_bytes; }
  __device__ std::uint32_t full(int stage) const { return start + Form::barriers + 8 * stage; }
  __device__ std::uint32_t empty(int stage) const { return full(Form::stages + stage); }
  __device__ int* first() const { return reinterpret_cast<int*>(memory + Form::groups); }
  __device__ int* tiles() const { return first() + hopper_most_groups + 1; }
};

// One thread: asks for every tile, stage by stage.
template <class Form, bool bounded, class TC>
__device__ __forceinline__ void bring_bf16(const HopperCodes<TC>& work, const HopperBf16Maps& maps,
                                           const HopperBf16Shared<Form>& shared,
                                           HopperWalk<Form, TC> walk, int ring) {
  RingPlace<Form::ring> at;
  HopperTile tile;
  while (walk.next(tile)) {
    const int blocks = hopper_bf16_blocks(tile.length);
    for (int block = 0; block < blocks; ++block, at.advance()) {
      const int stage = ring * Form::ring + at.stage;
      wait_for_phase<bounded>(shared.empty(stage), at.parity ^ 1, 1, stage, work.fault);
      const std::uint32_t full = shared.full(stage), a = shared.a(stage), b = shared.b(stage);
      arrive_expecting(full, Form::a_bytes + Form::b_bytes);
      const int k = block * hopper_bf16_step;
      if constexpr (Form::a_across) {
#pragma unroll
        for (int panel = 0; panel < Form::height / 64; ++panel)
          copy_box(a + panel * hopper_bf16_panel, maps.a, full, tile.row + 64 * panel,
                   tile.first + k);
      } else {
        copy_box(a, maps.a, full, k, tile.row);
      }
      if constexpr (Form::b_across) {
        const int row = tile.first + k, group = Form::product == Product::tn ? 0 : tile.group;
#pragma unroll
        for (int panel = 0; panel < Form::width / 64; ++panel)
          copy_box(b + panel * hopper_bf16_panel, maps.b, full, tile.column + 64 * panel, row,
                   group);
      } else {
        copy_box(b, maps.b, full, k, tile.column, tile.group);
      }
    }
  }
}

// By the threads of one group of warps: zeros in the tokens of a stage from `inside` on, which
// belong to another segment. Of b, the groups that share a tile write the same.
template <int a_panels, int b_panels>
__device__ __forceinline__ void clear_tokens(std::uint32_t a, std::uint32_t b, int inside,
                                             int group) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  for (int row = inside + thread / 8; row < hopper_bf16_step; row += 16) {
    const std::uint32_t at = row * 128 + thread % 8 * 16;
#pragma unroll
    for (int panel = 0; panel < a_panels; ++panel)
      store_16_bytes(a + panel * hopper_bf16_panel + at, 0, 0, 0, 0);
#pragma unroll
    for (int panel = 0; panel < b_panels; ++panel)
      store_16_bytes(b + panel * hopper_bf16_panel + at, 0, 0, 0, 0);
  }
  publish_to_async();
  asm volatile("bar.sync %0, 128;" ::"r"(3 + group) : "memory");
}

// Warp `warp` of eight: products of its 16 rows of every wave, with its group of four warps. The
// products of a stage run while the next one is asked for.
template <class Form, bool bounded, class TC>
__device__ __forceinline__ void multiply_bf16_tile(const HopperCodes<TC>& work,
                                                   const HopperBf16Shared<Form>& shared, int warp,
                                                   HopperWalk<Form, TC> walk) {
  constexpr int waves = Form::waves, n = Form::width / 2;
  const int lane = threadIdx.x % 32, group = warp / 4;
  const int first_stage = Form::apart ? group * Form::ring : 0;
  const int first_row = Form::apart ? 0 : group * 64;
  const int row = first_row + warp % 4 * 16 + lane / 4;  // in the tile, of the first accumulator
  const std::uint32_t own_a = first_row * 128;           // bytes: 64 rows are as many as a panel
  constexpr std::uint64_t a_step =
      Form::a_across ? hopper_columns_descriptor_step : hopper_descriptor_step;
  constexpr std::uint64_t b_step =
      Form::b_across ? hopper_columns_descriptor_step : hopper_descriptor_step;
  const std::uint64_t a_descriptor =
      Form::a_across ? hopper_columns_descriptor(shared.a(0) + own_a, hopper_bf16_panel)
                     : hopper_descriptor(shared.a(0) + own_a);
  const std::uint64_t b_descriptor = Form::b_across
                                         ? hopper_columns_descriptor(shared.b(0), hopper_bf16_panel)
                                         : hopper_descriptor(shared.b(0));
  RingPlace<Form::ring> at;
  HopperTile tile;
  float total[waves][n];
  while (walk.next(tile)) {
#pragma unroll
    for (int wave = 0; wave < waves; ++wave)
#pragma unroll
      for (int i = 0; i < n; ++i) total[wave][i] = 0;
    if (work.add) expect_tile<Form>(work, tile, row, lane);
    const int blocks = hopper_bf16_blocks(tile.length);
    int before = 0;  // the stage of the products on their way
    for (int block = 0; block < blocks; ++block, at.advance()) {
      const int stage = first_stage + at.stage;
      wait_for_phase<bounded>(shared.full(stage), at.parity, 3 + warp, stage, work.fault);
      if constexpr (Form::product == Product::tn) {
        const int inside = tile.length - block * hopper_bf16_step;
        if (inside < hopper_bf16_step)
          clear_tokens<waves, Form::width / 64>(shared.a(stage) + own_a, shared.b(stage), inside,
                                                group);
      }
      const std::uint64_t a = a_descriptor + stage * (Form::a_bytes / 16);
      const std::uint64_t b = b_descriptor + stage * (Form::b_bytes / 16);
#pragma unroll
      for (int wave = 0; wave < waves; ++wave) hold_accumulators(total[wave]);
      products_begin();
#pragma unroll
      for (int step = 0; step < hopper_bf16_step / 16; ++step)
#pragma unroll
        for (int wave = 0; wave < waves; ++wave)
          multiply_bf16_tiles<Form::a_across, Form::b_across>(
              total[wave], a + wave * (hopper_bf16_panel / 16) + step * a_step, b + step * b_step);
      products_end();
      wait_for_series<1>();
#pragma unroll
      for (int wave = 0; wave < waves; ++wave) hold_accumulators(total[wave]);
      if (block > 0 && lane == 0) arrive(shared.empty(before));
      before = stage;
    }
    wait_for_series<0>();
#pragma unroll
    for (int wave = 0; wave < waves; ++wave) hold_accumulators(total[wave]);
    if (blocks > 0 && lane == 0) arrive(shared.empty(before));
    store_tile<Form>(work, tile, row, lane, total);
  }
}

// Persistent: as many blocks as multiprocessors, each of which walks its list of tiles.
template <class Form, bool bounded, class TC>
__global__ void __launch_bounds__(hopper_threads, 1)
    hopper_bf16_kernel(const __grid_constant__ HopperBf16Maps maps,
                       const __grid_constant__ HopperCodes<TC> work) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char dynamic[];
  const HopperBf16Shared<Form> shared(dynamic);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0);  // known to be uniform
  if (threadIdx.x == 0) {
    prefetch_map(maps.a);
    prefetch_map(maps.b);
    for (int stage = 0; stage < Form::stages; ++stage) {
      barrier_init(shared.full(stage), 1);
      barrier_init(shared.empty(stage), Form::apart ? 4 : 8);
    }
    if (shared.start % 1024 != 0) __trap();
    barriers_are_ready();
  }
  find_groups<Form>(work, shared.first(), shared.tiles());  // synchronises

  const int ring = !Form::apart ? 0 : warp < 4 ? warp % 2 : warp / 4 - 1;
  const HopperWalk<Form, TC> walk(work, {shared.first(), shared.tiles()}, ring, Form::rings);
  if (warp < 4) {
    shrink_registers<Form::bringing>();
    if (warp < Form::rings && threadIdx.x % 32 == 0)
      bring_bf16<Form, bounded>(work, maps, shared, walk, ring);
    __syncwarp();
  } else {
    grow_registers<Form::multiplying>();
    multiply_bf16_tile<Form, bounded>(work, shared, warp - 4, walk);
  }
#endif
}

}  // namespace dsv3::detail
