// The kernel of products of e4m3 codes on Hopper: one warp asks TMA for tiles, three transpose
// those that lie across the sum, eight multiply, promote and store.
#pragma once

#include <dsv3/backend/cuda/hopper_barrier.cuh>
#include <dsv3/backend/cuda/hopper_codes_scales.cuh>
#include <dsv3/backend/cuda/hopper_codes_store.cuh>
#include <dsv3/backend/cuda/hopper_transpose.cuh>
#include <dsv3/backend/cuda/hopper_wgmma.cuh>

namespace dsv3::detail {

struct HopperMaps {
  CUtensorMap a, b, a_scales, b_scales;  // scales: of tn alone
};

// Registers of a thread of the first four warps and of the others: together at most those that the
// block starts with, 168 each, or it would wait for ever.
template <class Form>
struct HopperRegisters {
  static constexpr int bringing = !Form::transposes ? 24 : Form::product == Product::nn ? 40 : 56;
  static constexpr int multiplying = !Form::transposes              ? 240
                                     : Form::product == Product::nn ? 232
                                                                    : 224;
  static_assert(bringing + 2 * multiplying <= 3 * 168);
};

// The shared memory of a block, as addresses of the shared window.
template <class Form>
struct HopperShared {
  using Stages = HopperStages<Form>;
  char* memory;         // at a multiple of 1024
  std::uint32_t start;  // the same place

  __device__ explicit HopperShared(char* dynamic)
      : memory(dynamic), start(static_cast<std::uint32_t>(__cvta_generic_to_shared(dynamic))) {}
  __device__ std::uint32_t a(int stage) const { return start + stage * Stages::a_bytes; }
  __device__ std::uint32_t b(int stage) const {
    return start + Stages::b + stage * Stages::b_bytes;
  }
  // Of a, then of b.
  __device__ std::uint32_t scales(int stage) const {
    return start + Stages::scales + stage * Stages::scale_bytes;
  }
  __device__ const float* scale_values(int stage) const {
    return reinterpret_cast<const float*>(memory + Stages::scales + stage * Stages::scale_bytes);
  }
  // Codes have arrived; are transposed; are used up.
  __device__ std::uint32_t full(int stage) const { return start + Stages::barriers + 8 * stage; }
  __device__ std::uint32_t ready(int stage) const { return full(Stages::count + stage); }
  __device__ std::uint32_t empty(int stage) const { return full(2 * Stages::count + stage); }
  __device__ int* first() const { return reinterpret_cast<int*>(memory + Stages::groups); }
  __device__ int* tiles() const { return first() + hopper_most_groups + 1; }
};

// Reached by all threads: where groups and their tiles begin.
template <class Form, class TC>
__device__ void find_groups(const HopperCodes<TC>& work, int* first, int* tiles) {
  constexpr Product p = Form::product;
  const int most = p == Product::tn ? work.depth : work.rows;
  for (int g = threadIdx.x; g <= work.groups; g += hopper_threads) {
    if (!work.offsets) {
      first[g] = g == 0 ? 0 : most;
      continue;
    }
    const Index offset = work.offsets[g];
    first[g] = offset < 0 ? 0 : offset < most ? static_cast<int>(offset) : most;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    constexpr int height = Form::height;
    const int lane = threadIdx.x, each = (work.groups + 31) / 32;
    const auto tiles_of = [&](int g) {
      if (g >= work.groups) return 0;
      const int rows = p == Product::tn ? work.rows : first[g + 1] - first[g];
      return rows > 0 ? (rows + height - 1) / height : 0;
    };
    int own = 0;
    for (int g = lane * each; g < (lane + 1) * each; ++g) own += tiles_of(g);
    int before = own;
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(~0u, before, distance);
      if (lane >= distance) before += other;
    }
    before -= own;
    for (int g = lane * each; g < (lane + 1) * each && g < work.groups; ++g) {
      tiles[g] = before;
      before += tiles_of(g);
      if (g + 1 == work.groups) tiles[g + 1] = before;
    }
  }
  __syncthreads();
}

// The tiles of this block, of which every role walks the same list.
template <class Form, class TC>
struct HopperWalk {
  const HopperCodes<TC>& work;
  HopperGroups groups;
  int number, stride, group = 0;

