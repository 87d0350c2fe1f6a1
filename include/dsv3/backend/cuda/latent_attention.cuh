// Attention over a latent cache on a GPU: tiles on tensor cores, splits of the keys, their sum.
#pragma once

#include <dsv3/backend/cuda/latent_hopper.cuh>
#include <dsv3/backend/cuda/latent_load.cuh>
#include <dsv3/backend/cuda/launch.cuh>

namespace dsv3 {
namespace detail {

// One split of one unit on the tensor cores of any GPU from compute capability 8.0 on. Scores: a
// warp has 16 rows and half of a tile's keys. Sums: a warp has all rows and an eighth of the
// columns, so that the latents, of which there are more, are read from shared memory once.
template <class C, int V, int R>
__global__ void __launch_bounds__(LatentTile::threads, 1)
    latent_tile_kernel(LatentPass<C> in, int stages) {
  constexpr int columns = V / 8;
  const auto unit = LatentUnit::at(in, blockIdx.x);
  const int tiles = unit.tiles(), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (tiles == 0) return;
  const LatentShared<V, R> shared(dynamic_shared(), stages);
  const auto buffer = [&](int tile) {
    return shared.keys + (stages == 2 ? tile % 2 : 0) * LatentShared<V, R>::tile;
  };
  LatentKeys<C, V, R, false> keys;
  const auto load = [&](int tile) {
    keys.fetch(in);
    keys.store(in, buffer(tile));
    copies_end_group();
    keys.find(in, unit, tile + 1);
  };
  keys.find(in, unit, 0);
  load_latent_queries<false>(in, unit, shared);
  load(0);
  float sum[4][columns / 8][4] = {};
  LatentSoftmax softmax;
  for (int tile = 0; tile < tiles; ++tile) {
    if (stages == 2 && tile + 1 < tiles) {
      load(tile + 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    const bf16* k = buffer(tile);
    float s[16] = {};
    const int row0 = warp % 4 * 16, key0 = warp / 4 * 32;
    if (row0 < unit.rows()) {
      const int own_row = row0 + lane % 16, own_key = key0 + lane % 8 + lane / 16 * 8;
#pragma unroll 4
      for (int c = 0; c < (V + R) / 8; c += 2) {
        std::uint32_t a[4], b[4];
        load_matrices(a, shared.q + latent_at(own_row, c + lane / 16));
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          load_matrices(b, k + latent_at(own_key + 16 * n, c + lane / 8 % 2));
          auto& first = *reinterpret_cast<float(*)[4]>(s + 8 * n);
          auto& second = *reinterpret_cast<float(*)[4]>(s + 8 * n + 4);
          multiply_bf16(first, a, b[0], b[1]);
          multiply_bf16(second, a, b[2], b[3]);
        }
      }
    }
    float keep[2];
    softmax.weigh(shared, s, unit.begin() + LatentTile::keys * tile, in.scale2, keep);
    if (lane % 4 == 0 && softmax.half() == 0)
      for (int h = 0; h < 2; ++h) shared.keep[softmax.row(h)] = keep[h];
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float own = shared.keep[16 * m + 8 * h + lane / 4];
#pragma unroll
        for (int n = 0; n < columns / 8; ++n) {
          sum[m][n][2 * h] *= own;
          sum[m][n][2 * h + 1] *= own;
        }
      }
#pragma unroll
    for (int j = 0; j < LatentTile::keys; j += 16) {
      std::uint32_t a[4][4];
#pragma unroll
      for (int m = 0; m < 4; ++m)
        load_matrices(a[m], shared.weights + latent_at(16 * m + lane % 16, j / 8 + lane / 16));
#pragma unroll
      for (int n = 0; n < columns / 8; n += 2) {
        std::uint32_t b[4];
        load_transposed(b, k + latent_at(j + lane % 16, warp * (columns / 8) + n + lane / 16));
#pragma unroll
        for (int m = 0; m < 4; ++m)
          if (16 * m < unit.rows()) {
            multiply_bf16(sum[m][n], a[m], b[0], b[1]);
            multiply_bf16(sum[m][n + 1], a[m], b[2], b[3]);
          }
      }
    }
    __syncthreads();  // the tile and the weights have been read
    if (stages == 1 && tile + 1 < tiles) load(tile + 1);
  }
  softmax.end(shared);
  __syncthreads();
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const LatentRowOut put(in, unit, shared, 16 * m + 8 * h + lane / 4);
#pragma unroll
      for (int n = 0; n < columns / 8; ++n)
        put(warp * columns + 8 * n + 2 * (lane % 4), sum[m][n][2 * h], sum[m][n][2 * h + 1]);
    }
}

// One split of one row, for widths that no tile has: a warp takes a key for its score, a thread a
// column for its sum, which stays in the partial result.
template <class C>
__global__ void __launch_bounds__(128) latent_any_size_kernel(LatentPass<C> in) {
  __shared__ float score[LatentTile::keys];
  __shared__ Index slot[LatentTile::keys];
  const auto unit = LatentUnit::at(in, blockIdx.x);
  const int tiles = unit.tiles(), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (tiles == 0) return;
  const Index t = unit.t0, head = unit.h0, width = in.pages.latent.extent(1);
  const Index rope = in.pages.rope.extent(1), nope = in.q.extent(2) - rope;
  const Index at = in.partial(t, head);
  float* sum = &in.sum(at, unit.split, 0);
  float level = LatentSoftmax::infinity, denominator = 0;
  for (Index d = threadIdx.x; d < width; d += 128) sum[d] = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int first = unit.begin() + LatentTile::keys * tile;
    const int keys = unit.end - first < LatentTile::keys ? unit.end - first : LatentTile::keys;
    for (int j = warp; j < keys; j += 4) {
      const Index own = in.table.slot(unit.part, first + j);
      float s = 0;
      for (Index d = lane; d < width; d += 32)
        s = dsv3::fma(float(in.q_latent(t, head, d)),
                      float(in.pages.template latent_as<bf16>(own, d)), s);
      for (Index d = lane; d < rope; d += 32)
        s = dsv3::fma(float(in.q(t, head, nope + d)),
                      float(in.pages.template rope_as<bf16>(own, d)), s);
      for (int step = 16; step > 0; step /= 2) s += __shfl_xor_sync(~0u, s, step);
      if (lane == 0) score[j] = s, slot[j] = own;
    }
    __syncthreads();
    float next = level;
    for (int j = 0; j < keys; ++j) next = fminf(next, -score[j] * in.scale2);
    const float keep = exp2_fast(next - level);
    float weights = 0;
    for (int j = 0; j < keys; ++j) weights += exp2_fast(dsv3::fma(score[j], in.scale2, next));
    denominator = dsv3::fma(denominator, keep, weights);
    level = next;
    for (Index d = threadIdx.x; d < width; d += 128) {
      float own = sum[d] * keep;
      for (int j = 0; j < keys; ++j)
        own = dsv3::fma(exp2_fast(dsv3::fma(score[j], in.scale2, next)),
                        float(in.pages.template latent_as<bf16>(slot[j], d)), own);
      sum[d] = own;
    }
    __syncthreads();
  }
  if (in.table.position(t) < LatentTile::split) {
    for (Index d = threadIdx.x; d < width; d += 128) in.o(t, head, d) = bf16(sum[d] / denominator);
  } else if (threadIdx.x == 0) {
    in.level(at, unit.split) = level;
    in.denominator(at, unit.split) = denominator;
  }
}

