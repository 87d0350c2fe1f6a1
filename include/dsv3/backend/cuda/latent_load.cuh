// How queries and the keys of a latent cache reach shared memory.
#pragma once

#include <dsv3/backend/cuda/latent_tile.cuh>

namespace dsv3::detail {

// Eight bf16 of element(0 ... 7), those from `left` on zero.
__device__ inline uint4 latent_chunk(int left, auto&& element) {
  std::uint32_t words[4] = {};
#pragma unroll
  for (int j = 0; j < 8; ++j)
    if (j < left) words[j / 2] |= std::uint32_t{element(j).bits} << (16 * (j % 2));
  return {words[0], words[1], words[2], words[3]};
}

// Rows [row0, row0 + 8) of `chunks` chunks of columns by one warp. Lane r < 8 knows where row r
// begins in memory; below zero the row is of zeros, as are columns from `width` on.
template <int chunks>
__device__ inline void load_latent_rows(const bf16* from, Index begins, Index width, bf16* to,
                                        int row0, bool aligned) {
  const int lane = threadIdx.x % 32;
#pragma unroll 4
  for (int n = 0; n < chunks / 4; ++n) {
    const int i = 32 * n + lane, row = i / chunks, c = i % chunks;
    const Index begin = __shfl_sync(~0u, begins, row);
    const Index left = begin < 0 ? 0 : width - 8 * c;
    bf16* at = to + latent_at(row0 + row, c);
    if (aligned)  // widths are multiples of 8
      copy_async(at, left > 0 ? from + begin + 8 * c : from, left > 0);
    else
      *reinterpret_cast<uint4*>(at) = latent_chunk(static_cast<int>(left < 8 ? left : 8),
                                                   [&](int j) { return from[begin + 8 * c + j]; });
  }
}

// Eight codes times their scale, as CachePages::latent_as<bf16> rounds them.
__device__ inline uint4 latent_of_codes(std::uint32_t low, std::uint32_t high, float scale) {
  std::uint32_t words[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const std::uint32_t pair = (j < 2 ? low : high) >> (16 * (j % 2));
    float low_value, high_value;
    decode_pair<e4m3>(pair, low_value, high_value);
    words[j] = pack_bf16(low_value * scale, high_value * scale);
  }
  return {words[0], words[1], words[2], words[3]};
}

// The eight keys of a tile that one warp brings to shared memory: find says where they are; fetch
// asks for them as far as registers are the way; store puts them into the tile, where they are when
// the thread's copies are done.
// `aligned`: every row starts at a multiple of 16 bytes; else in.keys_aligned says so.
template <class C, int V, int R, bool aligned>
struct LatentKeys {
  static constexpr bool coded = std::is_same_v<C, e4m3>, plain = std::is_same_v<C, bf16>;
  static constexpr int units = V / 16, groups = V / CacheElement<C>::group;  // of 16 codes
  static_assert(8 * groups <= 32 && units % 8 == 0);
  Index slot = -1;  // lane k < 8: of key k; -1 beyond the last
  uint4 codes[coded ? units / 4 : 1];
  float scale;  // lane l: of group l % groups of key l / groups

  __device__ void find(const LatentPass<C>& in, const LatentUnit& unit, int tile) {
    const int key =
        unit.begin() + LatentTile::keys * tile + threadIdx.x / 32 * 8 + threadIdx.x % 32;
    slot = -1;
    if (threadIdx.x % 32 >= 8 || key >= unit.end) return;
    const auto size = static_cast<unsigned>(in.table.block_size), at = static_cast<unsigned>(key);
    slot = Index{in.table.blocks(unit.part, at / size)} * in.table.block_size + at % size;
  }

  __device__ void fetch(const LatentPass<C>& in) {
    if constexpr (coded) {
      if (!chunks_of(in)) return;
      const int lane = threadIdx.x % 32;
      const Index width = in.pages.latent.extent(1), row = in.pages.latent.strides[0];
#pragma unroll
      for (int n = 0; n < units / 4; ++n) {
        const int i = 32 * n + lane, c = i % units;
        const Index own = __shfl_sync(~0u, slot, i / units);
        codes[n] = uint4{0, 0, 0, 0};
        if (own >= 0 && 16 * c < width)
          codes[n] = __ldg(reinterpret_cast<const uint4*>(in.pages.latent.data + own * row) + c);
      }
      const Index own = __shfl_sync(~0u, slot, lane / groups % 8);
      const bool inside = own >= 0 && lane % groups < in.pages.scales.extent(1);
      scale = inside ? in.pages.scales(own, lane % groups) : 0.0f;
    }
  }

