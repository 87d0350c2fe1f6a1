// Row kernels that turn matrices into codes and scales, and back.
#pragma once

#include <dsv3/core/philox.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3 {

/// Rounds a scaled value to the nearest code, ties to even.
struct RoundNearest {
  template <class C>
  DSV3_HD C encode(accum_t<C> value, accum_t<C> scale, Index /*column*/) const {
    return detail::encode_scaled<C>(value, scale);
  }
};

/// Rounds a scaled value to one of the two codes beside it, so that its expected value is exact.
/// The random number is Philox's for (column, bits of value, bits of scale): it needs no state, and
/// depends neither on the place in the batch nor on threads.
struct RoundStochastic {
  std::uint32_t seed = 0;

  template <class C>
  DSV3_HD C encode(float value, float scale, Index column) const {
    const auto block = Philox::rounds(
        {{static_cast<std::uint32_t>(column), __builtin_bit_cast(std::uint32_t, value),
          __builtin_bit_cast(std::uint32_t, scale), 0}},
        seed, 0x51A3u);
    C result;
    result.code =
        static_cast<std::uint8_t>(C::format::encode_stochastic(value / scale, block.word[0]));
    return result;
  }
};

namespace detail {

// Calls f(first, count, value) for pieces of columns [from, to) of row i of a matrix, within each
// of which value(j), j in [first, first + count), is element (i, j) in the type of arithmetic.
template <class T>
DSV3_HD void for_each_piece_of_row(const View<T, 2>& x, Index i, Index from, Index to, auto&& f) {
  f(from, to - from, [&x, i](Index j) { return accum_t<T>(x(i, j)); });
}
template <class C>
DSV3_HD void for_each_piece_of_row(const Quantized<C>& q, Index i, Index from, Index to, auto&& f) {
  for (Index first = from; first < to;) {
    const Index group = first / q.group_columns, end = (group + 1) * q.group_columns;
    const Index next = end < to ? end : to;
    const accum_t<C> scale = q.scales(i / q.group_rows, group);
    f(first, next - first, [&q, i, scale](Index j) { return accum_t<C>(q.codes(i, j)) * scale; });
    first = next;
  }
}

// One row into groups of 1 x group_columns; value(j) is element j in the type of arithmetic.
template <class C>
DSV3_HD void quantize_row(auto team, const Quantized<C>& q, Index t, const ScaleRule& rule,
                          const auto& rounding, auto&& value) {
  using A = accum_t<C>;
  const Index n = q.extent(1), width = q.group_columns;
  for (Index group = 0; group * width < n; ++group) {
    const Index first = group * width, left = n - first, count = left < width ? left : width;
    const A amax = from_magnitude(
        team.max(count, [&](Index j) { return magnitude_bits(A(value(first + j))); }));
    const A scale = rule.template scale<C>(amax);
    team.once([&] { q.scales(t, group) = scale; });
    team.each(count, [&](Index j) {
      q.codes(t, first + j) = rounding.template encode<C>(A(value(first + j)), scale, first + j);
    });
  }
}

// Each row of x in groups of 1 x group_columns.
template <class T, class C, class Rounding>
struct QuantizeRow {
  View<const T, 2> x;
  Quantized<C> q;
  ScaleRule rule;
  Rounding rounding;

  DSV3_HD void operator()(auto team, Index t) const {
    quantize_row(team, q, t, rule, rounding, [&](Index j) { return accum_t<T>(x(t, j)); });
  }
};

// Rows as codes: by the backend's fused quantize_rows where it has one for these types.
template <class Backend, class T, class C, class Round>
void quantize_each_row(Backend& backend, View<const T, 2> x, const Quantized<C>& q, ScaleRule rule,
                       Round rounding) {
  if constexpr (std::is_same_v<Round, RoundNearest> &&
                requires { quantize_rows(backend, x, q, rule); })
    quantize_rows(backend, x, q, rule);
  else
    for_each_row(backend, x.extent(0), QuantizeRow<T, C, Round>{x, q, rule, rounding});
}

// Rows of ragged segments, or one segment of all rows where offsets are empty, in blocks of
// `tile`. Row b of the scales belongs to the block that find() gives.
struct SegmentBlocks {
  View<const Index, 1> offsets;  // [segments + 1]; or empty
  Index rows, tile;

  struct Block {
    Index first, count;  // rows; 0 where no block has this number
  };

