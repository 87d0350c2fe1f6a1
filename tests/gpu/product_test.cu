// Products of matrices by the GPU's own kernels, against plain sums in double.
#include <algorithm>

#include "product_reference.cuh"

// Not by a using directive: what nvcc appends to the file would see its names.
namespace product_test {
namespace {

constexpr Index sizes[] = {1, 7, 33, 64, 129, 300};

// How a product's operands lie, by the number of the case: aligned, or not.
Gaps aligned_gaps(Index n) { return {8 * (n % 3), 8, 8 * (n / 3 % 2)}; }
Gaps ragged_gaps(Index n) { return {n % 4, 1, n / 4 % 3}; }

template <Product p, class T>
Tensor<T> operand(bool left, Index entries, Index outer, Index depth, const Gaps& gaps,
                  Random& random) {
  const bool along_k = left ? p != Product::tn : p == Product::nt;
  return {entries, along_k ? outer : depth, along_k ? depth : outer, gaps, random};
}

// One product of c's entries, which `multiply` asks of the GPU, against the exact sums.
template <Product p, class TA, class TB, class TC, class F>
bool check(const std::string& what, Tensor<TA>& a, Tensor<TB>& b, Tensor<TC>& c, bool add,
           std::vector<TC>* bits, F&& multiply) {
  const auto x = a.stack();
  const auto y = b.stack();
  const auto z = c.stack();
  const Index each = z.extent(1) * z.extent(2);
  ExactSums sums(z.size());
  for (Index e = 0; e < z.extent(0); ++e) sums.add<p>(e * each, x[e], y[e], z[e], add);
  multiply(detail::MatrixProblem<p, TA, TB, TC>{as_const(x), as_const(y), z, {}, add});
  const auto got = c.download();
  c.upload();
  bool equal = true;
  if (bits && bits->empty())
    *bits = got;
  else if (bits)
    equal = std::memcmp(bits->data(), got.data(), got.size() * sizeof(TC)) == 0;
  if (!equal) std::printf("%s: other bits than by the first tile\n", what.c_str());
  return agrees(what, c, got, sums.download(), {x.extent(p == Product::tn ? 1 : 2)}) && equal;
}

template <Product p, class TC>
void check_tiles() {
  Index number = 0;
  int failed = 0;
  for (const Index m : sizes)
    for (const Index n : sizes)
      for (const Index k : sizes) {
        if (left_out(++number)) continue;
        Random random(static_cast<std::uint32_t>(number));
        const bool add = number % 3 == 0, whole = (number + number / 6) % 2;  // of every k both
        const Index entries = number % 5 == 0 ? 2 : 1;
        const auto gaps = [&](Index i) {
          return whole ? aligned_gaps(number + i) : ragged_gaps(number + i);
        };
        auto a = operand<p, bf16>(true, entries, m, k, gaps(0), random);
        auto b = operand<p, bf16>(false, entries, n, k, gaps(1), random);
        Tensor<TC> c(entries, m, n, ragged_gaps(number), random);
        std::vector<TC> bits;
        const auto by = [&](const char* tile, auto&& multiply) {
          const std::string what = std::string(name_of<p>()) + " " + std::to_string(m) + " x " +
                                   std::to_string(n) + " x " + std::to_string(k) +
                                   (add ? " added" : "") + (whole ? " aligned " : " ragged ") +
                                   tile;
          failed += !check<p>(what, a, b, c, add, &bits, multiply);
        };
        using namespace detail;
        by("by elements",
           [&](const auto& all) { launch_matrices<SmallTile, false>(*device(), "test", all); });
        by("as chosen", [&](const auto& all) { multiply_matrices(*device(), "test", all); });
        if (whole) {
          by("small",
             [&](const auto& all) { launch_matrices<SmallTile, true>(*device(), "test", all); });
          by("medium",
             [&](const auto& all) { launch_matrices<MediumTile, true>(*device(), "test", all); });
          by("large",
             [&](const auto& all) { launch_matrices<LargeTile, true>(*device(), "test", all); });
        }
        REQUIRE(failed < 3);  // enough to see where
      }
  CHECK(failed == 0);
}

template <Product p, class TA, class TB, class TC>
void check_plain() {
  Index number = 0;
  int failed = 0;
  for (const Index m : sizes)
    for (const Index n : sizes)
      for (const Index k : sizes) {
        if (left_out(++number)) continue;
        Random random(static_cast<std::uint32_t>(number));
        const bool add = number % 2;
        auto a = operand<p, TA>(true, 1, m, k, ragged_gaps(number), random);
        auto b = operand<p, TB>(false, 1, n, k, ragged_gaps(number + 1), random);
        Tensor<TC> c(1, m, n, ragged_gaps(number + 2), random);
        failed += !check<p, TA, TB, TC>(
            std::string("plain ") + name_of<p>() + " " + std::to_string(m) + " x " +
                std::to_string(n) + " x " + std::to_string(k),
            a, b, c, add, nullptr, [&](const auto& all) {
              detail::cuda_gemm<p>(*device(), all.a[0], all.b[0], all.c[0], add);
            });
        REQUIRE(failed < 3);
      }
  CHECK(failed == 0);
}

// The rows of the experts: some have none.
std::vector<Index> ragged_offsets(Index experts, Random& random) {
  std::vector<Index> offsets = {0};
  for (Index e = 0; e < experts; ++e)
    offsets.push_back(offsets.back() + (random.below(3) == 0 ? 0 : random.below(200)));
  if (offsets.back() == 0) offsets.back() = 130;
  return offsets;
}

template <Product p, class T, class TC>
void check_grouped(Index experts, Index n, Index k, bool add, bool whole) {
  Random random(static_cast<std::uint32_t>(experts * 10 + n));
  const auto offsets = ragged_offsets(experts, random);
  const Index rows = offsets.back();
  const Gaps gaps = whole ? aligned_gaps(n) : ragged_gaps(n);
  auto* on_device = static_cast<Index*>(allocate(*device(), (experts + 1) * 8));
  copy_to_backend(*device(), on_device, offsets.data(), (experts + 1) * 8);
  const View<const Index, 1> ends(on_device, {experts + 1});
  constexpr bool by_rows = p != Product::tn;
  // tn: k columns of a and n of b, summed over the rows of each expert.
  Tensor<T> a(1, rows, k, gaps, random);
  Tensor<T> b(by_rows ? experts : 1, by_rows ? (p == Product::nt ? n : k) : rows,
              p == Product::nt ? k : n, gaps, random);
  Tensor<TC> c(by_rows ? 1 : experts, by_rows ? rows : k, n, ragged_gaps(n + 1), random);
  ExactSums sums(c.stack().size());
  std::vector<Index> depths;
  for (Index e = 0; e < experts; ++e) {
    const Index first = offsets[static_cast<std::size_t>(e)];
    const Index count = offsets[static_cast<std::size_t>(e) + 1] - first;
    const auto left = as_const(a.matrix().rows(first, count));
    if constexpr (by_rows) {
      sums.add<p>(first * n, left, as_const(b.stack()[e]), c.matrix().rows(first, count), add);
    } else {
      sums.add<p>(e * k * n, left, as_const(b.matrix().rows(first, count)), c.stack()[e], add);
      depths.push_back(count);
    }
  }
  if (by_rows) depths = {k};
  if constexpr (by_rows)
    detail::cuda_grouped_gemm<p>(*device(), a.matrix(), b.stack(), c.matrix(), ends, add);
  else
    detail::cuda_grouped_gemm<p>(*device(), a.matrix(), b.matrix(), c.stack(), ends, add);
  const auto got = c.download();
  CHECK(agrees(std::string("grouped ") + name_of<p>() + " " + std::to_string(experts) +
                   " experts, " + std::to_string(rows) + " rows, " + std::to_string(n) + " x " +
                   std::to_string(k),
               c, got, sums.download(), depths));
  deallocate(*device(), on_device, 0);
}

template <class T, class TC>
void check_all_grouped() {
  for (const Index experts : {1, 5, on_fibers ? 5 : 64})
    for (const bool add : {false, true})
      for (const bool whole : {false, true}) {
        check_grouped<Product::nt, T, TC>(experts, 129, 72, add, whole);
        check_grouped<Product::nn, T, TC>(experts, 40, 130, add, whole);
        check_grouped<Product::tn, T, TC>(experts, 136, 37, add, whole);
      }
}

// A row alone has the bits it has among others; a column as well.
template <Product p, class T, class TC>
void check_neighbours() {
  Random random(7);
  const Index m = 700, n = 600, k = 1000;
  auto a = operand<p, T>(true, 1, m, k, {0, 8, 0}, random);
  auto b = operand<p, T>(false, 1, n, k, {0, 8, 0}, random);
  Tensor<TC> all(1, m, n, {}, random), few(1, m, n, {}, random);
  detail::cuda_gemm<p>(*device(), a.matrix(), b.matrix(), all.matrix(), false);
  const auto want = all.download();
  const auto part = [&](Index row, Index rows, Index column, Index columns) {
    const auto x = p == Product::tn ? a.matrix().cols(row, rows) : a.matrix().rows(row, rows);
    const auto y =
        p == Product::nt ? b.matrix().rows(column, columns) : b.matrix().cols(column, columns);
    few.upload();
    detail::cuda_gemm<p>(*device(), x, y, few.matrix().rows(row, rows).cols(column, columns),
                         false);
    const auto got = few.download();
    for (Index i = row; i < row + rows; ++i)
      for (Index j = column; j < column + columns; ++j)
        if (!same_bits(got[static_cast<std::size_t>(i * n + j)],
                       want[static_cast<std::size_t>(i * n + j)])) {
          std::printf("%s: rows [%td, +%td), columns [%td, +%td): other bits at [%td, %td]\n",
                      name_of<p>(), row, rows, column, columns, i, j);
          return false;
        }
    return true;
  };
  CHECK(part(0, 1, 0, n));
  CHECK(part(699, 1, 0, n));
  CHECK(part(131, 3, 0, n));
  CHECK(part(64, 65, 7, 1));
  CHECK(part(0, m, 256, 90));
  CHECK(part(8, 300, 8, 592));
}

}  // namespace

TEST_CASE("Products of bf16 agree with sums in double, by every tile with the same bits") {
  if (!device()) return;
  check_tiles<Product::nt, bf16>();
  check_tiles<Product::nn, bf16>();
  check_tiles<Product::tn, bf16>();
  check_tiles<Product::nt, float>();
  check_tiles<Product::nn, float>();
  check_tiles<Product::tn, float>();
}

TEST_CASE("Products of other types agree with sums in double") {
  if (!device()) return;
  check_plain<Product::nt, float, float, float>();
  check_plain<Product::nn, float, float, float>();
  check_plain<Product::tn, float, float, float>();
  check_plain<Product::nt, double, double, double>();
  check_plain<Product::tn, double, double, double>();
  check_plain<Product::nn, float, bf16, float>();
  check_plain<Product::nt, bf16, float, bf16>();
  check_plain<Product::tn, bf16, bf16, double>();
}

TEST_CASE("Grouped products find the experts of ragged rows, some of which have none") {
  if (!device()) return;
  check_all_grouped<bf16, bf16>();
  check_all_grouped<bf16, float>();
  check_all_grouped<float, float>();
  check_all_grouped<double, double>();
}

TEST_CASE("A sum over nothing is zero; an empty output is left alone") {
  if (!device()) return;
  Random random(3);
  Tensor<bf16> a(1, 5, 0, {0, 8, 8}, random), b(1, 9, 0, {0, 8, 8}, random);
  Tensor<float> c(1, 5, 9, {}, random), d(1, 5, 9, {}, random);
  detail::cuda_gemm<Product::nt>(*device(), a.matrix(), b.matrix(), c.matrix(), false);
  detail::cuda_gemm<Product::nt>(*device(), a.matrix(), b.matrix(), d.matrix(), true);
  detail::cuda_gemm<Product::nt>(*device(), a.matrix().rows(0, 0), b.matrix(),
                                 d.matrix().rows(0, 0), false);
  const auto zeros = c.download(), kept = d.download();
  for (Index i = 0; i < 45; ++i) CHECK(zeros[static_cast<std::size_t>(i)] == 0);
  CHECK(std::memcmp(kept.data(), d.host.data(), 45 * sizeof(float)) == 0);
}

TEST_CASE("Bits of a product depend on the element's own row and column alone") {
  if (!device() || on_fibers) return;
  check_neighbours<Product::nt, bf16, float>();
  check_neighbours<Product::nn, bf16, bf16>();
  check_neighbours<Product::tn, bf16, float>();
  check_neighbours<Product::nt, float, float>();
}

}  // namespace product_test
