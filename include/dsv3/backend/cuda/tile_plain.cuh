// Products of any types without tensor cores: float, double, mixtures, and codes of any groups.
#pragma once

#include <dsv3/backend/cuda/tile_problem.cuh>
#include <dsv3/core/math.hpp>

namespace dsv3::detail {

// 64 x 64 elements of the output for 128 threads of 8 x 4, in tiles of 16 along the sum.
struct PlainShape {
  static constexpr int rows = 64, columns = 64, depth = 16, threads = 128;
  static constexpr int own_rows = 8, own_columns = 4;
  static constexpr int across = columns / own_columns;   // threads side by side
  static constexpr int width = rows + 4;                 // rows of a tile in shared memory
  static constexpr int copies = rows * depth / threads;  // elements of an operand for each thread
  static_assert(rows == columns && threads * own_rows * own_columns == rows * columns);
};

// One thread's elements of an operand's tiles.
template <bool along_k, class A, class T>
class PlainCopies {
 public:
  __device__ PlainCopies(const View<const T, 2>& operand, int origin)
      : from_(operand.data),
        stride_(operand.strides[0]),
        rows_(static_cast<int>(operand.extent(0))),
        columns_(static_cast<int>(operand.extent(1))),
        k_(along_k ? thread() % PlainShape::depth : thread() / PlainShape::rows),
        i_(along_k ? thread() / PlainShape::depth : thread() % PlainShape::rows),
        origin_(origin) {}

  // Zeros where the operand has no element.
  __device__ void fetch(int first_k) {
#pragma unroll
    for (int j = 0; j < PlainShape::copies; ++j) {
      const int k = first_k + k_ + j * k_pass, i = origin_ + i_ + j * i_pass;
      const int row = along_k ? i : k, column = along_k ? k : i;
      const bool inside = row < rows_ && column < columns_;
      values_[j] = inside ? A(accum_t<T>(from_[row * stride_ + column])) : A(0);
    }
  }
  __device__ void keep(A (&tile)[PlainShape::depth][PlainShape::width]) const {
#pragma unroll
    for (int j = 0; j < PlainShape::copies; ++j)
      tile[k_ + j * k_pass][i_ + j * i_pass] = values_[j];
  }

 private:
  static constexpr int k_pass = along_k ? 0 : PlainShape::threads / PlainShape::rows;
  static constexpr int i_pass = along_k ? PlainShape::threads / PlainShape::depth : 0;
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }

  const T* from_;
  Index stride_;
  int rows_, columns_, k_, i_, origin_;
  A values_[PlainShape::copies];
};

// count neighbours, in loads of 16 bytes; from is a multiple of that.
template <int count, class A>
__device__ void load_neighbours(A (&to)[count], const A* from) {
  struct alignas(16) Chunk {
    A values[16 / sizeof(A)];
  };
  constexpr int in_chunk = 16 / sizeof(A);
#pragma unroll
  for (int i = 0; i < count; i += in_chunk) {
    const Chunk chunk = *reinterpret_cast<const Chunk*>(from + i);
#pragma unroll
    for (int j = 0; j < in_chunk; ++j) to[i + j] = chunk.values[j];
  }
}

// Sums in A by ascending fma, one for each element. `scaled`: operands are codes, and each
// segment's sum is promoted as in the gemm on codes.
template <bool scaled, class A, class TA, class TB, class Problem>
__global__ void __launch_bounds__(PlainShape::threads)
    plain_kernel(const Problem problem, const TileGrid grid) {
  using S = PlainShape;
  constexpr bool left_along_k = Problem::product != Product::tn;
  constexpr bool right_along_k = Problem::product == Product::nt;
  const auto part = find_part<S::rows, S::columns>(problem, grid);
  if (part.row >= part.c.extent(0)) return;

  __shared__ __align__(16) A left_tile[2][S::depth][S::width], right_tile[2][S::depth][S::width];
  const auto a = elements_of(part.a);
  PlainCopies<left_along_k, A, TA> left(a, part.row);
  PlainCopies<right_along_k, A, TB> right(elements_of(part.b), part.column);
  const int depth = static_cast<int>(a.extent(left_along_k ? 1 : 0));
  const int own_row = static_cast<int>(threadIdx.x) / S::across * S::own_rows;
  const int own_column = static_cast<int>(threadIdx.x) % S::across * S::own_columns;
  const auto rows = part.c.extent(0), columns = part.c.extent(1);
  A sum[S::own_rows][S::own_columns] = {}, total[S::own_rows][S::own_columns] = {};
  // The segment [first, end): total = fma(sum, scale_a * scale_b, total).
  const auto promote = [&](int first) {
    if constexpr (scaled) {
      const auto sa = operand_scales(part.a, left_along_k);
      const auto sb = operand_scales(part.b, right_along_k);
      A right_scale[S::own_columns];
      for (int j = 0; j < S::own_columns; ++j) {
        const Index column = part.column + own_column + j;
        right_scale[j] = column < columns ? A(sb.at(column, first)) : A(0);
      }
#pragma unroll
      for (int i = 0; i < S::own_rows; ++i) {
        const Index row = part.row + own_row + i;
        const A left_scale = row < rows ? A(sa.at(row, first)) : A(0);
#pragma unroll
        for (int j = 0; j < S::own_columns; ++j) {
          total[i][j] = dsv3::fma(sum[i][j], left_scale * right_scale[j], total[i][j]);
          sum[i][j] = 0;
        }
      }
    }
  };
  SegmentMap segments;
  if constexpr (scaled)
    segments =
        SegmentMap(operand_scales(part.a, left_along_k), operand_scales(part.b, right_along_k));
  int segment = 0, segment_end = segments.end(0);
  left.fetch(0);
  right.fetch(0);
  for (int k = 0; k < depth; k += S::depth) {
    const int buffer = k / S::depth % 2;
    left.keep(left_tile[buffer]);
    right.keep(right_tile[buffer]);
    __syncthreads();
    left.fetch(k + S::depth);
    right.fetch(k + S::depth);
#pragma unroll(scaled ? 1 : 4)
    for (int j = 0; j < S::depth; ++j) {
      A x[S::own_rows], y[S::own_columns];
      load_neighbours(x, &left_tile[buffer][j][own_row]);
      load_neighbours(y, &right_tile[buffer][j][own_column]);
#pragma unroll
      for (int m = 0; m < S::own_rows; ++m)
#pragma unroll
        for (int n = 0; n < S::own_columns; ++n) sum[m][n] = dsv3::fma(x[m], y[n], sum[m][n]);
      const int next = k + j + 1;
      if (scaled && next <= depth && (next == segment_end || next == depth)) {
        promote(segment);
        segment = next;
        segment_end = segments.end(next);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < S::own_rows; ++i) {
    const Index row = part.row + own_row + i;
    if (row >= rows) return;
#pragma unroll
    for (int j = 0; j < S::own_columns; ++j) {
      const Index column = part.column + own_column + j;
      if (column >= columns) continue;
      auto& c = part.c(row, column);
      using TC = std::remove_reference_t<decltype(c)>;
      const A result = scaled ? total[i][j] : sum[i][j];
      c = TC(problem.add ? accum_t<TC>(c) + result : result);
    }
  }
}

}  // namespace dsv3::detail
