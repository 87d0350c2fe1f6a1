#include <doctest/doctest.h>

#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/core/philox.hpp>
#include <vector>

using namespace dsv3;

namespace {

// Memory of a matrix or a stack of matrices whose rows lie apart; what lies between the rows is not
// a number, and must stay so.
template <class T>
struct Tensor {
  std::vector<T> memory;
  View<T, 3> view;

  Tensor(Index matrices, Index rows, Index columns, std::uint64_t stream, Index gap = 3)
      : memory(static_cast<std::size_t>(matrices * rows * (columns + gap) + gap),
               T(std::numeric_limits<double>::quiet_NaN())) {
    view = View<T, 3>(memory.data() + gap, {matrices, rows, columns});
    view.strides[1] = columns + gap;
    view.strides[0] = rows * (columns + gap);
    const Philox philox(5, stream);
    std::uint64_t n = 0;
    each([&](T& x) { x = T(2 * uniform(philox(n++).word[0]) - 1); });
  }
  void each(auto f) {
    for (Index i = 0; i < view.extent(0); ++i)
      for (Index j = 0; j < view.extent(1); ++j)
        for (Index k = 0; k < view.extent(2); ++k) f(view(i, j, k));
  }
  View<T, 2> matrix(Index i = 0) { return view[i]; }
  bool same_bits(const Tensor& other) const {
    return memory.size() == other.memory.size() &&
           std::memcmp(memory.data(), other.memory.data(), memory.size() * sizeof(T)) == 0;
  }
};

template <Product p, class TA, class TB, class TC>
struct Operands {
  static constexpr bool left = p == Product::tn, right = p == Product::nt;
  Tensor<TA> a;
  Tensor<TB> b;
  Tensor<TC> c;
  Index depth;

  Operands(Index matrices, Index m, Index n, Index k)
      : a(matrices, left ? k : m, left ? m : k, 1),
        b(matrices, right ? n : k, right ? k : n, 2),
        c(matrices, m, n, 3),
        depth(k) {}