  __device__ HopperWalk(const HopperCodes<TC>& product, const HopperGroups& found)
      : work(product),
        groups(found),
        number(static_cast<int>(blockIdx.x)),
        stride(static_cast<int>(gridDim.x)) {}
  // One of `rings` lists of a block.
  __device__ HopperWalk(const HopperCodes<TC>& product, const HopperGroups& found, int ring,
                        int rings)
      : work(product),
        groups(found),
        number(static_cast<int>(blockIdx.x) * rings + ring),
        stride(static_cast<int>(gridDim.x) * rings) {}
  __device__ int tiles() const { return groups.tiles[work.groups] * work.column_tiles; }
  __device__ bool next(HopperTile& tile) {
    if (number >= tiles()) return false;
    tile = hopper_tile_of<Form>(groups, number, group, work.column_tiles, work.rows, work.depth);
    number += stride;
    return true;
  }
};

// One thread: asks for the codes of every tile, stage by stage.
template <class Form, bool bounded, class TC>
__device__ void bring_codes(const HopperCodes<TC>& work, const HopperMaps& maps,
                            const HopperShared<Form>& shared, HopperWalk<Form, TC> walk) {
  using Stages = HopperStages<Form>;
  RingPlace<Stages::count> at;
  HopperTile tile;
  while (walk.next(tile)) {
    for (int block = 0; block < tile.blocks; ++block, at.advance()) {
      const int stage = at.stage;
      wait_for_phase<bounded>(shared.empty(stage), at.parity ^ 1, 1, stage, work.fault);
      const std::uint32_t full = shared.full(stage), a = shared.a(stage);
      arrive_expecting(full, Stages::arriving_bytes);
      const int k = block * hopper_tile;
      if constexpr (Form::product == Product::tn) {
        const int token = tile.first + k;
        const int scale_row = hopper_segment(tile.group, tile.first) + block;
        if constexpr (Form::turned) {
          copy_box(a, maps.a, full, scale_row * hopper_tile, tile.row);
          copy_box(shared.b(stage), maps.b, full, scale_row * hopper_tile, tile.column, 0);
        } else {  // 128 tokens of 128 features in a box
          for (int wave = 0; wave < Form::waves; ++wave)
            copy_box(a + wave * hopper_tile_bytes, maps.a, full, tile.row + wave * hopper_tile,
                     token);
          copy_box(shared.b(stage), maps.b, full, tile.column, token, 0);
        }
        copy_box(shared.scales(stage), maps.a_scales, full, tile.row, scale_row);
        copy_box(shared.scales(stage) + Stages::a_scales * 4, maps.b_scales, full, tile.column,
                 scale_row);
      } else {
        copy_box(a, maps.a, full, k, tile.row);
        if constexpr (Form::product == Product::nt)
          copy_box(shared.b(stage), maps.b, full, k, tile.column, tile.group);
        else
          copy_box(shared.b(stage), maps.b, full, tile.column, k, tile.group);
      }
    }
  }
}

// Warp `warp` of three: turns the tiles that lie across the sum, and makes zeros of the tokens that
// are beyond a segment.
template <class Form, bool bounded, class TC>
__device__ void transpose_codes(const HopperCodes<TC>& work, const HopperShared<Form>& shared,
                                int warp, HopperWalk<Form, TC> walk) {
  constexpr Product p = Form::product;
  const TransposeLane lane(threadIdx.x % 32);
  RingPlace<HopperStages<Form>::count> at;
  const auto transpose = [&](int count) {
    wait_for_phase<bounded>(shared.full(at.stage), at.parity, 2, at.stage, work.fault);
    constexpr int tiles = p == Product::tn ? 1 + Form::waves : 1;
    for (int tile = 0; tile < tiles; ++tile) {
      const auto codes =
          tile == 0 ? shared.b(at.stage) : shared.a(at.stage) + (tile - 1) * hopper_tile_bytes;
      if (count < hopper_tile)
        transpose_tile<2, true>(codes, lane, warp, 3, count);
      else
        transpose_tile<p == Product::tn ? 4 : 2, false>(codes, lane, warp, 3, hopper_tile);
    }
    publish_to_async();
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(shared.ready(at.stage));
    at.advance();
  };
  if constexpr (p == Product::tn) {
    HopperTile tile;
    while (walk.next(tile))
      for (int block = 0; block < tile.blocks; ++block)
        transpose(tile.length - block * hopper_tile);
  } else {  // all tiles are alike, and TMA has brought zeros beyond the sum
    for (; walk.number < walk.tiles(); walk.number += walk.stride)
      for (int k = 0; k < work.depth; k += hopper_tile) transpose(hopper_tile);
  }
}

