// One tile of a matrix product, computed by one thread.
#pragma once

#include <algorithm>
#include <dsv3/backend/cpu/pack.hpp>
#include <dsv3/core/quantized.hpp>

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
  const Index across = b.along_k ? n : deep, along = b.along_k ? deep : n;
  return {reinterpret_cast<const char*>(b.at(j, k)), b.stride * size, along * size, across};
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
      multiply_panel<Kernel>(rows, steps, left, left_stride, panel,
                             PlainTarget<Kernel>{sums + s, sums_stride, k > 0}, ahead);
    }
    k += Kernel::depth;
  } while (k < product.depth);
  finish_tile(sums, sums_stride, c, product.c_stride, rows, columns, add);
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

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VBMI__)
// A few rows against 32 columns of codes along K, which never become a panel: the sums of
// micro_kernel in the same order.
template <int Rows, class Code>
void multiply_codes(const Operand<Code>& b, Index j, Index columns, Index k, Index depth,
                    Index segment, const bf16* a, Index a_stride,
                    const ScaledTarget<Bf16Kernel>& target) {
  constexpr Index line = 64, ahead = 8 * line;
  const __m512i pairs = byte_order(pairs_of_words);
  const Code* column[32];
  for (Index c = 0; c < 32; ++c) column[c] = b.at(j + std::min(c, columns - 1), k);
  alignas(64) std::uint32_t words[2][line / 4][16];
  for (Index first = 0; first < depth; first += segment) {
    const Index end = std::min(depth, first + segment);
    __m512 sum[Rows][2];
    for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (Index at = first; at < end; at += line) {
      const Index n = std::min(line, end - at) / 4;
      for (int half = 0; half < 2; ++half) {
        const std::byte* from[16];
        for (int c = 0; c < 16; ++c) {
          from[c] = reinterpret_cast<const std::byte*>(column[16 * half + c] + at);
          __builtin_prefetch(from[c] + ahead, 0, 2);
        }
        transpose_words<16>(from, n, words[half][0], 16);
      }
      for (Index w = 0; w < n; ++w) {
        __m512i pair[2][2];
        for (int half = 0; half < 2; ++half)
          decode_words<Code>(_mm512_permutexvar_epi8(pairs, _mm512_load_si512(words[half][w])),
                             pair[half][0], pair[half][1]);
        for (int step = 0; step < 2; ++step)
#pragma GCC unroll 4
          for (int r = 0; r < Rows; ++r) {
            const __m512i x = Bf16Kernel::broadcast(a + r * a_stride + at + 4 * w + 2 * step);
            sum[r][0] = Bf16Kernel::multiply_add(x, pair[0][step], sum[r][0]);
            sum[r][1] = Bf16Kernel::multiply_add(x, pair[1][step], sum[r][1]);
          }
      }
    }
    const auto to = target.segment(first / segment);
    for (int r = 0; r < Rows; ++r) to.put(r, sum[r][0], sum[r][1]);
  }
}
#endif

// Multiplies without a panel where that is faster: returns whether it did.
template <class Kernel, class TB>
bool multiply_unpacked([[maybe_unused]] const Operand<TB>& b, [[maybe_unused]] Index j,
                       [[maybe_unused]] Index columns, [[maybe_unused]] Index k,
                       [[maybe_unused]] Index depth, [[maybe_unused]] Index segment,
                       [[maybe_unused]] Index rows,
                       [[maybe_unused]] const typename Kernel::Packed* a,
                       [[maybe_unused]] Index a_stride,
                       [[maybe_unused]] const ScaledTarget<Kernel>& target) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VBMI__)
  if constexpr (is_fp8<TB>) {
    if (rows > 4 || !b.along_k || depth % 4 != 0) return false;
    const auto run = [&](auto count) {
      multiply_codes<count>(b, j, columns, k, depth, segment, a, a_stride, target);
      return true;
    };
    if (rows == 1) return run(std::integral_constant<int, 1>{});
    if (rows == 2) return run(std::integral_constant<int, 2>{});
    if (rows == 3) return run(std::integral_constant<int, 3>{});
    return run(std::integral_constant<int, 4>{});
  }
#endif
  return false;
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
          pack_right<Kernel>(product.b, j + s, n, from, depth, panel);
          const bool more = s + width < columns;
          const Ahead ahead =
              ahead_of<Kernel>(product.b, j + (more ? s + width : 0), more ? from : from + depth,
                               product.depth, j + columns);
          multiply_panel<Kernel>(rows, (depth + step - 1) / step, packed, left_stride, panel,
                                 target, ahead);
        }
      }
    }
  }
  finish_tile(sums, sums_stride, product.c + i * product.c_stride + j, product.c_stride, rows,
              columns, add);
}

}  // namespace dsv3::detail