  __device__ void store(const LatentPass<C>& in, bf16* tile) const {
    const int row0 = threadIdx.x / 32 * 8;
    const auto& latent = in.pages.latent;
    const auto& rope = in.pages.rope;
    bf16* rotated = tile + LatentTile::keys * V;
    if constexpr (plain) {
      load_latent_rows<V / 8>(latent.data, slot < 0 ? -1 : slot * latent.strides[0],
                              latent.extent(1), tile, row0, chunks_of(in));
    } else {
      const auto element = [&](Index own, Index j) {
        return in.pages.template latent_as<bf16>(own, j);
      };
      if constexpr (coded) {
        if (chunks_of(in))
          store_codes(tile, row0);
        else
          store_elements<V / 8>(latent.extent(1), tile, row0, element);
      } else {
        store_elements<V / 8>(latent.extent(1), tile, row0, element);
      }
    }
    if constexpr (plain || coded)
      load_latent_rows<R / 8>(rope.data, slot < 0 ? -1 : slot * rope.strides[0], rope.extent(1),
                              rotated, row0, chunks_of(in));
    else
      store_elements<R / 8>(rope.extent(1), rotated, row0, [&](Index own, Index j) {
        return in.pages.template rope_as<bf16>(own, j);
      });
  }

 private:
  __device__ static bool chunks_of(const LatentPass<C>& in) { return aligned || in.keys_aligned; }

  __device__ void store_codes(bf16* tile, int row0) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < units / 4; ++n) {
      const int i = 32 * n + lane, row = i / units, c = i % units;
      const float own = __shfl_sync(~0u, scale, row * groups + c / 8);
      const uint4 first = latent_of_codes(codes[n].x, codes[n].y, own),
                  second = latent_of_codes(codes[n].z, codes[n].w, own);
      // Every other four lanes begin with the second half: eight lanes then fill all banks.
      const bool swap = (lane & 4) != 0;
      *reinterpret_cast<uint4*>(tile + latent_at(row0 + row, 2 * c + swap)) = swap ? second : first;
      *reinterpret_cast<uint4*>(tile + latent_at(row0 + row, 2 * c + !swap)) =
          swap ? first : second;
    }
  }
  template <int chunks>
  __device__ void store_elements(Index width, bf16* to, int row0, auto&& element) const {
#pragma unroll 1
    for (int n = 0; n < chunks / 4; ++n) {
      const int i = 32 * n + threadIdx.x % 32, row = i / chunks, c = i % chunks;
      const Index own = __shfl_sync(~0u, slot, row), left = own < 0 ? 0 : width - 8 * c;
      *reinterpret_cast<uint4*>(to + latent_at(row0 + row, c)) =
          latent_chunk(static_cast<int>(left < 8 ? left : 8),
                       [&](int j) { return element(own, Index{8 * c + j}); });
    }
  }
};

// The queries of a unit as a tile, eight rows by each warp, and what each row sees.
template <bool aligned, class C, int V, int R>
__device__ inline void load_latent_queries(const LatentPass<C>& in, const LatentUnit& unit,
                                           const LatentShared<V, R>& shared) {
  const int row0 = threadIdx.x / 32 * 8, row = row0 + threadIdx.x % 32;
  Index latent = -1, rope = -1;
  if (threadIdx.x % 32 < 8) {
    const bool inside = row < unit.rows();
    if (inside) {
      const Index t = unit.token(row), head = unit.head(row);
      latent = t * in.q_latent.strides[0] + head * in.q_latent.strides[1];
      rope =
          t * in.q.strides[0] + head * in.q.strides[1] + in.q.extent(2) - in.pages.rope.extent(1);
    }
    shared.limit[row] = inside ? in.table.position(unit.token(row)) : -1;
  }
  load_latent_rows<V / 8>(in.q_latent.data, latent, in.q_latent.extent(2), shared.q, row0,
                          aligned || in.q_aligned);
  load_latent_rows<R / 8>(in.q.data, rope, in.pages.rope.extent(1), shared.q + LatentTile::rows * V,
                          row0, aligned || in.q_aligned);
}

}  // namespace dsv3::detail
