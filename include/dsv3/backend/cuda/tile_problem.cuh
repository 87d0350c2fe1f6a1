// A product as its kernels see it: plain, batched or grouped, of matrices or of codes; and how a
// block of threads finds its part.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/backend/cuda/tile_schedule.hpp>
#include <dsv3/core/product.hpp>

namespace dsv3::detail {

struct TileGrid {
  int row_tiles, column_tiles;  // of each entry
};

// One product and the tile of its output that begins at (row, column).
template <class A, class B, class TC>
struct TilePart {
  A a;
  B b;
  View<TC, 2> c;
  int row, column;
};

// Products of matrices: entry i multiplies a[i] and b[i]. With offsets: one product for each
// expert, over its rows of a[0] and of c[0] (nt, nn) or of b[0] (tn).
template <Product p, class TA, class TB, class TC>
struct MatrixProblem {
  static constexpr Product product = p;
  using Part = TilePart<View<const TA, 2>, View<const TB, 2>, TC>;

  View<const TA, 3> a;
  View<const TB, 3> b;
  View<TC, 3> c;
  View<const Index, 1> offsets;  // in the device's memory; or empty
  bool add;

  DSV3_HD Part entry(Index i) const { return {a[i], b[i], c[i], 0, 0}; }
  DSV3_HD Part expert(Index e, Index first, Index count) const {
    if constexpr (p == Product::tn)
      return {a[0].rows(first, count), b[0].rows(first, count), c[e], 0, 0};
    else
      return {a[0].rows(first, count), b[e], c[0].rows(first, count), 0, 0};
  }
};

// Products of codes; b is a stack of one where no expert has its own.
template <Product p, class CA, class CB, class TC>
struct CodeProblem {
  static constexpr Product product = p;
  using Part = TilePart<Quantized<const CA>, Quantized<const CB>, TC>;

  Quantized<const CA> a;
  QuantizedStack<const CB> b;
  View<TC, 3> c;
  View<const Index, 1> offsets;
  bool add;

  DSV3_HD Quantized<const CB> only_b() const {
    return {b.codes[0], b.scales, b.group_rows, b.group_columns};
  }
  DSV3_HD Part entry(Index) const { return {a, only_b(), c[0], 0, 0}; }
  DSV3_HD Part expert(Index e, Index first, Index count) const {
    if constexpr (p == Product::tn)
      return {a.segment(e, first, count), only_b().segment(e, first, count), c[e], 0, 0};
    else
      return {a.rows(first, count), b[e], c[0].rows(first, count), 0, 0};
  }
};

template <class Problem>
inline constexpr bool sums_over_rows = Problem::product == Product::tn;

// The elements of an operand, whatever scales belong to them.
template <class T>
DSV3_HD constexpr View<T, 2> elements_of(const View<T, 2>& view) {
  return view;
}
template <class C>
DSV3_HD constexpr View<C, 2> elements_of(const Quantized<C>& q) {
  return q.codes;
}

// Tiles of `rows` x `columns` for the whole output, in a grid of one dimension.
template <class Problem>
TileGrid tile_grid(const Problem& problem, int rows, int columns) {
  const Index experts = problem.offsets.extent(0) ? problem.offsets.extent(0) - 1 : 0;
  const Index all = problem.c.extent(1);
  const Index down = experts && !sums_over_rows<Problem> ? segment_tiles(all, experts, rows)
                                                         : groups_of(all, rows);
  return {static_cast<int>(down), static_cast<int>(groups_of(problem.c.extent(2), columns))};
}

// The part of this block. Reached by all its threads; the row is beyond the output's where the
// block has nothing to do.
template <int rows, int columns, class Problem>
__device__ typename Problem::Part find_part(const Problem& problem, TileGrid grid) {
  const int tiles = grid.row_tiles * grid.column_tiles, block = static_cast<int>(blockIdx.x);
  const int entry = block / tiles;
  TilePosition position = tile_position(block - entry * tiles, grid.row_tiles, grid.column_tiles);
  typename Problem::Part part;
  const Index experts = problem.offsets.extent(0) - 1;
  if (experts < 0) {
    part = problem.entry(entry);
  } else {
    Index expert = entry;
    if constexpr (!sums_over_rows<Problem>) {
      // Experts whose tiles begin at or before this one: ascending, so their number finds it.
      int before = 0;
      for (Index e = 0; e < experts; e += blockDim.x) {
        const Index own = e + threadIdx.x;
        before += __syncthreads_count(
            own < experts && segment_tile(problem.offsets(own), own, rows) <= position.row);
      }
      expert = before - 1;
    }
    const Index first = problem.offsets(expert), next = problem.offsets(expert + 1);
    if constexpr (!sums_over_rows<Problem>)
      position.row -= static_cast<int>(segment_tile(first, expert, rows));
    part = problem.expert(expert, first, next - first);
  }
  part.row = position.row * rows;
  part.column = position.column * columns;
  return part;
}

}  // namespace dsv3::detail
