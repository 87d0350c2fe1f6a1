// Quantising and SwiGLU by fused row kernels against the row kernels, on the same device.
#include <doctest/doctest.h>

#include "fused_rows_case.cuh"

using namespace fused_test;

namespace {

template <class T, class C>
void compare_rows() {
  const auto cuda = gpu();
  if (!cuda) return;
  for (const Shape& s : shapes) {
    CAPTURE(s.rows);
    CAPTURE(s.columns);
    CAPTURE(s.width);
    const Memory<T> memory(*cuda, special_values<T>(s.rows, s.columns, s.gap, 1));
    const auto x = matrix(memory, s.rows, s.columns, s.gap);
    for (const ScaleRule& rule : rules) {
      CAPTURE(rule.amax_min);
      CAPTURE(rule.power_of_two);
      const Codes<C> ours(*cuda, s.rows, s.columns, s.width, s.gap),
          theirs(*cuda, s.rows, s.columns, s.width, s.gap);
      for_each_row(*cuda, s.rows,
                   dsv3::detail::QuantizeRow<T, C, dsv3::RoundNearest>{x, theirs.view(), rule, {}});
      quantize_rows(*cuda, x, ours.view(), rule);
      ours.must_be("quantize_rows", theirs);
    }
  }
}

template <class T, class C>
void compare_swiglu() {
  const auto cuda = gpu();
  if (!cuda) return;
  for (const Shape& s : shapes)
    for (const bool saves : {true, false}) {
      CAPTURE(s.rows);
      CAPTURE(s.columns);
      CAPTURE(s.width);
      CAPTURE(saves);
      const Memory<T> on_a(*cuda, special_values<T>(s.rows, s.columns, s.gap, 2)),
          on_b(*cuda, special_values<T>(s.rows, s.columns, s.gap, 3));
      const auto a = matrix(on_a, s.rows, s.columns, s.gap);
      const auto b = matrix(on_b, s.rows, s.columns, s.gap);
      for (const ScaleRule& rule : rules) {
        CAPTURE(rule.amax_min);
        CAPTURE(rule.power_of_two);
        const auto made = [&] {
          return std::make_unique<Codes<C>>(*cuda, s.rows, s.columns, s.width, s.gap);
        };
        const auto a1 = made(), b1 = made(), h1 = made(), a2 = made(), b2 = made(), h2 = made();
        const auto kept = [&](const Codes<C>& q) { return saves ? q.view() : Quantized<C>(); };
        for_each_row(
            *cuda, s.rows,
            dsv3::detail::SwigluQuantizeRow<T, C>{a, b, kept(*a2), kept(*b2), h2->view(), rule});
        quantize_swiglu_rows(*cuda, a, b, kept(*a1), kept(*b1), h1->view(), rule);
        a1->must_be("saved a", *a2);
        b1->must_be("saved b", *b2);
        h1->must_be("h", *h2);
      }
    }
}

template <class T>
void compare_plain_swiglu() {
  const auto cuda = gpu();
  if (!cuda) return;
  for (const Shape& s : shapes) {
    CAPTURE(s.rows);
    CAPTURE(s.columns);
    const auto values = [&](std::uint32_t seed) {
      return special_values<T>(s.rows, s.columns, s.gap, seed);
    };
    const Memory<T> a(*cuda, values(2)), b(*cuda, values(3)), d(*cuda, values(4)),
        da1(*cuda, values(4)), da2(*cuda, values(4));
    const Index size = s.rows * (s.columns + s.gap);
    const Memory<T> h1(*cuda, size), h2(*cuda, size), db1(*cuda, size), db2(*cuda, size);
    const auto in = [&](const Memory<T>& m) { return matrix(m, s.rows, s.columns, s.gap); };
    const auto out = [&](const Memory<T>& m) {
      View<T, 2> v(m.data, {s.rows, s.columns});
      v.strides[0] = s.columns + s.gap;
      return v;
    };
    for_each_row(*cuda, s.rows, dsv3::detail::SwigluForwardRow<T>{in(a), in(b), out(h2)});
    swiglu_rows(*cuda, in(a), in(b), out(h1));
    check_same("h", h1, h2, s.columns + s.gap);
    for_each_row(
        *cuda, s.rows,
        dsv3::detail::SwigluBackwardRow<T>{in(a), in(b), in(d), out(da2), out(db2), out(h2)});
    swiglu_backward_rows(*cuda, in(a), in(b), in(da1), out(da1), out(db1), out(h1));
    check_same("h in backward", h1, h2, s.columns + s.gap);
    check_same("da over dh", da1, da2, s.columns + s.gap);
    check_same("db", db1, db2, s.columns + s.gap);
  }
}

template <class Source, class C>
void compare_columns_of(Cuda& cuda, const Source& x, const std::vector<Index>& offsets, Index tile,
                        Index gap) {
  using Block = dsv3::detail::QuantizeColumnsBlock<Source, C, dsv3::RoundNearest>;
  const Index rows = x.extent(0), columns = x.extent(1);
  const Index segments = offsets.empty() ? 1 : static_cast<Index>(offsets.size()) - 1;
  const Index down = rows / tile + segments, stride = columns + gap;
  const Memory<Index> on_device(cuda, offsets);
  View<const Index, 1> at;
  if (!offsets.empty()) at = {on_device.data, {segments + 1}};
  const Memory<C> codes1(cuda, rows * stride), codes2(cuda, rows * stride);
  const Memory<float> scales1(cuda, down * columns), scales2(cuda, down * columns);
  const auto view = [&](const Memory<C>& codes, const Memory<float>& scales) {
    View<C, 2> v(codes.data, {rows, columns});
    v.strides[0] = stride;
    return Quantized<C>(v, {scales.data, down, columns}, tile, 1);
  };
  for (const ScaleRule& rule : rules) {
    CAPTURE(rule.power_of_two);
    // What no group writes stays as it was before, in both.
    const auto q2 = view(codes2, scales2);
    for_each_row(cuda, down * dsv3::groups_of(columns, Block::strip),
                 Block{x, {at, rows, tile}, q2, rule, {}});
    const auto q1 = view(codes1, scales1);
    for_each_row_fused(cuda, down * dsv3::groups_of(columns, Block::strip),
                       Block{x, {at, rows, tile}, q1, rule, {}});
    check_same("scales", scales1, scales2, columns);
    check_same("codes", codes1, codes2, stride);
  }
}

template <class T, class C>
void compare_columns() {
  const auto cuda = gpu();
  if (!cuda) return;
  struct Case {
    Index rows, columns, gap, tile;
    std::vector<Index> offsets;
  };
  const std::vector<Case> cases = {{300, 512, 0, 128, {}},
                                   {300, 528, 16, 128, {0, 0, 130, 130, 131, 258, 300}},
                                   {300, 528, 16, 128, {0, 0, 0, 100, 250}},  // rows of no segment
                                   {77, 37, 0, 32, {0, 5, 37, 37, 77}},
                                   {77, 259, 5, 64, {}},
                                   {13, 16, 0, 128, {0, 13}},
                                   {1, 1, 3, 256, {}},
                                   {1300, 2048, 0, 128, {0, 1, 2, 300, 300, 700, 828, 1299, 1300}},
                                   {600, 96, 32, 256, {0, 599, 600}}};
  for (const Case& c : cases) {
    CAPTURE(c.rows);
    CAPTURE(c.columns);
    CAPTURE(c.tile);
    CAPTURE(c.offsets.size());
    // Special rows lie across groups of rows: those of row i are in columns of it as well.
    auto values = special_values<T>(c.rows, c.columns, c.gap, 7);
    for (Index i = 0; i < c.rows; ++i)
      for (Index j = 0; j < c.columns; ++j)
        if (i >= 12 || (j * 7 + i) % 97 > 3) {
          T& v = values[static_cast<std::size_t>(i * (c.columns + c.gap) + j)];
          const float factor = j % 19 == 3 ? 0x1p-110f : j % 23 == 5 ? 0.0f : 1.0f;
          const float value = float(v) - float(v) == 0 ? float(v) : 1.0f;
          v = T((i < 12 ? 1.0f + float(j % 5) : value) * factor);
        }
    const Memory<T> memory(*cuda, values);
    const auto x = matrix(memory, c.rows, c.columns, c.gap);
    compare_columns_of<View<const T, 2>, C>(*cuda, x, c.offsets, c.tile, c.gap);
    const Codes<C> rows(*cuda, c.rows, c.columns, c.tile, c.gap);
    for_each_row(*cuda, c.rows,
                 dsv3::detail::QuantizeRow<T, C, dsv3::RoundNearest>{x, rows.view(), {}, {}});
    compare_columns_of<Quantized<const C>, C>(*cuda, rows.view(), c.offsets, c.tile, c.gap);
  }
}

// Of floats from `first` on, `each` a row: how many reciprocals, or sigmoids of x and -x, have
// other bits than by division.
template <bool sigmoids>
struct ExactRow {
  std::uint32_t first;
  Index each;
  View<Index, 1> wrong;

