// Products of codes by the GPU's own kernels, against plain sums in double.
#include "product_reference.cuh"

// Not by a using directive: what nvcc appends to the file would see its names.
namespace product_test {
namespace {

// Groups along the output and along the sum that share a scale; 0: all.
struct Groups {
  Index outer, depth;
};

template <class C>
struct Coded {
  Tensor<C> codes;
  std::vector<float> host_scales;
  float* scales = nullptr;
  Index down, across, group_rows, group_columns;

  // rows_of_groups: rows of scales for each matrix; 0: as many as it needs.
  Coded(Index entries, Index rows, Index columns, Groups groups, bool along_k, const Gaps& gaps,
        Random& random, Index rows_of_groups = 0)
      : codes(entries, rows, columns, gaps, random) {
    group_rows = group_size(along_k ? groups.outer : groups.depth, rows);
    group_columns = group_size(along_k ? groups.depth : groups.outer, columns);
    down = entries * (rows_of_groups ? rows_of_groups : groups_of(rows, group_rows));
    across = groups_of(columns, group_columns);
    for (Index i = 0; i < down * across; ++i)
      host_scales.push_back(static_cast<float>(1 + 0.9 * random.uniform()));
    host_scales.push_back(poison<float>());
    const auto bytes = static_cast<Index>(host_scales.size() * sizeof(float));
    scales = static_cast<float*>(allocate(*device(), bytes));
    copy_to_backend(*device(), scales, host_scales.data(), bytes);
  }
  Coded(const Coded&) = delete;
  ~Coded() { deallocate(*device(), scales, 0); }