  // Elements are below 1: a sum of k products is below k, and summed in other order differs by at
  // most k times k roundings; in practice by far less than sqrt(k) times k, which is asked for.
  // The output's own rounding comes on top, of values below k + 1.
  double tolerance() const {
    const double k = static_cast<double>(depth) + 1;
    const double sum = std::is_same_v<accum_t<TC>, double> ? 0x1p-53 : 0x1p-24;
    const double output = std::is_same_v<TC, bf16> ? 0x1p-8 : 0;
    return 4 * sum * k + 2 * output * std::sqrt(k) * 4;
  }
};

template <class T>
double largest_difference(const Tensor<T>& x, const Tensor<T>& y) {
  double worst = 0;
  for (Index i = 0; i < x.view.extent(0); ++i)
    for (Index j = 0; j < x.view.extent(1); ++j)
      for (Index k = 0; k < x.view.extent(2); ++k) {
        const double d = std::abs(double(x.view(i, j, k)) - double(y.view(i, j, k)));
        worst = d <= worst ? worst : d;  // NaN counts as worst
      }
  return worst;
}

// NaN in every gap of rows.
template <class T>
bool gaps_untouched(Tensor<T>& x) {
  std::size_t numbers = 0;
  for (const T& value : x.memory) numbers += double(value) == double(value);
  return numbers <= static_cast<std::size_t>(x.view.size());
}

template <Product p, class TA, class TB, class TC>
void compare_gemm(Cpu& cpu, Index m, Index n, Index k) {
  EigenCpu reference;
  for (const Output output : {Output::overwrite, Output::add}) {
    Operands<p, TA, TB, TC> ours(1, m, n, k), theirs(1, m, n, k);
    gemm(cpu, ProductTag<p>{}, as_const(ours.a.matrix()), as_const(ours.b.matrix()),
         ours.c.matrix(), output);
    gemm(reference, ProductTag<p>{}, as_const(theirs.a.matrix()), as_const(theirs.b.matrix()),
         theirs.c.matrix(), output);
    INFO(m, " x ", n, " x ", k);
    CHECK(largest_difference(ours.c, theirs.c) <= ours.tolerance());
    CHECK(gaps_untouched(ours.c));
  }
}

template <Product p, class TA, class TB, class TC>
void compare_sizes(Cpu& cpu) {
  for (const Index m : {1, 2, 3, 7, 11, 13, 29})
    for (const Index n : {1, 31, 33})
      for (const Index k : {0, 1, 2, 37}) compare_gemm<p, TA, TB, TC>(cpu, m, n, k);
  // K over several blocks, in every path, and tiles in both directions.
  compare_gemm<p, TA, TB, TC>(cpu, 5, 37, 1025);
  compare_gemm<p, TA, TB, TC>(cpu, 401, 293, 19);
  compare_gemm<p, TA, TB, TC>(cpu, 61, 70, 513);
}

template <class TA, class TB, class TC>
void compare_products() {
  Cpu cpu(2);
  compare_sizes<Product::nt, TA, TB, TC>(cpu);
  compare_sizes<Product::nn, TA, TB, TC>(cpu);
  compare_sizes<Product::tn, TA, TB, TC>(cpu);
}

TEST_CASE("Cpu's gemm agrees with EigenCpu's") {
  SUBCASE("in double") { compare_products<double, double, double>(); }
  SUBCASE("in float") { compare_products<float, float, float>(); }
  SUBCASE("in bf16") { compare_products<bf16, bf16, bf16>(); }
  SUBCASE("from bf16 to float") { compare_products<bf16, bf16, float>(); }
  SUBCASE("from float and bf16 to float") { compare_products<float, bf16, float>(); }
  SUBCASE("from bf16 and float to float") { compare_products<bf16, float, float>(); }
}

TEST_CASE("a bf16 product is the float sum rounded once") {
  Cpu cpu(1);
  constexpr Index m = 17, n = 45, k = 1300;  // K over several blocks: no rounding between them
  Operands<Product::nt, bf16, bf16, float> wide(1, m, n, k);
  Operands<Product::nt, bf16, bf16, bf16> narrow(1, m, n, k);
  gemm(cpu, nt, as_const(wide.a.matrix()), as_const(wide.b.matrix()), wide.c.matrix(),
       Output::overwrite);
  gemm(cpu, nt, as_const(narrow.a.matrix()), as_const(narrow.b.matrix()), narrow.c.matrix(),
       Output::overwrite);
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < n; ++j)
      CHECK(narrow.c.view(0, i, j).bits == bf16(wide.c.view(0, i, j)).bits);
}