  DSV3_HD void operator()(auto team, Index row) const {
    const auto differ = [](float a, float b) {
      return Index{__builtin_bit_cast(std::uint32_t, a) != __builtin_bit_cast(std::uint32_t, b)};
    };
    const Index count = team.sum(each, [&](Index i) {
      const auto bits = first + static_cast<std::uint32_t>(row * each + i);
      const float x = __builtin_bit_cast(float, bits);
      if constexpr (sigmoids)
        return differ(dsv3::detail::sigmoid_within_87(x), dsv3::sigmoid(x)) +
               differ(dsv3::detail::sigmoid_within_87(-x), dsv3::sigmoid(-x));
      else
        return differ(dsv3::detail::reciprocal(x), 1.0f / x);
    });
    team.once([&] { wrong(row) = count; });
  }
};

template <bool sigmoids>
void check_exact(std::uint32_t first, Index count) {
  const auto cuda = gpu();
  if (!cuda) return;
  const Index each = 4096, rows = on_fibers ? 8 : count / each;
  const Memory<Index> wrong(*cuda, rows);
  for_each_row(*cuda, rows, ExactRow<sigmoids>{first, each, {wrong.data, {rows}}});
  std::vector<Index> counts(static_cast<std::size_t>(rows));
  copy_to_host(*cuda, counts.data(), wrong.data, rows * Index{sizeof(Index)});
  for (const Index n : counts) REQUIRE(n == 0);
}

}  // namespace

