// Attention over a latent cache on the tensor cores of compute capability 9.0, by groups of four
// warps.
#pragma once

#include <dsv3/backend/cuda/latent_load.cuh>

namespace dsv3::detail {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// How wgmma finds a tile of panels in shared memory, from an address that is a multiple of 16:
// `next` is the distance in bytes of the next 64 columns where columns are what is multiplied along
// the output, and eight rows of 128 bytes follow one another.
__device__ inline std::uint64_t panels_at(const void* tile, int next) {
  std::uint32_t address = shared_address(tile);
  asm volatile("" : "+r"(address));  // is not worth keeping dozens of these in registers
  return std::uint64_t{address >> 4} | std::uint64_t{static_cast<unsigned>(next) >> 4} << 16 |
         std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

// c [64, 32] = a [64, 16] b^T, or c += where `add`, for b of 32 rows: both along their rows. Warp w
// has rows from 16 w, and within them what multiply_bf16 says, for each 8 columns.
__device__ inline void group_multiply_rows(float (&c)[16], std::uint64_t a, std::uint64_t b,
                                           int add) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %18, 0; "
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15 "
      "}, %16, %17, p, 1, 1, 0, 0;}"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
        "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),
        "+f"(c[14]), "+f"(c[15])
      : "l"(a), "l"(b), "r"(add));
}

// c [64, 128] += a [64, 16] b for b of 16 rows and 128 columns.
__device__ inline void group_multiply_columns(float (&c)[64], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 "
      "}, %64, %65, 1, 1, 1, 0, 1;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
        "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),
        "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]),
        "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]),
        "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]),
        "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]),
        "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]),
        "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
        "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]),
        "+f"(c[63])
      : "l"(a), "l"(b));
}

__device__ inline void group_multiply_begins() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void group_multiply_ends() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most `pending` of the products are on their way.
template <int pending>
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Makes what this thread has written to shared memory visible to wgmma, after the next barrier.
__device__ inline void publish_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#endif

inline constexpr std::size_t latent_absent_bytes = 8192;

// One split of one unit. Both groups of four warps have all rows: of the scores half of a tile's
// keys, of the sums half of the columns. The products of one tile's sums and of the next one's
// scores run while the tile after that is brought in:
//
//     weights of i | sums of i, scores of i + 1 ... | tile i + 2 into the place of i
template <class C>
__global__ void __launch_bounds__(LatentTile::threads, 1) latent_hopper_kernel(LatentPass<C> in) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int V = 512, R = 64, panel = LatentTile::keys * LatentTile::columns;
  extern __shared__ unsigned char memory[];
  const auto unit = LatentUnit::at(in, blockIdx.x);
  const int tiles = unit.tiles(), lane = threadIdx.x % 32;
  const int half = __shfl_sync(~0u, LatentSoftmax::half(), 0);  // known to be the warp's
  if (tiles == 0) return;
  const LatentShared<V, R> shared(memory, 2);
  const auto buffer = [&](int tile) { return shared.keys + tile % 2 * LatentShared<V, R>::tile; };
  LatentKeys<C, V, R, true> keys;
  const auto scores = [&](float(&s)[16], int tile) {
    const std::uint64_t a = panels_at(shared.q, 0),
                        b = panels_at(buffer(tile) + half * 32 * LatentTile::columns, 0);
#pragma unroll
    for (int c = 0; c < (V + R) / 16; ++c) {
      const int at = (c / 4 * panel * 2 + c % 4 * 32) >> 4;
      group_multiply_rows(s, a + at, b + at, c > 0);
    }
  };
  keys.find(in, unit, 0);
  load_latent_queries<true>(in, unit, shared);
  keys.fetch(in);
  keys.store(in, buffer(0));
  copies_end_group();
  keys.find(in, unit, 1);
  keys.fetch(in);
  keys.store(in, buffer(1));
  copies_end_group();
  keys.find(in, unit, 2);
  wait_for_copies<1>();
  publish_shared();
  __syncthreads();
  float s[16], sum[2][64] = {};
  group_multiply_begins();
  scores(s, 0);
  group_multiply_ends();
  wait_for_products<0>();
  LatentSoftmax softmax;
  for (int tile = 0; tile < tiles; ++tile) {
    float keep[2];
    softmax.weigh(shared, s, unit.begin() + LatentTile::keys * tile, in.scale2, keep);
    wait_for_copies<0>();
    publish_shared();
    __syncthreads();  // the weights and the next tile are there
    if (__any_sync(~0u, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
      for (int j = 0; j < 64; ++j) {
        sum[0][j] *= keep[j / 2 % 2];
        sum[1][j] *= keep[j / 2 % 2];
      }
    }
    group_multiply_begins();
    const std::uint64_t a = panels_at(shared.weights, 0),
                        b = panels_at(buffer(tile) + half * 4 * panel, 2 * panel);
#pragma unroll
    for (int k = 0; k < LatentTile::keys / 16; ++k)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        group_multiply_columns(sum[n], a + (32 * k >> 4),
                               b + ((2 * panel * 2 * n + 16 * 128 * k) >> 4));
    group_multiply_ends();
    if (tile + 1 < tiles) {
      group_multiply_begins();
      scores(s, tile + 1);
    }
    group_multiply_ends();
    keys.fetch(in);
    wait_for_products<1>();
    __syncthreads();  // the tile and the weights have been read
    if (tile + 2 < tiles) {
      keys.store(in, buffer(tile));
      keys.find(in, unit, tile + 3);
    }
    copies_end_group();
    wait_for_products<0>();
  }
  __syncthreads();
  softmax.end(shared);
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const LatentRowOut put(in, unit, shared, softmax.row(h));
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int j = 0; j < 16; ++j)
        put(256 * half + 128 * n + 8 * j + 2 * (lane % 4), sum[n][4 * j + 2 * h],
            sum[n][4 * j + 2 * h + 1]);
  }
#else
  // Tells the host that this kernel was compiled for another architecture.
  __shared__ unsigned char absent[latent_absent_bytes];
  if (threadIdx.x == 0) *const_cast<volatile unsigned char*>(absent) = 0;
#endif
}

// Whether the GPU has these instructions and the program was compiled for them.
template <class C>
bool latent_hopper_usable(const Cuda& cuda) {
  if (cuda.capability() / 10 != 9 || !cuda.options().hopper_kernels ||
      LatentTile::bytes(512 + 64, 2) > cuda.shared_bytes())
    return false;
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, latent_hopper_kernel<C>), "fused_latent_attention",
             "cudaFuncGetAttributes");
  return attributes.sharedSizeBytes < latent_absent_bytes;
}

}  // namespace dsv3::detail
