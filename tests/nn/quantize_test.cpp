#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/projection.hpp>
#include <limits>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float none = std::numeric_limits<float>::quiet_NaN();

// Fp8 on activations of float, so that the reference needs no other rounding.
struct Train : Fp8 {
  using activation = float;
};
struct Parity : Train {
  static constexpr double amax_min = 1e-4;
};
struct PowersOfTwo : Train {
  static constexpr bool power_of_two = true;
};
template <Index n>
struct Tile : Train {
  static constexpr Index tile = n, block = n;
};
struct Together : Train {
  static constexpr Index gradient_rows = 128;
};
struct Narrow : Fp8 {
  using code = e5m2;
  using gradient_code = e5m2;
};

// --- The reference: spec 7.2 and nothing of the library but the cast to a code ---

struct Matrix {
  Index rows, columns;
  std::vector<float> value;

  float operator()(Index i, Index j) const {
    return value[static_cast<std::size_t>(i * columns + j)];
  }
};

// The scale of a group whose largest magnitude is amax, by spec 7.2.
float reference_scale(float amax, float largest, double amax_min, bool power_of_two) {
  if (amax < static_cast<float>(amax_min)) amax = static_cast<float>(amax_min);
  const float s = amax / largest;
  if (s == 0 || std::fpclassify(s) == FP_SUBNORMAL) return 1;
  if (!power_of_two || !std::isfinite(s)) return s;
  int exponent = 0;
  const float fraction = std::frexp(s, &exponent);  // in [1/2, 1)
  return std::ldexp(1.0f, fraction == 0.5f ? exponent - 1 : exponent);
}

// How many codes or scales of rows [first, first + count) differ from those of groups of
// down x across that begin at row `first`.
template <class C>
Index mistakes(const Matrix& x, Index first, Index count, const Quantized<const C>& q, Index down,
               Index across, double amax_min, bool power_of_two) {
  Index wrong = 0;
  for (Index i0 = 0; i0 < count; i0 += down)
    for (Index j0 = 0; j0 < x.columns; j0 += across) {
      const Index i1 = std::min(i0 + down, count), j1 = std::min(j0 + across, x.columns);
      float amax = 0;
      for (Index i = i0; i < i1; ++i)
        for (Index j = j0; j < j1; ++j) {
          const float size = std::abs(x(first + i, j));
          if (size > amax || std::isnan(size)) amax = std::isnan(amax) ? amax : size;
        }
      const float s = reference_scale(amax, C::max, amax_min, power_of_two);
      for (Index i = i0; i < i1; ++i)
        for (Index j = j0; j < j1; ++j) {
          const float scale = q.scales(i / q.group_rows, j / q.group_columns);
          wrong += scale != s && !(std::isnan(scale) && std::isnan(s));
          wrong += q.codes(i, j).code != C(x(first + i, j) / s).code;
        }
    }
  return wrong;
}

// --- What is quantised ---

// Numbers over some 24 binades; one block of 128 x 128 is all zero, one row nearly.
Matrix numbers(Index rows, Index columns, std::uint64_t stream) {
  Matrix x{rows, columns, {}};
  const Philox philox(9, stream);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) {
      const auto block = philox(static_cast<std::uint64_t>(i * columns + j));
      const double u = 2 * uniform(block.word[0]) - 1;
      const double size =
          std::exp2(static_cast<double>(4 * (i % 5) - 4 * (j % 3)) + 8 * uniform(block.word[1]));
      const bool zero = (i < 128 && j >= 128 && j < 256) || (i % 7 == 3 && j % 50 != 0);
      x.value.push_back(static_cast<float>(bf16(static_cast<float>(zero ? 0 : u * size))));
    }
  return x;
}

template <class T>
View<const T, 2> view_of(Memory& memory, const Matrix& x) {
  const auto view = memory.empty<T>({x.rows, x.columns});
  for (Index i = 0; i < view.size(); ++i) view.data[i] = T(x.value[static_cast<std::size_t>(i)]);
  return view;
}