TEST_CASE("reciprocals of [1, 2) and sigmoids within 87 have the bits of divisions") {
  check_exact<false>(0x3F800000u, Index{1} << 23);
  check_exact<true>(0, 0x42AE0000);  // the bits of 87
}

TEST_CASE("fused quantising has the bits of the row kernel") {
  SUBCASE("bf16 to e4m3") { compare_rows<bf16, e4m3>(); }
  SUBCASE("float to e4m3") { compare_rows<float, e4m3>(); }
  SUBCASE("bf16 to e5m2") { compare_rows<bf16, e5m2>(); }
  SUBCASE("float to e5m2") { compare_rows<float, e5m2>(); }
}

TEST_CASE("fused quantising along columns has the bits of the row kernel") {
  SUBCASE("bf16 to e4m3") { compare_columns<bf16, e4m3>(); }
  SUBCASE("float to e5m2") { compare_columns<float, e5m2>(); }
}

TEST_CASE("fused SwiGLU and quantising have the bits of the row kernel") {
  SUBCASE("bf16 to e4m3") { compare_swiglu<bf16, e4m3>(); }
  SUBCASE("float to e5m2") { compare_swiglu<float, e5m2>(); }
}

TEST_CASE("fused SwiGLU, forward and backward, has the bits of the row kernels") {
  SUBCASE("bf16") { compare_plain_swiglu<bf16>(); }
  SUBCASE("float") { compare_plain_swiglu<float>(); }
}

TEST_CASE("groups that no warp can hold are refused before anything is launched") {
  const auto cuda = gpu();
  if (!cuda) return;
  const Codes<e4m3> q(*cuda, 3, 200, 100, 0);
  CHECK_THROWS_WITH_AS(
      quantize_rows(*cuda, View<const float, 2>(nullptr, {3, 200}), q.view(), ScaleRule{}),
      "quantize_rows: group (1 x 100) must be 1 x 16, 32, 64, 128, 256 or 512",
      std::invalid_argument);
}
