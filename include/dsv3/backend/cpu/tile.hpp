// One tile of a matrix product, computed by one thread.
#pragma once

#include <algorithm>
#include <dsv3/backend/cpu/pack.hpp>

namespace dsv3::detail {

// Memory that the micro-kernel asks for while it multiplies, so that packing the next panel finds
// it in the cache: rows of `row_bytes`, `stride` bytes apart, `rows` of them.
struct Ahead {
  const char* data = nullptr;
  Index stride = 0, row_bytes = 0, rows = 0;

  // One kernel's share.
  struct Share {
    const char* row;
    Index stride, steps_per_row, bytes_per_step;
  };

  // Share `index` of `count`, for a kernel of so many steps. Without data it asks for what is
  // there.
  Share share(Index index, Index count, Index steps, const void* present) const {
    const Index each = count > 0 ? (rows + count - 1) / count : 0, first = index * each;
    if (each == 0 || first >= rows || steps == 0)
      return {static_cast<const char*>(present), 0, std::max<Index>(1, steps), 0};
    const Index steps_per_row = std::max<Index>(1, (steps + each - 1) / each);
    return {data + first * stride, stride, steps_per_row,
            (row_bytes + steps_per_row - 1) / steps_per_row};
  }
};

// c = sum or c += sum for `Rows` rows and two vectors of columns: a [Rows][a_stride], b one packed
// panel. The first `skip` rows of c are left alone. Each element is one chain of additions over the
// steps, whatever Rows is, and that sum is added to c once.
template <class Kernel, int Rows>
void micro_kernel(Index steps, const typename Kernel::Packed* a, Index a_stride,
                  const typename Kernel::Packed* b, typename Kernel::Sum* c, Index c_stride,
                  int skip, bool add, Ahead::Share ahead) {
  using S = typename Kernel::S;
  constexpr Index lanes = S::lanes, step = Kernel::step;
  typename S::Vector sum[Rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = S::zero();
  for (Index s = 0; s < steps;) {
    const Index end = std::min(steps, s + ahead.steps_per_row);
    const char* line = ahead.row;
    ahead.row += ahead.stride;
    for (; s < end; ++s) {
      __builtin_prefetch(line, 0, 2);
      line += ahead.bytes_per_step;
      const auto b0 = Kernel::panel(b), b1 = Kernel::panel(b + lanes * step);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const auto x = Kernel::broadcast(a + r * a_stride);
        sum[r][0] = Kernel::multiply_add(x, b0, sum[r][0]);
        sum[r][1] = Kernel::multiply_add(x, b1, sum[r][1]);
      }
      a += step;
      b += 2 * lanes * step;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    if (r < skip) continue;
    typename Kernel::Sum* row = c + r * c_stride;
    if (add) {
      sum[r][0] = S::add(S::load(row), sum[r][0]);
      sum[r][1] = S::add(S::load(row + lanes), sum[r][1]);
    }
    S::store(row, sum[r][0]);
    S::store(row + lanes, sum[r][1]);
  }
}

// All rows of a block against one panel. The last rows are covered by the smallest kernel that
// holds them, moved up so that it ends with the block.
template <class Kernel>
void multiply_panel(Index rows, Index steps, const typename Kernel::Packed* a, Index a_stride,
                    const typename Kernel::Packed* b, typename Kernel::Sum* c, Index c_stride,
                    bool add, const Ahead& ahead) {
  constexpr int most = Kernel::S::rows;
  const Index shares = rows / most;
  Index i = 0;
  for (; i + most <= rows; i += most)
    micro_kernel<Kernel, most>(steps, a + i * a_stride, a_stride, b, c + i * c_stride, c_stride, 0,
                               add, ahead.share(i / most, shares, steps, b));
  const Ahead::Share none = Ahead{}.share(0, 0, steps, b);
  while (i < rows) {
    const Index left = rows - i;
    Index size = most;  // the smallest size that holds what is left
    for (Index smaller : {8, 4, 2, 1})
      if (smaller < most && smaller >= left) size = smaller;
    if (size > rows) {  // it does not fit into the block: the largest one that does
      size = 1;
      for (Index smaller : {2, 4, 8})
        if (smaller < most && smaller <= left) size = smaller;
    }
    const Index start = size <= left ? i : rows - size;
    const int skip = static_cast<int>(i - start);
    const auto* from = a + start * a_stride;
    auto* to = c + start * c_stride;
    switch (size) {
      case 8:
        micro_kernel<Kernel, 8>(steps, from, a_stride, b, to, c_stride, skip, add, none);
        break;
      case 4:
        micro_kernel<Kernel, 4>(steps, from, a_stride, b, to, c_stride, skip, add, none);
        break;
      case 2:
        micro_kernel<Kernel, 2>(steps, from, a_stride, b, to, c_stride, skip, add, none);
        break;
      case 1:
        micro_kernel<Kernel, 1>(steps, from, a_stride, b, to, c_stride, skip, add, none);
        break;
      default:
        micro_kernel<Kernel, most>(steps, from, a_stride, b, to, c_stride, skip, add, none);
    }
    i = start + size;
  }
}

// The largest tile, and the memory that computing one takes.
struct TileLimits {
  static constexpr Index rows = 384, columns = 256;  // the blocks stay in a level 2 cache of 1 MiB;
                                                     // sums of 8 bytes have half the columns
  static constexpr Index pad = 64;                   // bytes after each row of the left block
  static constexpr Index left_bytes = rows * (1024 + pad);
  static constexpr Index panel_bytes = 32768;
  static constexpr Index sum_bytes = rows * columns * 4;
  static constexpr Index bytes = left_bytes + panel_bytes + sum_bytes;
};

// One matrix product c (+)= sum over k of a(i, k) b(j, k).
template <class TA, class TB, class TC>
struct ProductOf {
  using Kernel = KernelFor<TA, TB, TC>;
  Operand<TA> a;
  Operand<TB> b;
  TC* c;
  Index c_stride;
  Index rows, columns, depth;
};

// What pack_right will read for the panel at column j, from k on.
template <class Kernel, class T>
Ahead ahead_of(const Operand<T>& b, Index j, Index k, Index depth, Index columns) {
  constexpr Index width = 2 * Kernel::S::lanes, size = sizeof(T);
  const Index n = std::min(width, columns - j), deep = std::min(Kernel::depth, depth - k);
  if (deep <= 0) return {};
  const Index across = b.along_k ? n : deep, along = b.along_k ? deep : n;
  return {reinterpret_cast<const char*>(b.at(j, k)), b.stride * size, along * size, across};
}

// The tile [i, i + rows) x [j, j + columns) of a product. K is cut into blocks of Kernel::depth;
// the sums of the blocks are added in ascending order in a tile that stays in the cache (rows of c
// may be pages apart), then to c where `add`; each element is rounded to TC once. So an element's
// bits depend on K and on the operands, not on the tile it lies in.
template <class TA, class TB, class TC>
void product_tile(const ProductOf<TA, TB, TC>& product, Index i, Index rows, Index j, Index columns,
                  bool add, std::byte* workspace) {
  using Kernel = KernelFor<TA, TB, TC>;
  using P = typename Kernel::Packed;
  using A = typename Kernel::Sum;
  constexpr Index width = 2 * Kernel::S::lanes;
  constexpr Index left_stride = Kernel::depth + TileLimits::pad / static_cast<Index>(sizeof(P));
  static_assert(left_stride * sizeof(P) <= 1024 + TileLimits::pad);
  static_assert(Kernel::depth * width * sizeof(P) <= TileLimits::panel_bytes);
  static_assert(TileLimits::columns * sizeof(float) / sizeof(A) % width == 0);

  P* left = reinterpret_cast<P*>(workspace);
  P* panel = reinterpret_cast<P*>(workspace + TileLimits::left_bytes);
  A* sums = reinterpret_cast<A*>(workspace + TileLimits::left_bytes + TileLimits::panel_bytes);
  TC* c = product.c + i * product.c_stride + j;
  const Index sums_stride = (columns + width - 1) / width * width;
  Index k = 0;
  do {  // once where depth is 0: the sum is then 0
    const Index depth = std::min(Kernel::depth, product.depth - k);
    const Index steps = (depth + Kernel::step - 1) / Kernel::step;
    pack_left<Kernel>(product.a, i, rows, k, depth, left, left_stride);
    for (Index s = 0; s < columns; s += width) {
      pack_right<Kernel>(product.b, j + s, std::min(width, columns - s), k, depth, panel);
      const bool more = s + width < columns;
      const Ahead ahead = ahead_of<Kernel>(product.b, j + (more ? s + width : 0),
                                           more ? k : k + depth, product.depth, j + columns);
      multiply_panel<Kernel>(rows, steps, left, left_stride, panel, sums + s, sums_stride, k > 0,
                             ahead);
    }
    k += Kernel::depth;
  } while (k < product.depth);
  for (Index r = 0; r < rows; ++r) {
    A* from = sums + r * sums_stride;
    TC* to = c + r * product.c_stride;
    if (add) add_row(to, from, columns);
    narrow_row(from, to, columns);
  }
}

}  // namespace dsv3::detail
