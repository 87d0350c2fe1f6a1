// How tiles come from device memory into shared memory.
#pragma once

#include <dsv3/backend/cuda/ptx.cuh>
#include <dsv3/backend/cuda/tile_layout.hpp>

namespace dsv3::detail {

__device__ inline std::uint32_t bits_of(bf16 x) { return x.bits; }
__device__ inline std::uint32_t bits_of(e4m3 x) { return x.code; }
__device__ inline std::uint32_t bits_of(e5m2 x) { return x.code; }

// One thread's copies of an operand's tiles, one tile after the other along the sum. What lies
// outside the operand becomes zero. `aligned`: every chunk that begins inside begins at a multiple
// of 16 bytes; otherwise that is asked at run time, and elements are read one by one where not.
template <bool along_k, int extent, int threads, class T, bool aligned>
class TileCopies {
 public:
  using Map = CopyMap<along_k, extent, threads, sizeof(T)>;

  // origin: of the tile along the output; thread: of the block.
  __device__ TileCopies(const View<const T, 2>& operand, int origin, int thread) {
    const int row = Map::row(thread) + (along_k ? origin : 0);
    const int column = Map::chunk(thread) * Map::elements + (along_k ? 0 : origin);
    const Index stride = operand.strides[0];
    from_ = operand.data + row * stride + column;
    pass_ = Map::pass_rows * stride;
    tile_ = along_k ? Index{tile_depth} : tile_depth * stride;
    rows_left_ = static_cast<int>(operand.extent(0)) - row;
    columns_left_ = static_cast<int>(operand.extent(1)) - column;
    if constexpr (!aligned)
      whole_chunks_ =
          reinterpret_cast<std::uintptr_t>(operand.data) % 16 == 0 && stride % Map::elements == 0;
  }

  __device__ void copy(int pass, std::uint32_t to) const {
    const int across = columns_left_ < Map::elements ? columns_left_ : Map::elements;
    const int count = pass * Map::pass_rows < rows_left_ && across > 0 ? across : 0;
    const T* from = from_ + pass * pass_;
    if constexpr (aligned) {
      copy_bytes_async(to, from, count * static_cast<int>(sizeof(T)));
    } else {
      if (whole_chunks_)
        copy_bytes_async(to, from, count * static_cast<int>(sizeof(T)));
      else
        copy_elements(to, from, count);
    }
  }
  __device__ void next_tile() {
    from_ += tile_;
    (along_k ? columns_left_ : rows_left_) -= tile_depth;
  }

 private:
  __device__ static void copy_elements(std::uint32_t to, const T* from, int count) {
    constexpr int in_word = 4 / sizeof(T), bits = 8 * sizeof(T);
    std::uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < Map::elements; ++i)
      if (i < count) words[i / in_word] |= bits_of(from[i]) << (i % in_word * bits);
    store_16_bytes(to, words[0], words[1], words[2], words[3]);
  }

  const T* from_;
  Index pass_, tile_;
  int rows_left_, columns_left_;
  bool whole_chunks_;
};

}  // namespace dsv3::detail