constexpr Index sizes[][2] = {{131, 259}, {3, 5}, {1, 1}, {128, 128}, {129, 300}, {1, 257}};
constexpr View<const Index, 1> one_segment;

// All rows and columns, of each size, as P quantises them.
template <class P, class Backend>
void check_policy(Backend& backend) {
  using T = typename P::activation;
  using C = typename P::code;
  const Projection<P> projection;
  for (const auto& size : sizes) {
    Memory memory(Index{1} << 23);
    const Index rows = size[0], columns = size[1];
    const Matrix x = numbers(rows, columns, 1);
    const auto view = view_of<T>(memory, x);
    const Index tile = P::tile ? P::tile : std::max(rows, columns);
    const Index row_group = P::tile ? 1 : rows;
    CAPTURE(rows);
    CAPTURE(columns);
    for (const Route route : {Route::dense, Route::dispatch}) {
      const bool power = P::power_of_two || route == Route::dispatch;
      const auto input = projection.input(backend, "x", view, route, memory.arena);
      CHECK(mistakes(x, 0, rows, input, row_group, tile, P::amax_min, power) == 0);
      const auto gradient = projection.gradient(backend, "x", view, route, memory.arena);
      CHECK(mistakes(x, 0, rows, gradient, P::tile ? P::gradient_rows : rows, tile, P::amax_min,
                     power) == 0);
      const auto down =
          projection.template columns<C>(backend, {}, view, one_segment, route, memory.arena);
      CHECK(mistakes(x, 0, rows, down, tile, P::tile ? 1 : columns, P::amax_min, power) == 0);
    }
    const Index block = P::block ? P::block : std::max(rows, columns);
    const auto weight = take_quantized<C>(memory.arena, rows, columns, P::block, P::block);
    quantize_weights(backend, view, weight, {P::amax_min, P::power_of_two});
    CHECK(mistakes(x, 0, rows, as_const(weight), block, block, P::amax_min, P::power_of_two) == 0);
  }
}

}  // namespace

TEST_CASE("Each row of tile columns gets the scale that makes its largest value 448") {
  const float x[] = {896, -448, 2, 0.001f, 7, -224, 0, 14};
  Memory memory;
  EigenCpu backend;
  const auto q = take_quantized<e4m3>(memory.arena, 2, 4, 1, 2);
  for_each_row(backend, 2, detail::QuantizeRow<float, e4m3, RoundNearest>{{x, {2, 4}}, q, {}, {}});
  const float scales[] = {2, 2 / 448.0f, 0.5f, 0.03125f};
  const float values[] = {448, -224, 448, 0.21875f, 14, -448, 0, 448};
  for (Index i = 0; i < 8; ++i) {
    CAPTURE(i);
    CHECK(float(q.codes.data[i]) == values[i]);
    if (i < 4) CHECK(q.scales.data[i] == scales[i]);
  }
}

TEST_CASE_TEMPLATE("Codes and scales are those of spec 7.2, to the bit", P, Train, Parity,
                   PowersOfTwo, Tile<32>, Tile<64>, Tile<256>, Tile<0>, Together, Fp8, Narrow) {
  Cpu cpu(2);
  check_policy<P>(cpu);
}

TEST_CASE("The reference backend has the same codes") {
  EigenCpu backend;
  check_policy<Train>(backend);
}

