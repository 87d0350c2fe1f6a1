// dQ of attention: a tile of queries of one head, over the keys that they see.
#pragma once

#include <dsv3/backend/cuda/attention_backward.cuh>

namespace dsv3::detail {

template <class Shape>
struct AttentionQueriesWarp {
  static constexpr int qk = Shape::width_qk, v = Shape::width_v, step = Shape::stream,
                       columns = step / 8;
  float dq[qk / 8][4];
  float lse2[2], delta[2];  // of rows g and g + 8, g = lane / 4

  // `query` is the warp's first; queries from `end` on are zeros and write nothing.
  __device__ __forceinline__ void begin(const AttentionQueryNumbers& numbers, int head, int query,
                                        int end) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = query + 8 * half + lane / 4;
      lse2[half] = t < end ? numbers.lse2(head, t) : 0.0f;
      delta[half] = t < end ? numbers.delta(head, t) : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < qk / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dq[n][e] = 0;
  }

  // The keys of a stage, of which the first is `key`.
  __device__ __forceinline__ void add(std::uint32_t q_tile, std::uint32_t o_tile,
                                      std::uint32_t stage, int key, int query, float scale_log2) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // Everything that needs no branch comes first, so that the two products hide the exponentials.
    float p[columns][4], dp[columns][4];
    attention_product<qk, columns>(p, AttentionReader<qk>(q_tile), AttentionReader<qk>(stage), 0);
#pragma unroll
    for (int n = 0; n < columns; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) p[n][e] = exp2_fast(fmaf(p[n][e], scale_log2, -lse2[e / 2]));
    attention_product<v, columns>(dp, AttentionReader<v>(o_tile),
                                  AttentionReader<v>(stage + Shape::stage_v), 0);
    if (key + step - 1 > query) {  // else every query sees every key
      const int seen = query + lane / 4 - key - lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < columns; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (8 * n + e % 2 > seen + e / 2 * 8) p[n][e] = 0;
    }
#pragma unroll
    for (int n = 0; n < columns; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dp[n][e] = p[n][e] * (dp[n][e] - delta[e / 2]);
    attention_add_product<qk, columns>(dq, dp, AttentionReader<qk>(stage), 0);
  }

  // Writes row lane / 4 + 8 * half of the warp's queries and what follows it.
  template <int half = 0>
  __device__ __forceinline__ void finish(const View<bf16, 3>& to, int query, int end, int head,
                                         float scale) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int width = static_cast<int>(to.extent(2)), t = query + 8 * half + lane / 4;
    if (t < end) {
      bf16* row = &to(t, head, 0);
#pragma unroll
      for (int n = 0; n < qk / 8; ++n)
        store_attention_pair<Shape::aligned>(row, 8 * n + lane % 4 * 2, width,
                                             scale * dq[n][2 * half], scale * dq[n][2 * half + 1]);
    }
    if constexpr (half == 0) finish<1>(to, query, end, head, scale);
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    attention_queries_kernel(AttentionBackwardTask task, View<bf16, 3> dq) {
  unsigned char* const attention_memory = dynamic_shared();
  volatile int* next = reinterpret_cast<int*>(attention_memory + Shape::words);
  const std::uint32_t memory = shared_address(attention_memory);
  const AttentionTask& in = task.in;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const std::uint32_t q_tile = memory + 16 * warp * Shape::width_qk * 2;
  const std::uint32_t o_tile = memory + Shape::v_tile + 16 * warp * Shape::width_v * 2;
  for (;;) {
    if (threadIdx.x == 0) *next = in.map.take(1);
    __syncthreads();  // nobody reads the tiles of the last unit any more
    const int tiles = in.map.words[AttentionMap::tiles], unit = *next;
    if (unit >= tiles * in.heads()) return;
    const auto [head, tile] = attention_unit(unit, tiles, true);
    const int t0 = in.map.words[AttentionMap::first + tile], end_all = in.end(t0);
    const int end = t0 + Shape::rows < end_all ? t0 + Shape::rows : end_all;
    const int query = t0 + 16 * warp;
    load_attention_tile<Shape::width_qk, Shape::rows, Shape::threads, Shape::aligned>(
        memory, attention_rows(in.q, t0, head, 0, in.d_qk()), end - t0);
    load_attention_tile<Shape::width_v, Shape::rows, Shape::threads, Shape::aligned>(
        memory + Shape::v_tile, attention_rows(task.d_o, t0, head, 0, in.d_v()), end - t0);
    const auto load = [&, head = head](int j, int place) {
      const std::uint32_t stage = memory + Shape::stage + place * Shape::stage_bytes;
      load_attention_tile<Shape::width_qk, Shape::stream, Shape::threads, Shape::aligned>(
          stage, attention_key_rows(in, j, head), end - j);
      load_attention_tile<Shape::width_v, Shape::stream, Shape::threads, Shape::aligned>(
          stage + Shape::stage_v, attention_rows(in.kv, j, head, in.d_n(), in.d_v()), end - j);
      copies_end_group();
    };
    AttentionQueriesWarp<Shape> own;
    own.begin(task.numbers, head, query, end);
    int place = 0;
    int j = in.begin(t0);
    load(j, 0);
    for (; j < end; j += Shape::stream) {
      wait_for_copies<0>();
      __syncthreads();  // this stage is there, and nobody reads the other one any more
      const int other = Shape::stages == 2 ? 1 - place : 0;
      const bool more = j + Shape::stream < end;
      if (Shape::stages == 2 && more) load(j + Shape::stream, other);
      own.add(q_tile, o_tile, memory + Shape::stage + place * Shape::stage_bytes, j, query,
              in.scale_log2);
      if (Shape::stages == 1) {
        __syncthreads();
        if (more) load(j + Shape::stream, 0);
      }
      place = other;
    }
    own.finish(dq, query, end, head, in.scale);
  }
}

}  // namespace dsv3::detail
