// RMSNorm by fused row kernels against the row kernels, on the same device.
#include <doctest/doctest.h>

#include "fused_rows_case.cuh"

using namespace fused_test;

namespace {

// Sums of squares of small integers are exact in any order, so that the codes must be equal.
template <class In, class W, class Out, class C>
void compare_norm() {
  const auto cuda = gpu();
  if (!cuda) return;
  std::vector<Shape> all(std::begin(shapes), std::end(shapes));
  all.push_back({5, 8192, 128, 0});
  all.push_back({5, 12304, 128, 0});  // more than registers hold
  all.push_back({5, 9001, 128, 0});
  for (const Shape& s : all)
    for (const bool plain : {true, false}) {
      CAPTURE(s.rows);
      CAPTURE(s.columns);
      CAPTURE(s.width);
      CAPTURE(plain);
      auto x = special_values<In>(s.rows, s.columns, s.gap, 4);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t row = i / static_cast<std::size_t>(s.columns + s.gap);
        // Rows 2 to 5 keep their NaN and infinities where there are such.
        const float value = float(x[i]);
        if (s.rows < 12 || row < 2 || row > 5 || value - value == 0)
          x[i] = In(float(static_cast<int>(i * 2654435761u % 31) - 15) * (row % 2 ? 1 : 0.125f));
      }
      std::vector<W> w(static_cast<std::size_t>(s.columns));
      for (std::size_t j = 0; j < w.size(); ++j)
        w[j] = W(0.5f + static_cast<float>(j * 40503u % 1000) / 999);
      const Memory<In> on_x(*cuda, x);
      const Memory<W> on_w(*cuda, w);
      const auto in = matrix(on_x, s.rows, s.columns, s.gap);
      const View<const W, 1> weight(on_w.data, {s.columns});
      for (const ScaleRule& rule : rules) {
        CAPTURE(rule.power_of_two);
        const Codes<C> ours(*cuda, s.rows, s.columns, s.width, s.gap),
            theirs(*cuda, s.rows, s.columns, s.width, s.gap);
        const Memory<Out> y1(*cuda, s.rows * (s.columns + s.gap)), y2(*cuda, Index(y1.size));
        const auto output = [&](const Memory<Out>& y) {
          View<Out, 2> v;
          if (plain) v = {y.data, {s.rows, s.columns}}, v.strides[0] = s.columns + s.gap;
          return v;
        };
        for_each_row(*cuda, s.rows,
                     dsv3::detail::RmsNormQuantizeRow<In, Out, W, C>{in, weight, output(y2),
                                                                     theirs.view(), 1e-6, rule});
        quantize_norm_rows(*cuda, in, weight, 1e-6, output(y1), ours.view(), rule);
        check_same("y", y1, y2, s.columns + s.gap);
        ours.must_be("quantize_norm_rows", theirs);
      }
    }
}

// The same with small integers everywhere.
template <class T>
std::vector<T> integers(Index n, std::uint32_t seed, int largest) {
  std::vector<T> x(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto word = (static_cast<std::uint32_t>(i) + seed) * 2654435761u >> 8;
    x[i] = T(float(static_cast<int>(word % static_cast<std::uint32_t>(2 * largest + 1)) - largest));
  }
  return x;
}