// Adds the splits of a row in ascending order; rows of one split have been written.
template <class C>
__global__ void __launch_bounds__(128) latent_combine_kernel(LatentPass<C> in) {
  const Index heads = in.o.extent(1), at = blockIdx.x, t = in.first + at / heads, head = at % heads;
  const int splits = in.table.position(t) / LatentTile::split + 1;
  if (splits == 1) return;
  float level = LatentSoftmax::infinity, denominator = 0;
  for (int s = threadIdx.x % 32; s < splits; s += 32) level = fminf(level, in.level(at, s));
  for (int step = 16; step > 0; step /= 2) level = fminf(level, __shfl_xor_sync(~0u, level, step));
#pragma unroll 8
  for (int s = 0; s < splits; ++s)
    denominator = dsv3::fma(in.denominator(at, s), exp2_fast(level - in.level(at, s)), denominator);
  for (Index d = 4 * threadIdx.x; d < in.o.extent(2); d += 4 * 128) {
    float sum[4] = {};
#pragma unroll 8
    for (int s = 0; s < splits; ++s) {
      const float4 add = *reinterpret_cast<const float4*>(&in.sum(at, s, d));
      const float weight = exp2_fast(level - in.level(at, s));
      sum[0] = dsv3::fma(add.x, weight, sum[0]);
      sum[1] = dsv3::fma(add.y, weight, sum[1]);
      sum[2] = dsv3::fma(add.z, weight, sum[2]);
      sum[3] = dsv3::fma(add.w, weight, sum[3]);
    }
    for (int e = 0; e < 4; ++e)
      if (d + e < in.o.extent(2)) in.o(t, head, d + e) = bf16(sum[e] / denominator);
  }
}

