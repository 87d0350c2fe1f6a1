// One tile of a matrix product, computed by one thread.
#pragma once

#include <algorithm>
#include <dsv3/backend/cpu/few_rows.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3::detail {

// The largest tile, and the memory that computing one takes.
struct TileLimits {
  static constexpr Index rows = 384, columns = 256;  // the blocks stay in a level 2 cache of 1 MiB;
                                                     // sums of 8 bytes have half the columns
  static constexpr Index pad = 64;                   // bytes after each row of the left block
  static constexpr Index left_bytes = rows * (1024 + pad);
  static constexpr Index panel_bytes = 32768;
  static constexpr Index sum_bytes = rows * columns * 4;
  static constexpr Index least_segment = 32;  // along K within one scale, for products of codes
  static constexpr Index row_scale_bytes = 512 / least_segment * rows * 4;
  static constexpr Index column_scale_bytes = 512 / least_segment * 32 * 4;
  static constexpr Index bytes =
      left_bytes + panel_bytes + sum_bytes + row_scale_bytes + column_scale_bytes;
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

// One product of codes: the same with scales, constant over `segment` elements along K.
template <class TA, class TB, class TC>
struct ScaledProductOf : ProductOf<TA, TB, TC> {
  using Sum = typename ProductOf<TA, TB, TC>::Kernel::Sum;
  OperandScales<Sum> a_scales, b_scales;
  Index segment;
};

// What pack_right will read for the panel at column j, from k on.
template <class Kernel, class T>
Ahead ahead_of(const Operand<T>& b, Index j, Index k, Index depth, Index columns) {
  constexpr Index width = 2 * Kernel::S::lanes, size = sizeof(T);
  const Index n = std::min(width, columns - j), deep = std::min(Kernel::depth, depth - k);
  if (deep <= 0) return {};
  if (j < b.arranged) {
    constexpr Index line = 1024;
    return {reinterpret_cast<const char*>(b.panel(j, k, width)), line, line,
            groups_of(deep * width * size, line)};
  }
  const Index across = b.along_k ? n : deep, along = b.along_k ? deep : n;
  return {reinterpret_cast<const char*>(b.at(j, k)), b.stride * size, along * size, across};
}

// Columns [j, j + columns) and [k, k + depth) of the right operand as the micro-kernel reads them:
// where they lie, or in `panel`.
template <class Kernel, class T>
const typename Kernel::Packed* right_panel(const Operand<T>& b, Index j, Index columns, Index k,
                                           Index depth, typename Kernel::Packed* panel) {
  if (j >= b.arranged)
    pack_right<Kernel>(b, j, columns, k, depth, panel);
  else if constexpr (std::is_same_v<T, typename Kernel::Packed>)
    return b.panel(j, k, 2 * Kernel::S::lanes);
  else
    unpack_arranged<Kernel>(b, j, k, depth, panel);
  return panel;
}

// Writes a tile's sums to c, or adds them to it; each element is rounded to TC once.
template <class A, class TC>
void finish_tile(A* sums, Index sums_stride, TC* c, Index c_stride, Index rows, Index columns,
                 bool add) {
  for (Index r = 0; r < rows; ++r) {
    A* from = sums + r * sums_stride;
    TC* to = c + r * c_stride;
    if (add) add_row(to, from, columns);
    narrow_row(from, to, columns);
  }
}

// out[r] = the scale of element (i + r, k) for r in [0, n).
template <class S>
void copy_scales(const OperandScales<S>& scales, Index i, Index n, Index k, S* out) {
  const S* base = scales.data + k / scales.k_group * scales.k_stride;
  if (scales.i_group == 1) {
    for (Index r = 0; r < n; ++r) out[r] = base[(i + r) * scales.i_stride];
    return;
  }
  Index group = i / scales.i_group, end = (group + 1) * scales.i_group - i;
  for (Index r = 0; r < n; ++group, end += scales.i_group)
    for (const S scale = base[group * scales.i_stride]; r < std::min(n, end); ++r) out[r] = scale;
}

// The tile [i, i + rows) x [j, j + columns) of a product. K is cut into blocks of Kernel::depth;
// the sums of the blocks are added in ascending order in a tile that stays in the cache (rows of c
// may be pages apart), then to c where `add`; each element is rounded to TC once. So an element's
// bits depend on K and on the operands, not on the tile it lies in. A few rows are packed along all
// of K at once, so that arranged weights are read as they lie.
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
  const Index blocks = groups_of(product.depth, Kernel::depth);
  const bool few =
      product.b.arranged > 0 && rows <= few_rows &&
      blocks * rows * left_stride * static_cast<Index>(sizeof(P)) <= TileLimits::left_bytes;
  const Index block = few ? blocks * Kernel::depth : Kernel::depth;
  if (product.depth == 0) std::fill(sums, sums + rows * sums_stride, A(0));
  for (Index begin = 0; begin < product.depth; begin += block) {
    const Index length = std::min(block, product.depth - begin);
    for (Index k = 0; k < length; k += Kernel::depth)
      pack_left<Kernel>(product.a, i, rows, begin + k, std::min(Kernel::depth, length - k),
                        left + k / Kernel::depth * rows * left_stride, left_stride);
    if (rows <= few_rows && product.b.along_k && j >= product.b.arranged)
      PanelStream::begin(product.b, j, std::min(width, columns), begin);
    for (Index s = 0; s < columns; s += width)
      for (Index k = 0; k < length; k += Kernel::depth) {
        const Index depth = std::min(Kernel::depth, length - k), from = begin + k;
        const Index steps = (depth + Kernel::step - 1) / Kernel::step;
        const PlainTarget<Kernel> target{sums + s, sums_stride, from > 0};
        const Index n = std::min(width, columns - s);
        const P* packed = left + k / Kernel::depth * rows * left_stride;
        if (multiply_unpacked<Kernel>(product.b, j + s, n, from, depth, rows, packed, left_stride,
                                      target))
          continue;
        const bool more = s + width < columns;
        const Ahead ahead =
            ahead_of<Kernel>(product.b, j + (more ? s + width : 0), more ? from : from + depth,
                             product.depth, j + columns);
        const P* right = right_panel<Kernel>(product.b, j + s, n, from, depth, panel);
        multiply_panel<Kernel>(rows, steps, packed, left_stride, right, target, ahead);
      }
  }
  finish_tile(sums, sums_stride, c, product.c_stride, rows, columns, add);
}