template <class In, class W, class Out>
void compare_plain_norm() {
  using dsv3::Output;
  const auto cuda = gpu();
  if (!cuda) return;
  const Shape all[] = {{1, 1, 0, 0},      {3, 37, 0, 0},      {130, 512, 0, 64}, {65, 1536, 0, 0},
                       {64, 2064, 0, 16}, {300, 7168, 0, 0},  {5, 12304, 0, 0},  {66, 9001, 0, 0},
                       {63, 40, 0, 8},    {1000, 2048, 0, 0}, {129, 100, 0, 4}};
  for (const Shape& s : all)
    for (const Output output : {Output::overwrite, Output::add}) {
      CAPTURE(s.rows);
      CAPTURE(s.columns);
      CAPTURE(output == Output::add);
      const Index stride = s.columns + s.gap, size = s.rows * stride;
      const Memory<In> x(*cuda, integers<In>(size, 1, 15));
      const Memory<W> w(*cuda, integers<W>(s.columns, 2, 4));
      const Memory<Out> dy(*cuda, integers<Out>(size, 3, 3)), y1(*cuda, size), y2(*cuda, size);
      const auto before = special_values<In>(s.rows, s.columns, s.gap, 5);
      const Memory<In> dx1(*cuda, before), dx2(*cuda, before);
      const Memory<float> dw1(*cuda, integers<float>(s.columns, 6, 100)),
          dw2(*cuda, integers<float>(s.columns, 6, 100));
      const auto writable = [&](const auto& m) {
        View<std::remove_pointer_t<decltype(m.data)>, 2> v(m.data, {s.rows, s.columns});
        v.strides[0] = stride;
        return v;
      };
      const View<const W, 1> weight(w.data, {s.columns});
      const auto in = matrix(x, s.rows, s.columns, s.gap);
      const auto gradient = matrix(dy, s.rows, s.columns, s.gap);
      for_each_row(*cuda, s.rows,
                   dsv3::detail::RmsNormForwardRow<In, Out, W>{in, weight, writable(y2), 1e-6});
      rms_norm_rows(*cuda, in, weight, 1e-6, writable(y1));
      check_same("y", y1, y2, stride);
      using Partial = dsv3::detail::RmsNormWeightPartial<In, Out>;
      using Add = dsv3::detail::AddPartials<float, float>;
      const Index chunks = dsv3::groups_of(s.rows, Partial::tokens);
      const Memory<float> rstd1(*cuda, s.rows), rstd2(*cuda, s.rows),
          partial1(*cuda, chunks * s.columns), partial2(*cuda, chunks * s.columns);
      const auto row = [](const Memory<float>& m) {
        return View<float, 1>(m.data, {static_cast<Index>(m.size)});
      };
      const auto parts = [&](const Memory<float>& m) {
        return View<float, 2>(m.data, {chunks, s.columns});
      };
      for_each_row(
          *cuda, s.rows,
          dsv3::detail::RmsNormBackwardRow<In, Out, W>{in, gradient, weight, row(rstd2),
                                                       writable(dx2), 1e-6, output == Output::add});
      for_each_row(*cuda, chunks, Partial{in, gradient, row(rstd2), parts(partial2)});
      for_each_row(*cuda, dsv3::groups_of(s.columns, Add::columns), Add{parts(partial2), row(dw2)});
      rms_norm_backward_rows(*cuda, in, gradient, weight, 1e-6, writable(dx1), output, row(rstd1),
                             parts(partial1), Partial::tokens, row(dw1));
      check_same("rstd", rstd1, rstd2, 1);
      check_same("dx", dx1, dx2, stride);
      check_same("partial sums", partial1, partial2, s.columns);
      check_same("dweight", dw1, dw2, s.columns);
    }
}

}  // namespace

TEST_CASE("fused RMSNorm and quantising have the bits of the row kernel where sums are exact") {
  SUBCASE("float, float, bf16 to e4m3") { compare_norm<float, float, bf16, e4m3>(); }
  SUBCASE("bf16, bf16, bf16 to e4m3") { compare_norm<bf16, bf16, bf16, e4m3>(); }
  SUBCASE("float, bf16, float to e5m2") { compare_norm<float, bf16, float, e5m2>(); }
}

TEST_CASE("fused RMSNorm, forward and backward, has the bits of the row kernels of exact sums") {
  SUBCASE("float, float, float") { compare_plain_norm<float, float, float>(); }
  SUBCASE("float, bf16, bf16") { compare_plain_norm<float, bf16, bf16>(); }
  SUBCASE("bf16, bf16, bf16") { compare_plain_norm<bf16, bf16, bf16>(); }
}