// Warp `warp` of eight: products of its 16 rows of every wave, with its group of four warps.
template <class Form, bool bounded, class TC>
__device__ void multiply_tiles(const HopperCodes<TC>& work, const HopperShared<Form>& shared,
                               int warp, HopperWalk<Form, TC> walk) {
  using Stages = HopperStages<Form>;
  constexpr int waves = Form::waves, n = Form::width / 2;
  const int lane = threadIdx.x % 32, group = warp / 4;
  const int first_row = group * 64;
  const int row = first_row + warp % 4 * 16 + lane / 4;  // in the tile, of the first accumulator
  const std::uint64_t a_descriptor = hopper_descriptor(shared.a(0) + first_row * hopper_tile);
  const std::uint64_t b_descriptor = hopper_descriptor(shared.b(0));
  RingPlace<Stages::count> at;
  HopperTile tile;
  float total[waves][n], sum[n];
  while (walk.next(tile)) {
#pragma unroll
    for (int wave = 0; wave < waves; ++wave)
#pragma unroll
      for (int i = 0; i < n; ++i) total[wave][i] = 0;
    if (work.add) expect_tile<Form>(work, tile, row, lane);
    HopperScales<Form> scales(work, tile, row, lane);
    for (int block = 0; block < tile.blocks; ++block, at.advance()) {
      const int stage = at.stage;
      scales.begin(work, block, shared.scale_values(stage));
      wait_for_phase<bounded>(shared.full(stage), at.parity, 3 + warp, stage, work.fault);
      if constexpr (Form::transposes)
        wait_for_phase<bounded>(shared.ready(stage), at.parity, 11 + warp, stage, work.fault);
#pragma unroll
      for (int wave = 0; wave < waves; ++wave) {
        const std::uint64_t a =
            a_descriptor + (stage * Stages::a_bytes + wave * hopper_tile_bytes) / 16;
        const std::uint64_t b = b_descriptor + stage * Stages::b_bytes / 16;
        const float2 factor = scales.factors(wave, block);
        hold_accumulators(sum);
        products_begin();
        multiply_codes<false>(sum, a, b);
        multiply_codes<true>(sum, a + hopper_descriptor_step, b + hopper_descriptor_step);
        multiply_codes<true>(sum, a + 2 * hopper_descriptor_step, b + 2 * hopper_descriptor_step);
        multiply_codes<true>(sum, a + 3 * hopper_descriptor_step, b + 3 * hopper_descriptor_step);
        products_end();
        wait_for_products(sum);
        if (Form::product != Product::tn && wave + 1 == waves && lane == 0)
          arrive(shared.empty(stage));
        scales.promote(total[wave], sum, factor);
      }
      if constexpr (Form::product == Product::tn) {  // the scales lie in the stage
        __syncwarp();
        if (lane == 0) arrive(shared.empty(stage));
      }
    }
    store_tile<Form>(work, tile, row, lane, total);
  }
}

template <class Form, bool bounded, class TC>
__global__ void __launch_bounds__(hopper_threads, 1)
    hopper_codes_kernel(const __grid_constant__ HopperMaps maps,
                        const __grid_constant__ HopperCodes<TC> work) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char dynamic[];
  const HopperShared<Form> shared(dynamic);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0);  // known to be uniform
  if (threadIdx.x == 0) {
    prefetch_map(maps.a);
    prefetch_map(maps.b);
    for (int stage = 0; stage < HopperStages<Form>::count; ++stage) {
      barrier_init(shared.full(stage), 1);
      barrier_init(shared.ready(stage), 3);
      barrier_init(shared.empty(stage), 8);
    }
    if (shared.start % 1024 != 0) __trap();
    barriers_are_ready();
  }
  find_groups<Form>(work, shared.first(), shared.tiles());

  const HopperWalk<Form, TC> walk(work, {shared.first(), shared.tiles()});
  if (warp < 4) {
    shrink_registers<HopperRegisters<Form>::bringing>();
    if (warp == 0) {
      if (threadIdx.x == 0) bring_codes<Form, bounded>(work, maps, shared, walk);
    } else if constexpr (Form::transposes) {
      transpose_codes<Form, bounded>(work, shared, warp - 1, walk);
    }
    __syncwarp();
  } else {
    grow_registers<HopperRegisters<Form>::multiplying>();
    multiply_tiles<Form, bounded>(work, shared, warp - 4, walk);
  }
#endif
}

}  // namespace dsv3::detail