TEST_CASE("rounding to bf16 in rows equals bf16(float) for special values") {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> x = {0.0f, -0.0f, infinity, -infinity, nan, -nan, 0x1p-140f, 3.4e38f};
  const Philox philox(1, 1);
  for (std::uint64_t i = 0; i < 1000; ++i)
    x.push_back(__builtin_bit_cast(float, philox(i).word[0]));
  std::vector<bf16> y(x.size());
  detail::narrow_row(x.data(), y.data(), static_cast<Index>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(y[i].bits == bf16(x[i]).bits);
}

template <Product p, class T, class TC>
void compare_batched() {
  Cpu cpu(2);
  EigenCpu reference;
  for (const Output output : {Output::overwrite, Output::add}) {
    Operands<p, T, T, TC> ours(5, 19, 35, 67), theirs(5, 19, 35, 67);
    batched_gemm(cpu, ProductTag<p>{}, as_const(ours.a.view), as_const(ours.b.view), ours.c.view,
                 output);
    batched_gemm(reference, ProductTag<p>{}, as_const(theirs.a.view), as_const(theirs.b.view),
                 theirs.c.view, output);
    CHECK(largest_difference(ours.c, theirs.c) <= ours.tolerance());
    CHECK(gaps_untouched(ours.c));
  }
}

TEST_CASE("Cpu's batched_gemm agrees with EigenCpu's") {
  SUBCASE("nt") { compare_batched<Product::nt, float, float>(); }
  SUBCASE("nn") { compare_batched<Product::nn, bf16, bf16>(); }
  SUBCASE("tn") { compare_batched<Product::tn, double, double>(); }
}

template <Product p, class T, class TC>
void compare_grouped(std::vector<Index> offsets) {
  Cpu cpu(2);
  EigenCpu reference;
  constexpr bool per_group = p == Product::tn;
  const Index experts = static_cast<Index>(offsets.size()) - 1, rows = offsets.back();
  constexpr Index n = 37, k = 41;
  const View<const Index, 1> at(offsets.data(), {experts + 1});
  for (const Output output : {Output::overwrite, Output::add}) {
    Tensor<T> a(1, rows, k, 1);
    Tensor<T> b(per_group ? 1 : experts, per_group ? rows : (p == Product::nt ? n : k),
                per_group ? n : (p == Product::nt ? k : n), 2);
    Tensor<TC> ours(per_group ? experts : 1, per_group ? k : rows, n, 3), theirs(ours);
    theirs.view.data = theirs.memory.data() + (ours.view.data - ours.memory.data());
    if constexpr (per_group) {
      grouped_gemm(cpu, ProductTag<p>{}, as_const(a.matrix()), as_const(b.matrix()), ours.view, at,
                   output);
      grouped_gemm(reference, ProductTag<p>{}, as_const(a.matrix()), as_const(b.matrix()),
                   theirs.view, at, output);
    } else {
      grouped_gemm(cpu, ProductTag<p>{}, as_const(a.matrix()), as_const(b.view), ours.matrix(), at,
                   output);
      grouped_gemm(reference, ProductTag<p>{}, as_const(a.matrix()), as_const(b.view),
                   theirs.matrix(), at, output);
    }
    const double k_sum = per_group ? static_cast<double>(rows) + 1 : static_cast<double>(k) + 1;
    const double sum = std::is_same_v<TC, double> ? 0x1p-53 : 0x1p-24;
    const double output_rounding = std::is_same_v<TC, bf16> ? 0x1p-8 : 0;
    CHECK(largest_difference(ours, theirs) <=
          4 * sum * k_sum + 8 * output_rounding * std::sqrt(k_sum));
    CHECK(gaps_untouched(ours));
  }
}

template <Product p>
void compare_grouped_types(const std::vector<Index>& offsets) {
  compare_grouped<p, double, double>(offsets);
  compare_grouped<p, float, float>(offsets);
  compare_grouped<p, bf16, bf16>(offsets);
  compare_grouped<p, bf16, float>(offsets);
}

TEST_CASE("Cpu's grouped_gemm agrees with EigenCpu's") {
  const std::vector<Index> ragged = {0, 0, 1, 14, 14, 417, 430, 430};  // the first and last empty
  const std::vector<Index> one = {0, 0, 0, 90};                        // all rows on one expert
  for (const auto& offsets : {ragged, one}) {
    compare_grouped_types<Product::nt>(offsets);
    compare_grouped_types<Product::nn>(offsets);
    compare_grouped_types<Product::tn>(offsets);
  }
}

TEST_CASE("a product without terms is zero, and adds nothing") {
  Cpu cpu(1);
  Tensor<float> a(1, 3, 0, 1), b(1, 5, 0, 2), c(1, 3, 5, 3);
  const Tensor<float> before = c;
  gemm(cpu, nt, as_const(a.matrix()), as_const(b.matrix()), c.matrix(), Output::add);
  CHECK(c.same_bits(before));
  gemm(cpu, nt, as_const(a.matrix()), as_const(b.matrix()), c.matrix(), Output::overwrite);
  c.each([](float x) { CHECK(x == 0.0f); });
}

TEST_CASE("Cpu's products refuse extents that disagree, before they write") {
  Cpu cpu(1);
  Tensor<float> a(1, 3, 4, 1), b(1, 5, 6, 2), c(1, 3, 5, 3);
  const Tensor<float> before = c;
  CHECK_THROWS_WITH_AS(
      gemm(cpu, nt, as_const(a.matrix()), as_const(b.matrix()), c.matrix(), Output::add),
      "gemm: columns of a (4) must equal columns of b (6)", std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      gemm(cpu, nn, as_const(a.matrix()), as_const(b.matrix()), c.matrix(), Output::add),
      "gemm: columns of b (6) must equal columns of c (5)", std::invalid_argument);
  Tensor<float> a3(2, 3, 4, 1), b3(3, 5, 4, 2), c3(2, 3, 5, 3);
  CHECK_THROWS_WITH_AS(
      batched_gemm(cpu, nt, as_const(a3.view), as_const(b3.view), c3.view, Output::add),
      "batched_gemm: batch of b (3) must equal batch of c (2)", std::invalid_argument);
  const std::vector<Index> offsets = {0, 3};
  CHECK_THROWS_WITH_AS(grouped_gemm(cpu, nt, as_const(a.matrix()), as_const(b3.view), c.matrix(),
                                    View<const Index, 1>(offsets.data(), {2}), Output::add),
                       "grouped_gemm: matrices of b (3) must equal experts (1)",
                       std::invalid_argument);
  CHECK(c.same_bits(before));
}

// --- The same bits ---

template <Product p, class T, class TC>
void check_bits() {
  constexpr Index m = 411, n = 290, k = 1043;  // several tiles, panels and blocks of K, all ragged
  Operands<p, T, T, TC> once(1, m, n, k);
  Cpu one(1);
  gemm(one, ProductTag<p>{}, as_const(once.a.matrix()), as_const(once.b.matrix()), once.c.matrix(),
       Output::overwrite);
  for (const int threads : {1, 2, 3, 5}) {  // 1: a run and its repetition
    Cpu cpu(threads);
    Operands<p, T, T, TC> again(1, m, n, k);
    gemm(cpu, ProductTag<p>{}, as_const(again.a.matrix()), as_const(again.b.matrix()),
         again.c.matrix(), Output::overwrite);
    CHECK(again.c.same_bits(once.c));
  }
  // Rows alone, in blocks of every size up to past a tile of registers, starting anywhere.
  for (Index rows = 1; rows <= 14; ++rows) {
    const Index first = (rows * 31) % (m - rows);
    Tensor<TC> part(1, rows, n, 4);
    View<const T, 2> a = as_const(once.a.matrix());
    a = p == Product::tn ? a.cols(first, rows) : a.rows(first, rows);
    gemm(one, ProductTag<p>{}, a, as_const(once.b.matrix()), part.matrix(), Output::overwrite);
    Index different = 0;
    for (Index i = 0; i < rows; ++i)
      different += std::memcmp(&part.view(0, i, 0), &once.c.view(0, first + i, 0),
                               static_cast<std::size_t>(n) * sizeof(TC)) != 0;
    CHECK(different == 0);
  }
  // Columns alone.
  for (const Index columns : {1, 17, 33}) {
    const Index first = (columns * 31) % (n - columns);
    Tensor<TC> part(1, m, columns, 4);
    View<const T, 2> b = as_const(once.b.matrix());
    b = p == Product::nt ? b.rows(first, columns) : b.cols(first, columns);
    gemm(one, ProductTag<p>{}, as_const(once.a.matrix()), b, part.matrix(), Output::overwrite);
    Index different = 0;
    for (Index i = 0; i < m; ++i)
      different += std::memcmp(&part.view(0, i, 0), &once.c.view(0, i, first),
                               static_cast<std::size_t>(columns) * sizeof(TC)) != 0;
    CHECK(different == 0);
  }
}

template <class T, class TC>
void check_bits_of_products() {
  check_bits<Product::nt, T, TC>();
  check_bits<Product::nn, T, TC>();
  check_bits<Product::tn, T, TC>();
}

TEST_CASE("the bits of a product depend on K only: not on threads, rows, columns or position") {
  SUBCASE("double") { check_bits_of_products<double, double>(); }
  SUBCASE("float") { check_bits_of_products<float, float>(); }
  SUBCASE("bf16") { check_bits_of_products<bf16, bf16>(); }
  SUBCASE("bf16 to float") { check_bits_of_products<bf16, float>(); }
}

TEST_CASE("an expert's rows have the bits that they have alone") {
  const std::vector<Index> offsets = {0, 13, 13, 402, 411};
  Tensor<float> a(1, 411, 300, 1), b(4, 50, 300, 2), c(1, 411, 50, 3);
  Cpu cpu(3), one(1);
  grouped_gemm(cpu, nt, as_const(a.matrix()), as_const(b.view), c.matrix(),
               View<const Index, 1>(offsets.data(), {5}), Output::overwrite);
  for (Index e = 0; e < 4; ++e)
    for (Index row = offsets[static_cast<std::size_t>(e)];
         row < offsets[static_cast<std::size_t>(e) + 1]; row += 7) {
      Tensor<float> alone(1, 1, 50, 4);
      gemm(one, nt, as_const(a.matrix().rows(row, 1)), as_const(b.matrix(e)), alone.matrix(),
           Output::overwrite);
      CHECK(std::memcmp(&alone.view(0, 0, 0), &c.view(0, row, 0), 50 * sizeof(float)) == 0);
    }
}

TEST_CASE("for_each_row calls the body once for every row") {
  for (const int threads : {1, 2, 5}) {
    Cpu cpu(threads);
    for (const Index rows : {0, 1, 7, 1000}) {
      std::vector<int> calls(static_cast<std::size_t>(rows), 0);
      for_each_row(cpu, rows, [&](auto, Index row) { ++calls[static_cast<std::size_t>(row)]; });
      for (const int n : calls) CHECK(n == 1);
    }
  }
}

TEST_CASE("Cpu owns a workspace of the size it states, one part for each thread") {
  Cpu cpu(3);
  CHECK(cpu.threads() == 3);
  static_assert(Cpu::workspace_bytes(3) == 3 * Cpu::workspace_bytes(1));
  CHECK(cpu.workspace(2) - cpu.workspace(0) == Cpu::workspace_bytes(2));
  CHECK(reinterpret_cast<std::uintptr_t>(cpu.workspace(1)) % 64 == 0);
}

TEST_CASE("Cpu refuses a number of threads that it cannot have") {
  CHECK_THROWS_WITH_AS(Cpu(0), "Cpu: one (1) must be at most threads (0)", std::invalid_argument);
  CHECK_THROWS_WITH_AS(Cpu(5000), "Cpu: threads (5000) must be at most max_threads (4096)",
                       std::invalid_argument);
}

TEST_CASE("cpu_features names a path that this machine runs") {
  const CpuFeatures here = cpu_features();
  CHECK_NOTHROW(require(here));
  INFO(here.compiled, " of ", here.best());
#if defined(__AVX512BF16__)
  CHECK(here.compiled == "avx512_bf16");
#elif defined(__AVX512F__)
  CHECK(here.compiled == "avx512");
#elif defined(__AVX2__)
  CHECK(here.compiled == "avx2");
#else
  CHECK(here.compiled == "plain");
#endif
}

TEST_CASE("a program that needs more than the processor has says so") {
  CpuFeatures poor;
  poor.compiled = "avx512_bf16";
  poor.avx2 = true;
  CHECK_THROWS_WITH_AS(
      require(poor),
      "Cpu: this program was compiled for avx512_bf16, but the best path that this processor can "
      "run is avx2: compile it on this machine with -march=native, or without -march for any "
      "x86-64",
      std::runtime_error);
  poor.compiled = "plain";
  CHECK_NOTHROW(require(poor));
}

}  // namespace