  DSV3_HD Block find(Index b) const {
    const Index segments = offsets.extent(0) ? offsets.extent(0) - 1 : 1;
    for (Index e = 0; e < segments; ++e) {
      const Index begin = offsets.extent(0) ? offsets(e) : 0;
      const Index end = offsets.extent(0) ? offsets(e + 1) : rows;
      const Index at = b - (begin / tile + e);
      if (at < 0) break;
      if (at >= groups_of(end - begin, tile)) continue;
      const Index first = begin + at * tile, left = end - first;
      return {first, left < tile ? left : tile};
    }
    return {0, 0};
  }
};

// Groups of tile x 1 of a matrix that is anything with pieces of rows. One call handles one strip
// of columns of one block of rows; the scales first hold the largest values.
template <class Source, class C, class Rounding>
struct QuantizeColumnsBlock {
  static constexpr Index strip = 256;
  Source x;
  SegmentBlocks blocks;
  Quantized<C> q;
  ScaleRule rule;
  Rounding rounding;

  DSV3_HD void operator()(auto team, Index index) const {
    using A = accum_t<C>;
    const Index columns = q.extent(1), strips = groups_of(columns, strip);
    const Index b = index / strips, from = index % strips * strip;
    const Index to = from + strip < columns ? from + strip : columns;
    const auto block = blocks.find(b);
    if (block.count == 0) return;
    auto* scales = &q.scales(b, 0);
    team.each(to - from, [&](Index j) { scales[from + j] = A(0); });
    team.sync();  // pieces may start elsewhere, so that another worker has the column
    for (Index r = block.first; r < block.first + block.count; ++r)
      for_each_piece_of_row(x, r, from, to, [&](Index first, Index count, const auto& value) {
        team.each(count, [&](Index j) {
          const auto bits = magnitude_bits(A(value(first + j)));
          const auto before = magnitude_bits(scales[first + j]);
          scales[first + j] = from_magnitude(bits > before ? bits : before);
        });
      });
    team.sync();
    team.each(to - from,
              [&](Index j) { scales[from + j] = rule.template scale<C>(scales[from + j]); });
    team.sync();
    for (Index r = block.first; r < block.first + block.count; ++r)
      for_each_piece_of_row(x, r, from, to, [&](Index first, Index count, const auto& value) {
        team.each(count, [&](Index j) {
          const Index column = first + j;
          q.codes(r, column) =
              rounding.template encode<C>(A(value(column)), scales[column], column);
        });
      });
  }
};

// A block of group_rows x group_columns of a matrix of weights: where it lies.
struct BlockPlace {
  Index row, column, rows, columns;

  template <class C>
  DSV3_HD BlockPlace(const Quantized<C>& q, Index down, Index across)
      : row(down * q.group_rows), column(across * q.group_columns) {
    rows = q.extent(0) - row < q.group_rows ? q.extent(0) - row : q.group_rows;
    columns = q.extent(1) - column < q.group_columns ? q.extent(1) - column : q.group_columns;
  }
};

// The scale of one block.
template <class M, class C>
DSV3_HD auto block_scale(auto team, const View<const M, 2>& x, const Quantized<C>& q, Index down,
                         Index across, const ScaleRule& rule) {
  using A = accum_t<C>;
  const BlockPlace at(q, down, across);
  auto bits = magnitude_bits(A(0));
  for (Index i = at.row; i < at.row + at.rows; ++i) {
    const auto row =
        team.max(at.columns, [&](Index j) { return magnitude_bits(A(x(i, at.column + j))); });
    bits = row > bits ? row : bits;
  }
  return rule.template scale<C>(from_magnitude(bits));
}

// Codes and scale of one block.
template <class M, class C>
DSV3_HD void quantize_block(auto team, const View<const M, 2>& x, const Quantized<C>& q, Index down,
                            Index across, const ScaleRule& rule) {
  using A = accum_t<C>;
  const BlockPlace at(q, down, across);
  const A scale = block_scale(team, x, q, down, across, rule);
  team.once([&] { q.scales(down, across) = scale; });
  for (Index i = at.row; i < at.row + at.rows; ++i)
    team.each(at.columns, [&](Index j) {
      q.codes(i, at.column + j) = encode_scaled<C>(A(x(i, at.column + j)), scale);
    });
}

template <class M, class C>
struct QuantizeBlock {
  View<const M, 2> x;
  Quantized<C> q;
  ScaleRule rule;

  DSV3_HD void operator()(auto team, Index index) const {
    const Index across = groups_of(x.extent(1), q.group_columns);
    quantize_block(team, x, q, index / across, index % across, rule);
  }
};

// Rows in groups of `down` x group_columns, each row with a scale of its own that repeats the
// group's: what 128 x 128 blocks of activations are to products that read rows.
template <class T, class C, class Rounding>
struct QuantizeRowsTogether {
  View<const T, 2> x;
  Index down;
  Quantized<C> q;
  ScaleRule rule;
  Rounding rounding;

