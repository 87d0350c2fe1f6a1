// dK and dV of attention: a tile of keys of one head, over the queries from it on.
#pragma once

#include <dsv3/backend/cuda/attention_backward.cuh>

namespace dsv3::detail {

// A block's unit: its head, its first key, and the end of their sequence. In shared memory and read
// when needed: accumulators leave no register for it.
struct AttentionKeysUnit {
  static constexpr int next = 0, head = 1, first = 2, end = 3;
  volatile int* words;

  __device__ int get(int word) const { return words[word]; }
};

// A warp's 16 keys are the rows of all products: the scores' transpose comes out of the tensor
// cores as the left operand of the sums over queries, and nothing but rows of q and dO passes
// through shared memory.
template <class Shape, bool values, bool keys>
struct AttentionKeysWarp {
  static constexpr int qk = Shape::width_qk, v = Shape::width_v, step = 32, columns = step / 8;
  float dv[values ? v / 8 : 1][4], dk[keys ? qk / 8 : 1][4];

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int n = 0; n < (values ? v / 8 : 1); ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dv[n][e] = 0;
#pragma unroll
    for (int n = 0; n < (keys ? qk / 8 : 1); ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[n][e] = 0;
  }

  // Queries [query, query + 32), rows from `row` on of a stage. Rows beyond the sequence are zeros,
  // lse2 and delta too, and add zeros.
  __device__ __forceinline__ void add(std::uint32_t memory, AttentionKeysUnit unit,
                                      std::uint32_t stage, int row, int query, float scale_log2) {
    const int thread = reread_thread(), lane = thread % 32, row0 = thread / 32 * 16;
    const std::uint32_t k_tile = memory + row0 * qk * 2;
    const std::uint32_t v_tile = memory + Shape::v_tile + row0 * v * 2;
    const std::uint32_t numbers =
        stage + Shape::stage_numbers + static_cast<std::uint32_t>(row + lane % 4 * 2) * 4;
    // Everything that needs no branch comes first, so that the two products hide the exponentials.
    float p[columns][4], dp[columns][4];
    attention_product<qk, columns>(p, AttentionReader<qk>(k_tile), AttentionReader<qk>(stage), row);
#pragma unroll
    for (int n = 0; n < columns; ++n) {
      float lse2[2];
      load_two_floats(lse2[0], lse2[1], numbers + n * 32);
#pragma unroll
      for (int e = 0; e < 4; ++e) p[n][e] = exp2_fast(fmaf(p[n][e], scale_log2, -lse2[e % 2]));
    }
    if constexpr (keys)
      attention_product<v, columns>(dp, AttentionReader<v>(v_tile),
                                    AttentionReader<v>(stage + Shape::stage_v), row);
    const int key = unit.get(unit.first) + reread_thread() / 32 * 16;
    if (query < key + 15) {  // else every query sees every key
      const int ahead = query + lane % 4 * 2 - key - lane / 4;
#pragma unroll
      for (int n = 0; n < columns; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (ahead + 8 * n + e % 2 < e / 2 * 8) p[n][e] = 0;
    }
    if constexpr (values)
      attention_add_product<v, columns>(dv, p, AttentionReader<v>(stage + Shape::stage_v), row);
    if constexpr (keys) {
#pragma unroll
      for (int n = 0; n < columns; ++n) {
        float delta[2];
        load_two_floats(delta[0], delta[1], numbers + Shape::stream * 4 + n * 32);
#pragma unroll
        for (int e = 0; e < 4; ++e) dp[n][e] = p[n][e] * (dp[n][e] - delta[e % 2]);
      }
      attention_add_product<qk, columns>(dk, dp, AttentionReader<qk>(stage), row);
    }
  }

  // Writes row lane / 4 + 8 * half of the warp's keys and what follows it.
  template <int half = 0>
  __device__ __forceinline__ void finish(const AttentionTask& in, const View<bf16, 3>& dkv,
                                         const View<float, 3>& rope_sum,
                                         AttentionKeysUnit unit) const {
    const int thread = reread_thread(), lane = thread % 32, head = unit.get(unit.head);
    const int d_n = in.d_n(), d_r = in.d_qk() - d_n;
    const int j = unit.get(unit.first) + thread / 32 * 16 + 8 * half + lane / 4;
    if (j < unit.get(unit.end)) {
      bf16* to = &dkv(j, head, 0);
      if constexpr (values) {
#pragma unroll
        for (int n = 0; n < v / 8; ++n)
          store_attention_pair<Shape::aligned>(to + d_n, 8 * n + lane % 4 * 2, in.d_v(),
                                               dv[n][2 * half], dv[n][2 * half + 1]);
      }
      if constexpr (keys) {
#pragma unroll
        for (int n = 0; n < qk / 8; ++n) {
          const int d = 8 * n + lane % 4 * 2;
          const float first = in.scale * dk[n][2 * half], second = in.scale * dk[n][2 * half + 1];
          store_attention_pair<Shape::aligned>(to, d, d_n, first, second);
          if (d >= d_n && d < d_n + d_r) rope_sum(j, head, d - d_n) = first;
          if (d + 1 >= d_n && d + 1 < d_n + d_r) rope_sum(j, head, d + 1 - d_n) = second;
        }
      }
    }
    if constexpr (half == 0) finish<1>(in, dkv, rope_sum, unit);
  }
};

// One sweep over the queries from j0 on of a tile of keys that starts at j0. The unit's words are
// there after the first barrier.
template <class Shape, bool values, bool keys>
__device__ __forceinline__ void attention_keys_sweep(const AttentionBackwardTask& task,
                                                     const View<bf16, 3>& dkv,
                                                     const View<float, 3>& rope_sum,
                                                     std::uint32_t memory, AttentionKeysUnit unit,
                                                     int head, int j0, int end) {
  const AttentionTask& in = task.in;
  const auto load = [&](int h, int t, int last, int place) {
    const std::uint32_t stage = memory + Shape::stage + place * Shape::stage_bytes;
    load_attention_tile<Shape::width_qk, Shape::stream, Shape::threads, Shape::aligned>(
        stage, attention_rows(in.q, t, h, 0, in.d_qk()), last - t);
    load_attention_tile<Shape::width_v, Shape::stream, Shape::threads, Shape::aligned>(
        stage + Shape::stage_v, attention_rows(task.d_o, t, h, 0, in.d_v()), last - t);
    const int i = reread_thread();
    if (i < 2 * Shape::stream) {
      const int row = i % Shape::stream;
      const View<float, 2>& from = i < Shape::stream ? task.numbers.lse2 : task.numbers.delta;
      const bool inside = t + row < last;
      copy_word_async(stage + Shape::stage_numbers + i * 4, &from(h, inside ? t + row : t), inside);
    }
    copies_end_group();
  };
  AttentionKeysWarp<Shape, values, keys> own;
  own.begin();
  load(head, j0, end, 0);
  for (int at = 0;; at += own.step) {
    const int row = at % Shape::stream;
    const int place = Shape::stages == 2 ? at / Shape::stream % 2 : 0;
    if (row == 0) {
      if (Shape::stages == 1 && at > 0) {
        __syncthreads();
        load(unit.get(unit.head), unit.get(unit.first) + at, unit.get(unit.end), 0);
      }
      wait_for_copies<0>();
      __syncthreads();  // this stage is there, and nobody reads the other one any more
      const int next = unit.get(unit.first) + at + Shape::stream;
      if (Shape::stages == 2 && next < unit.get(unit.end))
        load(unit.get(unit.head), next, unit.get(unit.end), 1 - place);
    }
    const int t = unit.get(unit.first) + at;
    own.add(memory, unit, memory + Shape::stage + place * Shape::stage_bytes, row, t,
            in.scale_log2);
    if (t + own.step >= unit.get(unit.end)) break;
  }
  own.finish(in, dkv, rope_sum, unit);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    attention_keys_kernel(AttentionBackwardTask task, View<bf16, 3> dkv, View<float, 3> rope_sum) {
  unsigned char* const attention_memory = dynamic_shared();
  const AttentionKeysUnit unit{reinterpret_cast<int*>(attention_memory + Shape::words)};
  const std::uint32_t memory = shared_address(attention_memory);
  const AttentionTask& in = task.in;
  for (;;) {
    if (threadIdx.x == 0) unit.words[unit.next] = in.map.take(0);
    __syncthreads();  // nobody reads the tiles of the last unit any more
    const int tiles = in.map.words[AttentionMap::tiles], next = unit.get(unit.next);
    if (next >= tiles * in.heads()) return;
    const auto [head, tile] = attention_unit(next, tiles, false);
    const int j0 = in.map.words[AttentionMap::first + tile], end = in.end(j0);
    if (threadIdx.x == 0)
      unit.words[unit.head] = head, unit.words[unit.first] = j0, unit.words[unit.end] = end;
    load_attention_tile<Shape::width_qk, Shape::rows, Shape::threads, Shape::aligned>(
        memory, attention_key_rows(in, j0, head), end - j0);
    load_attention_tile<Shape::width_v, Shape::rows, Shape::threads, Shape::aligned>(
        memory + Shape::v_tile, attention_rows(in.kv, j0, head, in.d_n(), in.d_v()), end - j0);
    if constexpr (Shape::apart) {
      attention_keys_sweep<Shape, true, false>(task, dkv, rope_sum, memory, unit, head, j0, end);
      __syncthreads();
      attention_keys_sweep<Shape, false, true>(task, dkv, rope_sum, memory, unit, head, j0, end);
    } else {
      attention_keys_sweep<Shape, true, true>(task, dkv, rope_sum, memory, unit, head, j0, end);
    }
  }
}

}  // namespace dsv3::detail