// The same tile of a product of codes: within a block of K, each segment's sums are multiplied by
// the scales and added to the tile, in ascending order. A few rows are packed along all of K at
// once, so that the right operand is read along its rows.
template <class TA, class TB, class TC>
void product_tile(const ScaledProductOf<TA, TB, TC>& product, Index i, Index rows, Index j,
                  Index columns, bool add, std::byte* workspace) {
  using Kernel = KernelFor<TA, TB, TC>;
  using P = typename Kernel::Packed;
  using A = typename Kernel::Sum;
  constexpr Index width = 2 * Kernel::S::lanes, step = Kernel::step;
  constexpr Index left_stride = Kernel::depth + TileLimits::pad / static_cast<Index>(sizeof(P));
  constexpr Index scales_most = TileLimits::row_scale_bytes / static_cast<Index>(sizeof(A));
  static_assert(Kernel::depth / TileLimits::least_segment * TileLimits::rows <= scales_most);
  static_assert(Kernel::depth / TileLimits::least_segment * width * sizeof(A) <=
                TileLimits::column_scale_bytes);

  P* left = reinterpret_cast<P*>(workspace);
  std::byte* at = workspace + TileLimits::left_bytes;
  P* panel = reinterpret_cast<P*>(at);
  A* sums = reinterpret_cast<A*>(at += TileLimits::panel_bytes);
  A* row_scales = reinterpret_cast<A*>(at += TileLimits::sum_bytes);
  A* column_scales = reinterpret_cast<A*>(at += TileLimits::row_scale_bytes);
  const Index sums_stride = (columns + width - 1) / width * width, segment = product.segment;
  // Blocks of K whose rows are packed at a time, one after another: all of them where they fit.
  const Index blocks = groups_of(product.depth, Kernel::depth);
  const bool few =
      blocks * rows * left_stride * static_cast<Index>(sizeof(P)) <= TileLimits::left_bytes &&
      blocks * rows * (Kernel::depth / segment) <= scales_most;
  const Index block = few ? blocks * Kernel::depth : Kernel::depth;
  if (product.depth == 0) std::fill(sums, sums + rows * sums_stride, A(0));  // no segment writes
  for (Index begin = 0; begin < product.depth; begin += block) {
    const Index length = std::min(block, product.depth - begin);
    for (Index k = 0; k < length; k += Kernel::depth)
      pack_left<Kernel>(product.a, i, rows, begin + k, std::min(Kernel::depth, length - k),
                        left + k / Kernel::depth * rows * left_stride, left_stride);
    for (Index g = 0; g < groups_of(length, segment); ++g)
      copy_scales(product.a_scales, i, rows, begin + g * segment, row_scales + g * rows);
    if (rows <= few_rows && product.b.along_k && j >= product.b.arranged)
      PanelStream::begin(product.b, j, std::min(width, columns), begin);
    for (Index s = 0; s < columns; s += width) {
      const Index n = std::min(width, columns - s);
      for (Index k = 0; k < length; k += Kernel::depth) {
        const Index depth = std::min(Kernel::depth, length - k), from = begin + k;
        for (Index g = 0; g < groups_of(depth, segment); ++g)
          copy_scales(product.b_scales, j + s, n, from + g * segment, column_scales + g * width);
        const ScaledTarget<Kernel> target{
            sums + s, sums_stride,  from > 0, segment / step, row_scales + k / segment * rows,
            rows,     column_scales};
        const P* packed = left + k / Kernel::depth * rows * left_stride;
        if (!multiply_unpacked<Kernel>(product.b, j + s, n, from, depth, segment, rows, packed,
                                       left_stride, target)) {
          const P* right = right_panel<Kernel>(product.b, j + s, n, from, depth, panel);
          const bool more = s + width < columns;
          const Ahead ahead =
              ahead_of<Kernel>(product.b, j + (more ? s + width : 0), more ? from : from + depth,
                               product.depth, j + columns);
          multiply_panel<Kernel>(rows, (depth + step - 1) / step, packed, left_stride, right,
                                 target, ahead);
        }
      }
    }
  }
  finish_tile(sums, sums_stride, product.c + i * product.c_stride + j, product.c_stride, rows,
              columns, add);
}

}  // namespace dsv3::detail
