// The innermost loops of a matrix product: rows of the left operand against one packed panel.
#pragma once

#include <algorithm>
#include <dsv3/backend/cpu/pack.hpp>

#ifdef __CUDACC__
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675  // it does not know g++'s pragmas, which it hands on
#endif

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

// Where a plain product's sums go: c = sum, or c += sum.
template <class Kernel>
struct PlainTarget {
  using S = typename Kernel::S;
  using Sum = typename Kernel::Sum;
  Sum* c;
  Index stride;
  bool add;

  static constexpr Index segment_steps(Index steps) { return steps; }
  PlainTarget rows(Index first) const { return {c + first * stride, stride, add}; }
  PlainTarget segment(Index) const { return *this; }

  void put(int r, typename S::Vector s0, typename S::Vector s1) const {
    Sum* row = c + r * stride;
    if (add) {
      s0 = S::add(S::load(row), s0);
      s1 = S::add(S::load(row + S::lanes), s1);
    }
    S::store(row, s0);
    S::store(row + S::lanes, s1);
  }
};

// Where the sums of a product of codes go: for each segment of K, within which no scale changes,
// c = sum * scale or c += sum * scale, the scale being that of the row times that of the column.
template <class Kernel>
struct ScaledTarget {
  using S = typename Kernel::S;
  using Sum = typename Kernel::Sum;
  Sum* c;
  Index stride;
  bool add;               // in the first segment; the others always add
  Index steps_each;       // of a segment
  const Sum* row_scales;  // [segments][row_stride]
  Index row_stride;
  const Sum* column_scales;  // [segments][2 lanes]

  Index segment_steps(Index) const { return steps_each; }
  ScaledTarget rows(Index first) const {
    ScaledTarget t = *this;
    t.c += first * stride;
    t.row_scales += first;
    return t;
  }
  ScaledTarget segment(Index index) const {
    ScaledTarget t = *this;
    t.add = add || index > 0;
    t.row_scales += index * row_stride;
    t.column_scales += index * 2 * S::lanes;
    return t;
  }

  void put(int r, typename S::Vector s0, typename S::Vector s1) const {
    Sum* row = c + r * stride;
    const auto scale = S::broadcast(row_scales[r]);
    const auto f0 = S::multiply(scale, S::load(column_scales));
    const auto f1 = S::multiply(scale, S::load(column_scales + S::lanes));
    const auto c0 = add ? S::load(row) : S::zero(), c1 = add ? S::load(row + S::lanes) : S::zero();
    S::store(row, S::fma(s0, f0, c0));
    S::store(row + S::lanes, S::fma(s1, f1, c1));
  }
};

// The sums of `Rows` rows and two vectors of columns: a [Rows][a_stride], b one packed panel. The
// first `skip` rows are not put. Each element is one chain of additions over the steps, whatever
// Rows is.
template <class Kernel, int Rows, class Target>
void micro_kernel(Index steps, const typename Kernel::Packed* a, Index a_stride,
                  const typename Kernel::Packed* b, const Target& target, int skip,
                  Ahead::Share ahead) {
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
    target.put(r, sum[r][0], sum[r][1]);
  }
}

// `Rows` rows against one panel, segment by segment.
template <class Kernel, int Rows, class Target>
void multiply_rows(Index steps, const typename Kernel::Packed* a, Index a_stride,
                   const typename Kernel::Packed* b, const Target& target, int skip,
                   const Ahead& ahead, Index share, Index shares) {
  const Index each = target.segment_steps(steps);
  const Index segments = each > 0 ? (steps + each - 1) / each : 1;
  for (Index i = 0; i < segments; ++i) {
    const Index first = i * each, count = std::min(each, steps - first);
    micro_kernel<Kernel, Rows>(
        count, a + first * Kernel::step, a_stride, b + first * 2 * Kernel::S::lanes * Kernel::step,
        target.segment(i), skip, ahead.share(share * segments + i, shares * segments, count, b));
  }
}

// All rows of a block against one panel. The last rows are covered by the smallest kernel that
// holds them, moved up so that it ends with the block.
template <class Kernel, class Target>
void multiply_panel(Index rows, Index steps, const typename Kernel::Packed* a, Index a_stride,
                    const typename Kernel::Packed* b, const Target& target, const Ahead& ahead) {
  constexpr int most = Kernel::S::rows;
  const Index shares = rows / most;
  Index i = 0;
  for (; i + most <= rows; i += most)
    multiply_rows<Kernel, most>(steps, a + i * a_stride, a_stride, b, target.rows(i), 0, ahead,
                                i / most, shares);
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
    const auto to = target.rows(start);
    switch (size) {
      case 8:
        multiply_rows<Kernel, 8>(steps, from, a_stride, b, to, skip, {}, 0, 0);
        break;
      case 4:
        multiply_rows<Kernel, 4>(steps, from, a_stride, b, to, skip, {}, 0, 0);
        break;
      case 2:
        multiply_rows<Kernel, 2>(steps, from, a_stride, b, to, skip, {}, 0, 0);
        break;
      case 1:
        multiply_rows<Kernel, 1>(steps, from, a_stride, b, to, skip, {}, 0, 0);
        break;
      default:
        multiply_rows<Kernel, most>(steps, from, a_stride, b, to, skip, {}, 0, 0);
    }
    i = start + size;
  }
}

}  // namespace dsv3::detail

#ifdef __CUDACC__
#pragma nv_diagnostic pop
#endif