  DSV3_HD void operator()(auto team, Index block) const {
    using A = accum_t<C>;
    const Index from = block * down, end = from + down;
    const Index to = end < x.extent(0) ? end : x.extent(0);
    const Index n = q.extent(1), width = q.group_columns;
    for (Index group = 0; group * width < n; ++group) {
      const Index first = group * width, left = n - first, count = left < width ? left : width;
      auto bits = magnitude_bits(A(0));
      for (Index t = from; t < to; ++t) {
        const auto row =
            team.max(count, [&](Index j) { return magnitude_bits(A(x(t, first + j))); });
        bits = row > bits ? row : bits;
      }
      const A scale = rule.template scale<C>(from_magnitude(bits));
      for (Index t = from; t < to; ++t) {
        team.once([&] { q.scales(t, group) = scale; });
        team.each(count, [&](Index j) {
          q.codes(t, first + j) = rounding.template encode<C>(A(x(t, first + j)), scale, first + j);
        });
      }
    }
  }
};

// partial[t] = the largest magnitude of row t.
template <class Source, class A>
struct RowMagnitude {
  Source x;
  View<A, 1> partial;

  DSV3_HD void operator()(auto team, Index t) const {
    auto bits = magnitude_bits(A(0));
    for_each_piece_of_row(x, t, 0, x.extent(1), [&](Index first, Index count, const auto& value) {
      const auto piece =
          team.max(count, [&](Index j) { return magnitude_bits(A(value(first + j))); });
      bits = piece > bits ? piece : bits;
    });
    team.once([&] { partial(t) = from_magnitude(bits); });
  }
};

// The one scale of a whole tensor: from the largest of the partial values or, where there is a
// history of values, from the largest of the steps before. This step's is noted in either case.
template <class C>
struct TensorScale {
  View<const accum_t<C>, 1> partial;
  Quantized<C> q;
  ScaleRule rule;
  View<float, 1> history;  // [1 + steps before], this step's first; or empty

  DSV3_HD void operator()(auto team, Index) const {
    using A = accum_t<C>;
    const A now = from_magnitude(
        team.max(partial.extent(0), [&](Index i) { return magnitude_bits(partial(i)); }));
    const Index steps = history.extent(0) ? history.extent(0) - 1 : 0;
    const float before =
        from_magnitude(team.max(steps, [&](Index i) { return magnitude_bits(history(1 + i)); }));
    team.once([&] {
      q.scales(0, 0) = rule.template scale<C>(before > 0 ? A(before) : now);
      if (steps > 0 && float(now) > history(0)) history(0) = float(now);
    });
  }
};

// What a history does after a step: every value moves on by one. Where the step was skipped
// (norm[1] is 0), its own value is forgotten.
struct AdvanceHistoryRow {
  View<float, 2> history;
  View<const double, 1> norm;

  DSV3_HD void operator()(auto team, Index row) const {
    team.once([&] {
      if (norm(1) != 0)
        for (Index i = history.extent(1) - 1; i > 0; --i) history(row, i) = history(row, i - 1);
      history(row, 0) = 0;
    });
  }
};

// Codes of one row by a scale that is already there, one for the whole tensor.
template <class Source, class C, class Rounding>
struct EncodeRow {
  Source x;
  Quantized<C> q;
  Rounding rounding;

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<C>;
    const A scale = q.scales(0, 0);
    for_each_piece_of_row(x, t, 0, x.extent(1), [&](Index first, Index count, const auto& value) {
      team.each(count, [&](Index j) {
        q.codes(t, first + j) = rounding.template encode<C>(A(value(first + j)), scale, first + j);
      });
    });
  }
};

// y = the values of x.
template <class Source, class T>
struct DequantizeRow {
  Source x;
  View<T, 2> y;

  DSV3_HD void operator()(auto team, Index t) const {
    for_each_piece_of_row(x, t, 0, y.extent(1), [&](Index first, Index count, const auto& value) {
      team.each(count, [&](Index j) { y(t, first + j) = T(value(first + j)); });
    });
  }
};

}  // namespace detail

/// Codes and scales of a matrix of weights, block by block.
template <class Backend, class M, class C>
void quantize_weights(Backend& backend, View<const M, 2> weight, const Quantized<C>& q,
                      const ScaleRule& rule) {
  const Index blocks =
      groups_of(q.extent(0), q.group_rows) * groups_of(q.extent(1), q.group_columns);
  for_each_row(backend, blocks, detail::QuantizeBlock<M, C>{weight, q, rule});
}

}  // namespace dsv3