TEST_CASE("Groups of 128 tokens begin anew at each expert") {
  Cpu backend(2);
  const Projection<Train> projection;
  const std::vector<Index> ragged = {0, 0, 1, 128, 128, 256, 385, 398, 398};
  const std::vector<Index> one_of_three = {0, 0, 300, 300}, rows_of_one = {0, 130};
  for (const auto& offsets : {ragged, one_of_three, rows_of_one}) {
    Memory memory(Index{1} << 23);
    const Matrix x = numbers(offsets.back(), 259, 2);
    const View<const Index, 1> at(offsets.data(), {static_cast<Index>(offsets.size())});
    const auto q = projection.columns<e4m3>(backend, {}, view_of<float>(memory, x), at,
                                            Route::dense, memory.arena);
    for (Index e = 0; e + 1 < at.extent(0); ++e)
      CHECK(mistakes(x, at(e), at(e + 1) - at(e), q.segment(e, at(e), at(e + 1) - at(e)), 128, 1, 0,
                     false) == 0);
  }
}

TEST_CASE("Delayed scaling takes the largest of the steps before, notes its own, and saturates") {
  Memory memory;
  EigenCpu backend;
  const float x[] = {16, -4, 8};
  float past[] = {3, 2, 8, 4};  // of this step so far, and of three before
  const View<float, 1> history(past, {4});
  const Projection<Tile<0>> projection;
  const auto run = [&] {
    const ArenaScope scope(memory.arena);
    return projection.input(backend, Site{"x", history}, View<const float, 2>(x, {1, 3}),
                            Route::dense, memory.arena);
  };
  const auto q = run();
  CHECK(q.scales(0, 0) == 8.0f / 448);
  CHECK(float(q.codes(0, 0)) == 448.0f);  // 16 / (8 / 448) is beyond
  CHECK(float(q.codes(0, 1)) == -224.0f);
  CHECK(float(q.codes(0, 2)) == 448.0f);
  CHECK(past[0] == 16.0f);
  past[0] = 20;
  run();
  CHECK(past[0] == 20.0f);  // the largest of all its uses in a step
  past[1] = past[2] = past[3] = 0;
  CHECK(run().scales(0, 0) == 16.0f / 448);  // nothing before: its own
  const double norm[] = {1, 1}, skipped[] = {1, 0};
  past[1] = 5, past[2] = 6;
  const auto advance = [&](const double(&n)[2]) {
    for_each_row(backend, 1, detail::AdvanceHistoryRow{View<float, 2>(past, {1, 4}), {n, {2}}});
    return std::vector<float>(past, past + 4);
  };
  CHECK(advance(norm) == std::vector<float>{0, 20, 5, 6});
  past[0] = 9;
  CHECK(advance(skipped) == std::vector<float>{0, 20, 5, 6});
}

TEST_CASE("A group without magnitude has scale 1 and zeros, or the scale of amax_min") {
  Memory memory;
  Cpu backend(1);
  const auto x = memory.zeros<float>({2, 200});
  for (Index j = 128; j < 200; ++j) x(1, j) = j % 2 ? 1e-37f : -1e-37f;  // the scale is subnormal
  const auto run = [&](auto policy) {
    return Projection<decltype(policy)>{}.input(backend, "x", as_const(x), Route::dense,
                                                memory.arena);
  };
  const auto train = run(Train{}), parity = run(Parity{});
  for (Index t = 0; t < 2; ++t)
    for (Index g = 0; g < 2; ++g) {
      CHECK(train.scales(t, g) == 1.0f);
      CHECK(parity.scales(t, g) == 1e-4f / 448);
      for (Index j = 128 * g; j < std::min<Index>(200, 128 * g + 128); ++j) {
        REQUIRE(float(train.codes(t, j)) == 0.0f);
        REQUIRE(float(parity.codes(t, j)) == 0.0f);
      }
    }
}

TEST_CASE_TEMPLATE("Without rows nothing is written", P, Train, Together, Tile<0>) {
  Memory memory;
  Cpu backend(1);
  const Projection<P> projection;
  const auto x = as_const(memory.empty<float>({0, 5}));
  projection.input(backend, "x", x, Route::dense, memory.arena);
  projection.gradient(backend, "x", x, Route::dense, memory.arena);
  projection.template columns<e4m3>(backend, {}, x, one_segment, Route::dense, memory.arena);
  const auto* bytes = static_cast<const unsigned char*>(memory.buffer.data());
  for (Index i = 0; i < 4096; ++i) REQUIRE(bytes[i] == 0xFF);
}