  Quantized<const C> matrix() {
    return {as_const(codes.matrix()), {scales, down, across}, group_rows, group_columns};
  }
  QuantizedStack<const C> stack() {
    return {as_const(codes.stack()), {scales, down, across}, group_rows, group_columns};
  }
};

Gaps gaps_of(Index n) { return n % 2 ? Gaps{16 * (n % 3), 16, 0} : Gaps{n % 5, 1, n % 3}; }

template <Product p, class CA, class CB, class TC>
bool check(Index m, Index n, Index k, Groups left, Groups right, Index number) {
  Random random(static_cast<std::uint32_t>(number + 1));
  constexpr bool a_along = p != Product::tn, b_along = p == Product::nt;
  Coded<CA> a(1, a_along ? m : k, a_along ? k : m, left, a_along, gaps_of(number), random);
  Coded<CB> b(1, b_along ? n : k, b_along ? k : n, right, b_along, gaps_of(number), random);
  Tensor<TC> c(1, m, n, {number % 2, 1, number % 3}, random);
  const bool add = number % 3 == 0;
  const std::string what =
      std::string("codes ") + name_of<p>() + " " + std::to_string(m) + " x " + std::to_string(n) +
      " x " + std::to_string(k) + ", groups " + std::to_string(left.outer) + " x " +
      std::to_string(left.depth) + " and " + std::to_string(right.outer) + " x " +
      std::to_string(right.depth) + (add ? " added" : "") + (number % 2 ? " aligned" : " ragged");
  ExactSums sums(m * n);
  sums.add<p>(0, a.matrix(), b.matrix(), c.matrix(), add);
  const auto exact = sums.download();
  bool good = true;
  std::vector<TC> bits;
  const auto by = [&](const char* tile, auto&& multiply) {
    c.upload();
    multiply();
    const auto got = c.download();
    if (bits.empty()) bits = got;
    const bool same = std::memcmp(bits.data(), got.data(), got.size() * sizeof(TC)) == 0;
    if (!same) std::printf("%s: %s has other bits\n", what.c_str(), tile);
    good = agrees(what + " " + tile, c, got, exact, {k}) && same && good;
  };
  const auto q = b.matrix();
  const detail::CodeProblem<p, CA, CB, TC> problem{
      a.matrix(),
      {detail::stack_of_one(q.codes), q.scales, q.group_rows, q.group_columns},
      detail::stack_of_one(c.matrix()),
      {},
      add};
  by("as chosen", [&] { detail::cuda_gemm<p>(*device(), a.matrix(), q, c.matrix(), add); });
  const detail::SegmentMap segments(detail::operand_scales(a.matrix(), a_along),
                                    detail::operand_scales(q, b_along));
  if (number % 2 && segments.of_whole_steps()) {
    using namespace detail;
    by("large", [&] { launch_codes<LargeCodeTile, true>(*device(), "test", problem); });
    by("small", [&] { launch_codes<SmallCodeTile, true>(*device(), "test", problem); });
    by("by elements", [&] { launch_codes<SmallCodeTile, false>(*device(), "test", problem); });
  }
  return good;
}

template <Product p, class CA, class CB, class TC>
void check_sizes() {
  Index number = 0;
  int failed = 0;
  for (const Index m : {1, 7, 33, 64, 129, 300})
    for (const Index n : {1, 33, 129, 300})
      for (const Index k : {1, 7, 33, 64, 129, 300}) {
        if (left_out(number++)) continue;
        const Groups right = p == Product::tn ? Groups{1, 128} : Groups{128, 128};
        failed += !check<p, CA, CB, TC>(m, n, k, {1, 128}, right, number - 1 + (number - 1) / 6);
        REQUIRE(failed < 3);
      }
  for (const Groups left : {Groups{1, 32}, {1, 64}, {1, 256}, {0, 0}, {128, 128}, {1, 40}, {1, 96}})
    for (const Groups right : {Groups{64, 64}, {1, 128}, {0, 0}, {256, 256}, {32, 32}, {40, 24}})
      for (int i = 0; i < 2; ++i) {
        if (left_out(number++)) continue;
        const Index size = on_fibers ? 40 : 0;
        failed += !check<p, CA, CB, TC>(130 - size, 200 - 3 * size, 500 - 5 * size, left, right,
                                        number - 1);
        REQUIRE(failed < 3);
      }
  CHECK(failed == 0);
}

template <Product p, class C, class TC>
void check_grouped(Index experts, Index n, Index k, Index tile, bool add) {
  Random random(static_cast<std::uint32_t>(experts + n));
  std::vector<Index> offsets = {0};
  for (Index e = 0; e < experts; ++e)
    offsets.push_back(offsets.back() + (random.below(3) == 0 ? 0 : random.below(300)));
  if (offsets.back() == 0) offsets.back() = 130;
  const Index rows = offsets.back();
  auto* on_device = static_cast<Index*>(allocate(*device(), (experts + 1) * 8));
  copy_to_backend(*device(), on_device, offsets.data(), (experts + 1) * 8);
  const View<const Index, 1> ends(on_device, {experts + 1});
  constexpr bool by_rows = p != Product::tn;
  const Gaps gaps = gaps_of(n);
  // tn: groups of `tile` tokens begin anew at each expert.
  const Index segment_rows = tile ? rows / tile + experts : 1;
  Coded<C> a(1, rows, k, {1, tile}, by_rows, gaps, random, by_rows ? 0 : segment_rows);
  Coded<C> b(by_rows ? experts : 1, by_rows ? (p == Product::nt ? n : k) : rows,
             p == Product::nt ? k : n, by_rows ? Groups{128, tile} : Groups{1, tile},
             p == Product::nt, gaps, random, by_rows ? 0 : segment_rows);
  Tensor<TC> c(by_rows ? 1 : experts, by_rows ? rows : k, n, {1, 1, 2}, random);
  ExactSums sums(c.stack().size());
  std::vector<Index> depths;
  for (Index e = 0; e < experts; ++e) {
    const Index first = offsets[static_cast<std::size_t>(e)];
    const Index count = offsets[static_cast<std::size_t>(e) + 1] - first;
    if constexpr (by_rows) {
      sums.add<p>(first * n, a.matrix().rows(first, count), b.stack()[e],
                  c.matrix().rows(first, count), add);
    } else {
      sums.add<p>(e * k * n, a.matrix().segment(e, first, count),
                  b.matrix().segment(e, first, count), c.stack()[e], add);
      depths.push_back(count);
    }
  }
  if (by_rows) depths = {k};
  if constexpr (by_rows)
    detail::cuda_grouped_gemm<p>(*device(), a.matrix(), b.stack(), c.matrix(), ends, add);
  else
    detail::cuda_grouped_gemm<p>(*device(), a.matrix(), b.matrix(), c.stack(), ends, add);
  const auto got = c.download();
  CHECK(agrees(std::string("grouped codes ") + name_of<p>() + " " + std::to_string(experts) +
                   " experts, " + std::to_string(rows) + " rows, " + std::to_string(n) + " x " +
                   std::to_string(k) + ", groups of " + std::to_string(tile),
               c, got, sums.download(), depths));
  deallocate(*device(), on_device, 0);
}

}  // namespace

TEST_CASE("Products of codes agree with sums in double, for all groups and by every tile") {
  if (!device()) return;
  check_sizes<Product::nt, e4m3, e4m3, bf16>();
  check_sizes<Product::nn, e5m2, e4m3, bf16>();
  check_sizes<Product::tn, e4m3, e5m2, float>();
}

TEST_CASE("Codes of double with scales of 1 are a product of doubles") {
  if (!device()) return;
  Random random(5);
  Tensor<double> a(1, 70, 300, {}, random), b(1, 65, 300, {}, random), c(1, 70, 65, {}, random);
  const double one = 1;
  auto* scale = static_cast<double*>(allocate(*device(), 8));
  copy_to_backend(*device(), scale, &one, 8);
  const auto coded = [&](Tensor<double>& x) {
    return Quantized<const double>(as_const(x.matrix()), {scale, 1, 1}, x.matrix().extent(0),
                                   x.matrix().extent(1));
  };
  ExactSums sums(70 * 65);
  sums.add<Product::nt>(0, as_const(a.matrix()), as_const(b.matrix()), c.matrix(), true);
  detail::cuda_gemm<Product::nt>(*device(), coded(a), coded(b), c.matrix(), true);
  CHECK(agrees("codes of double", c, c.download(), sums.download(), {300}));
  deallocate(*device(), scale, 8);
}

TEST_CASE("Grouped products of codes begin groups anew where eigen.hpp does") {
  if (!device()) return;
  for (const Index experts : {1, 5, 64})
    for (const Index tile : {128, 32, 0, 40})
      for (const bool add : {false, true})
        for (const Index n : {129, 144}) {
          if (on_fibers && (experts == 64 || add != (n == 144))) continue;
          check_grouped<Product::nt, e4m3, bf16>(experts, n, 272, tile, add);
          check_grouped<Product::nn, e4m3, bf16>(experts, n, 272, tile, add);
          check_grouped<Product::tn, e4m3, float>(experts, n, 48, tile, add);
        }
}

TEST_CASE("Every code has its value in a product: NaN and infinity as well") {
  if (!device()) return;
  const auto check_codes = [](auto code) {
    using C = decltype(code);
    Random random(1);
    Coded<C> a(1, 256, 16, {0, 0}, true, {0, 16, 0}, random);
    Coded<C> b(1, 16, 16, {0, 0}, true, {0, 16, 0}, random);
    for (Index i = 0; i < 256; ++i)
      for (Index j = 0; j < 16; ++j)
        a.codes.on_host()(0, i, j).code = static_cast<std::uint8_t>(j == i % 16 ? i : 0);
    for (Index i = 0; i < 16; ++i)  // the identity
      for (Index j = 0; j < 16; ++j) b.codes.on_host()(0, i, j) = C(i == j ? 1.0f : 0.0f);
    a.codes.upload();
    b.codes.upload();
    Tensor<float> c(1, 256, 16, {}, random);
    detail::cuda_gemm<Product::nt>(*device(), a.matrix(), b.matrix(), c.matrix(), false);
    const auto got = c.download();
    const float scale = a.host_scales[0] * b.host_scales[0];
    for (Index i = 0; i < 256; ++i) {
      C x;
      x.code = static_cast<std::uint8_t>(i);
      const float value = got[static_cast<std::size_t>(i * 16 + i % 16)];
      const float want = float(x) * scale;
      CAPTURE(i);
      CHECK((std::isnan(want) ? std::isnan(value) : value == want));
    }
  };
  check_codes(e4m3{});
  check_codes(e5m2{});
}

}  // namespace product_test