// Whether chunks of 16 bytes of every row can be copied at once.
template <class T, int Rank>
bool latent_aligned(const View<T, Rank>& view, Index first, Index width) {
  constexpr Index each = 16 / Index{sizeof(T)};
  bool aligned = reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && first % each == 0 &&
                 width % each == 0;
  for (int d = 0; d + 1 < Rank; ++d) aligned = aligned && view.strides[d] % each == 0;
  return aligned;
}

template <class Kernel, class... Args>
void launch_latent_kernel(Cuda& cuda, Kernel kernel, const std::string& sizes, Index blocks,
                          int threads, int bytes, const Args&... args) {
  const char* caller = "fused_latent_attention";
  if (bytes > 0)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               caller, "cudaFuncSetAttribute", sizes);
  detail::launch(cuda, kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                 static_cast<std::size_t>(bytes), args...);
  check_cuda(cudaGetLastError(), caller, "launch", sizes);
}

template <class C>
void launch_latent_pass(Cuda& cuda, const LatentPlan& plan, const LatentPass<C>& in,
                        const std::string& sizes) {
  const Index blocks = (in.last - in.first) * plan.head_blocks * plan.splits;
  const auto tile = [&](auto kernel, int width, int stages, const auto&... more) {
    launch_latent_kernel(cuda, kernel, sizes, blocks, LatentTile::threads,
                         LatentTile::bytes(width, stages), in, more...);
  };
  if (plan.kernel == LatentKernel::any_size)
    launch_latent_kernel(cuda, latent_any_size_kernel<C>, sizes, blocks, 128, 0, in);
  else if (plan.kernel == LatentKernel::tile_128)
    tile(latent_tile_kernel<C, 128, 64>, 128 + 64, plan.stages, plan.stages);
  else if (in.q_aligned && in.keys_aligned && latent_hopper_usable<C>(cuda))
    tile(latent_hopper_kernel<C>, 512 + 64, 2);
  else
    tile(latent_tile_kernel<C, 512, 64>, 512 + 64, plan.stages, plan.stages);
  if (plan.splits > 1)
    launch_latent_kernel(cuda, latent_combine_kernel<C>, sizes,
                         (in.last - in.first) * in.o.extent(1), 128, 0, in);
}

}  // namespace detail

template <class C>
void fused_latent_attention(Cuda& cuda, View<const bf16, 3> q_latent, View<const bf16, 3> q,
                            CachePages<const C> pages, const CacheTable& table, double scale,
                            View<bf16, 3> o, Arena& scratch) {
  const Index tokens = q.extent(0), heads = q.extent(1), latent = pages.latent.extent(1);
  const Index rope = pages.rope.extent(1);
  if (tokens == 0 || heads == 0 || latent == 0) return;
  const ArenaScope scope(scratch);
  const auto plan = detail::latent_plan(cuda, tokens, heads, latent, rope, table.keys);
  const Index rows = plan.partials > 0 ? plan.tokens_each * heads : 0;
  const auto sum = scratch.take<float>({plan.partials * plan.padded});
  const auto level = scratch.take<float>({plan.partials});
  const auto denominator = scratch.take<float>({plan.partials});
  detail::LatentPass<C> in{};
  in.q_latent = q_latent, in.q = q, in.pages = pages, in.table = table, in.o = o;
  in.scale2 = static_cast<float>(scale * 1.4426950408889634);  // 1 / ln 2
  in.most = plan.most, in.heads_each = plan.heads_each, in.head_blocks = plan.head_blocks;
  in.sum = View<float, 3>(sum.data, {rows, plan.splits, plan.padded});
  in.level = View<float, 2>(level.data, {rows, plan.splits});
  in.denominator = View<float, 2>(denominator.data, {rows, plan.splits});
  in.q_aligned = detail::latent_aligned(q_latent, 0, latent) &&
                 detail::latent_aligned(q, q.extent(2) - rope, rope);
  in.keys_aligned = detail::latent_aligned(pages.latent, 0, latent) &&
                    detail::latent_aligned(pages.rope, 0, rope);
  const auto sizes = std::to_string(tokens) + " tokens, " + std::to_string(heads) + " heads, " +
                     std::to_string(latent) + " + " + std::to_string(rope) + " features, " +
                     std::to_string(table.keys) + " keys";
  for (in.first = 0; in.first < tokens; in.first += plan.tokens_each) {
    in.last = std::min(tokens, in.first + plan.tokens_each);
    detail::launch_latent_pass(cuda, plan, in, sizes);
  }
}

}  // namespace dsv3