TEST_CASE("NaN makes its group NaN; infinity makes the scale infinite, and itself NaN") {
  Memory memory;
  Cpu backend(1);
  const Matrix ones{130, 130, std::vector<float>(130 * 130, 1.0f)};
  const auto x = memory.empty<float>({130, 130});
  std::copy(ones.value.begin(), ones.value.end(), x.data);
  x(3, 5) = none;
  x(3, 129) = -infinity;
  const auto check = [&](const auto& q) {
    CHECK(std::isnan(q.scales(3 / q.group_rows, 5 / q.group_columns)));
    CHECK(std::isnan(float(q.codes(3, 5))));
    CHECK(std::isnan(q(3, 5)));
    CHECK(q.scales(3 / q.group_rows, 129 / q.group_columns) == infinity);
    CHECK(std::isnan(float(q.codes(3, 129))));
    CHECK(q(129, 0) == 1.0f);  // of another group
  };
  const Projection<Train> projection;
  check(projection.input(backend, "x", as_const(x), Route::dense, memory.arena));
  check(projection.input(backend, "x", as_const(x), Route::dispatch, memory.arena));
  check(
      projection.columns<e4m3>(backend, {}, as_const(x), one_segment, Route::dense, memory.arena));
  const auto weight = take_quantized<e4m3>(memory.arena, 130, 130, 128, 128);
  quantize_weights(backend, as_const(x), weight, {});
  check(as_const(weight));
  const auto rows = projection.input(backend, "x", as_const(x), Route::dense, memory.arena);
  CHECK(std::isnan(float(rows.codes(3, 0))));  // the whole group of the NaN
  CHECK(float(rows.codes(3, 128)) == 0.0f);    // beside infinity: 1 / infinity
  CHECK(std::isnan(rows(3, 128)));             // 0 * infinity
}

TEST_CASE("Requantising rows of powers of two as columns keeps what stays normal") {
  Memory memory(Index{1} << 23);
  Cpu backend(2);
  const Projection<Train> projection;
  const Matrix x = numbers(300, 259, 3);
  const auto rows =
      projection.input(backend, "x", view_of<float>(memory, x), Route::dispatch, memory.arena);
  const auto columns = projection.input_columns(backend, {}, rows, Route::dispatch, memory.arena);
  Index kept = 0, changed = 0, coarse = 0;
  for (Index i = 0; i < 300; ++i)
    for (Index j = 0; j < 259; ++j) {
      const float scale = columns.scales(i / 128, j);
      if (std::abs(rows(i, j)) < 0x1p-6f * scale) {  // among the subnormals: to their grid
        coarse += !(std::abs(columns(i, j) - rows(i, j)) <= 0x1p-10f * scale);
      } else {
        ++kept;
        changed += columns(i, j) != rows(i, j);
      }
    }
  CHECK(kept > 10000);
  CHECK(changed == 0);
  CHECK(coarse == 0);
}

TEST_CASE("Values of codes have those codes again at the same scales") {
  Memory memory(Index{1} << 23);
  Cpu backend(2);
  const Projection<Train> projection;
  for (const Route route : {Route::dense, Route::dispatch}) {
    const auto q = projection.input(backend, "x", view_of<float>(memory, numbers(131, 259, 4)),
                                    route, memory.arena);
    const auto values = memory.empty<float>({131, 259});
    for_each_row(backend, 131, detail::DequantizeRow<Quantized<const e4m3>, float>{q, values});
    Index wrong = 0;
    for (Index i = 0; i < 131; ++i)
      for (Index j = 0; j < 259; ++j) {
        wrong += values(i, j) != q(i, j);
        wrong += e4m3(values(i, j) / q.scales(i, j / 128)).code != q.codes(i, j).code;
      }
    CHECK(wrong == 0);
  }
}
