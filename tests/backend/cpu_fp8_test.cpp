#include "codes.hpp"

using namespace codes;

namespace {

// The three products as an FP8 policy has them: activations in groups of 1 x tile, weights in
// groups of block x block, and in tn both operands in groups of tile x 1.
struct Sizes {
  Index tile = 128, block = 128;
};

template <Product p, class CA, class CB>
struct Operands {
  Codes<CA> a;
  Codes<CB> b;

  Operands(Index m, Index n, Index k, Sizes sizes, Fill fill)
      : a(operand<CA>(1, m, k, p != Product::tn, {sizes.tile ? 1 : 0, sizes.tile}, 1, fill)),
        b(operand<CB>(1, n, k, p == Product::nt,
                      p == Product::tn ? Groups{sizes.tile ? 1 : 0, sizes.tile}
                                       : Groups{sizes.block, sizes.block},
                      2, fill, true)) {}

  template <class Backend, class TC>
  void multiply(Backend& backend, Out<TC>& c, Output output) const {
    gemm(backend, ProductTag<p>{}, a.matrix(), b.matrix(), c.matrix(), output);
  }
};

template <Product p, class CA, class CB, class TC>
void compare(Cpu& cpu, Index m, Index n, Index k, Sizes sizes, Output output) {
  EigenCpu reference;
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(k);
  CAPTURE(sizes.tile);
  CAPTURE(sizes.block);
  {
    const Operands<p, CA, CB> x(m, n, k, sizes, Fill::any);
    Out<TC> ours(1, m, n), theirs(1, m, n);
    Out<float> bound(1, m, n);
    x.multiply(cpu, ours, output);
    x.multiply(reference, theirs, output);
    Operands<p, CA, CB>(m, n, k, sizes, Fill::positive)
        .multiply(reference, bound, Output::overwrite);
    CHECK(beyond(ours, theirs, bound) == 0);
  }
  {
    const Operands<p, CA, CB> x(m, n, k, sizes, Fill::integers);
    Out<TC> ours(1, m, n), theirs(1, m, n);
    x.multiply(cpu, ours, output);
    x.multiply(reference, theirs, output);
    CHECK(ours == theirs);
  }
}

template <Product p, class CA, class CB, class TC>
void compare_groups() {
  Cpu cpu(2);
  poison(cpu);
  const Sizes all[] = {{128, 128}, {32, 32}, {64, 128}, {256, 128}, {256, 256},
                       {0, 0},     {0, 128}, {128, 0},  {32, 256}};
  for (const Sizes sizes : all)
    for (const Output output : {Output::overwrite, Output::add}) {
      compare<p, CA, CB, TC>(cpu, 7, 33, 300, sizes, output);
      compare<p, CA, CB, TC>(cpu, 29, 260, 129, sizes, output);
      compare<p, CA, CB, TC>(cpu, 1, 1, 1025, sizes, output);
    }
}

template <Product p>
void compare_sizes() {
  Cpu cpu(2);
  poison(cpu);
  for (const Index m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 29, 130})
    for (const Index n : {1, 31, 33, 260})
      for (const Index k : {0, 1, 127, 128, 129, 300, 1025})
        if (k < 1000 || m < 13 || n < 260)
          compare<p, e4m3, e4m3, float>(cpu, m, n, k, {}, Output::overwrite);
}

template <Product p>
void compare_codes() {
  compare_groups<p, e4m3, e4m3, float>();
  compare_groups<p, e4m3, e4m3, bf16>();
  compare_groups<p, e5m2, e4m3, float>();
  compare_groups<p, e4m3, e5m2, bf16>();
}

}  // namespace

TEST_CASE("A product of codes adds scale * scale * (sum of a segment), one segment after another") {
  // Two segments: 128 products of 1 * 2 at scales 0.5 and 4, and one of 3 * 2 at scales 10 and 1.
  std::vector<e4m3> a(129, e4m3(1.0f)), b(129, e4m3(2.0f));
  a[128] = e4m3(3.0f);
  const float a_scale[] = {0.5f, 10}, b_scale[] = {4, 1};
  float c[] = {1000};
  Cpu cpu(1);
  const auto run = [&](auto& backend) {
    c[0] = 1000;
    gemm(backend, nt, Quantized<const e4m3>{{a.data(), {1, 129}}, {a_scale, 1, 2}, 1, 128},
         Quantized<const e4m3>{{b.data(), {1, 129}}, {b_scale, 1, 2}, 128, 128},
         View<float, 2>(c, {1, 1}), Output::add);
    CHECK(c[0] == 1572.0f);  // 1000 + 256 * 2 + 6 * 10
  };
  run(cpu);
  EigenCpu reference;
  run(reference);
}

TEST_CASE(
    "Cpu's products of codes agree with EigenCpu's, whose inner sums are exact, at any size") {
  SUBCASE("nt") { compare_sizes<Product::nt>(); }
  SUBCASE("nn") { compare_sizes<Product::nn>(); }
  SUBCASE("tn") { compare_sizes<Product::tn>(); }
}

TEST_CASE("They agree for every group, code and output; to the bit where partial sums are exact") {
  SUBCASE("nt") { compare_codes<Product::nt>(); }
  SUBCASE("nn") { compare_codes<Product::nn>(); }
  SUBCASE("tn") { compare_codes<Product::tn>(); }
}

TEST_CASE("A product of codes without terms is zero, and adds nothing") {
  Cpu cpu(1);
  poison(cpu);
  const Operands<Product::nt, e4m3, e4m3> x(3, 5, 0, {}, Fill::any);
  Out<float> c(1, 3, 5);
  const Out<float> before = c;
  x.multiply(cpu, c, Output::add);
  CHECK(c == before);
  x.multiply(cpu, c, Output::overwrite);
  for (const float value : c.memory) CHECK(value == 0.0f);
}

TEST_CASE("Codes of double are the numbers themselves") {
  Cpu cpu(2);
  for (const Sizes sizes : {Sizes{}, Sizes{32, 64}, Sizes{0, 0}}) {
    const Operands<Product::nt, double, double> x(29, 70, 300, sizes, Fill::any);
    Out<double> codes(1, 29, 70), plain(1, 29, 70);
    x.multiply(cpu, codes, Output::overwrite);
    gemm(cpu, nt, x.a.matrix().codes, x.b.matrix().codes, plain.matrix(), Output::overwrite);
    double worst = 0;
    for (std::size_t i = 0; i < codes.memory.size(); ++i)
      worst = std::max(worst, std::abs(codes.memory[i] - plain.memory[i]));
    CHECK(worst <= 1e-12);  // 300 products below 1, summed in another order
  }
}

TEST_CASE("EigenCpu's segments end wherever a scale changes") {
  // Groups of 3 and of 2 along 5: segments 0 1 | 2 | 3 | 4.
  const std::vector<e4m3> ones(5, e4m3(1.0f));
  const float a_scale[] = {1, 10}, b_scale[] = {1, 2, 4};
  float c[1];
  EigenCpu backend;
  gemm(backend, nt, Quantized<const e4m3>{{ones.data(), {1, 5}}, {a_scale, 1, 2}, 1, 3},
       Quantized<const e4m3>{{ones.data(), {1, 5}}, {b_scale, 1, 3}, 1, 2},
       View<float, 2>(c, {1, 1}), Output::overwrite);
  CHECK(c[0] == 64.0f);  // 2 * 1 + 1 * 2 + 10 * 2 + 10 * 4
}

// --- The same bits ---

namespace {

// Columns [first, first + count) of a matrix, first being the first column of a group.
template <class C>
Quantized<C> columns(Quantized<C> q, Index first, Index count) {
  q.codes = q.codes.cols(first, count);
  q.scales.data += first / q.group_columns * q.scales.strides[1];
  q.scales.extents[1] = groups_of(count, q.group_columns);
  return q;
}

// Whether `part` holds the rows from `row` and the columns from `column` on of `all`.
template <class T>
bool is_part(const Out<T>& part, const Out<T>& all, Index row, Index column) {
  bool same = true;
  for (Index i = 0; i < part.view.extent(1); ++i)
    same = same && std::memcmp(&part.view(0, i, 0), &all.view(0, row + i, column),
                               static_cast<std::size_t>(part.view.extent(2)) * sizeof(T)) == 0;
  return same;
}

template <Product p, class TC>
void check_bits() {
  constexpr Index m = 411, n = 290, k = 1043;  // several tiles, panels and blocks of K, all ragged
  constexpr ProductTag<p> tag;
  const Operands<p, e4m3, e4m3> x(m, n, k, {}, Fill::any);
  Cpu one(1);
  Out<TC> once(1, m, n);
  x.multiply(one, once, Output::overwrite);
  for (const int threads : {2, 3, 5}) {
    Cpu cpu(threads);
    Out<TC> again(1, m, n);
    x.multiply(cpu, again, Output::overwrite);
    CHECK(again == once);
  }
  const auto a = x.a.matrix(), b = x.b.matrix();
  for (Index rows = 1; rows <= 14; ++rows) {
    const Index first = rows * 31 % (m - rows);
    Out<TC> part(1, rows, n);
    gemm(one, tag, p == Product::tn ? columns(a, first, rows) : a.rows(first, rows), b,
         part.matrix(), Output::overwrite);
    CHECK(is_part(part, once, first, 0));
  }
  for (const Index count : {1, 17, 33}) {
    const Index first = 256;  // the third group of the weights
    Out<TC> part(1, m, count);
    gemm(one, tag, a, p == Product::nt ? b.rows(first, count) : columns(b, first, count),
         part.matrix(), Output::overwrite);
    CHECK(is_part(part, once, 0, first));
  }
}

}  // namespace

TEST_CASE("The bits of a product of codes do not depend on threads, nor on other rows or columns") {
  SUBCASE("nt") { check_bits<Product::nt, float>(); }
  SUBCASE("nn") { check_bits<Product::nn, bf16>(); }
  SUBCASE("tn") { check_bits<Product::tn, float>(); }
}

// --- Errors ---

TEST_CASE("Cpu refuses groups along the sum that its segments cannot follow, before it writes") {
  Cpu cpu(1);
  const auto refuse = [&](Index a_group, Index b_group, const char* message) {
    const auto a = operand<e4m3>(1, 3, 600, true, {1, a_group}, 1, Fill::any);
    const auto b = operand<e4m3>(1, 5, 600, true, {1, b_group}, 2, Fill::any);
    Out<float> c(1, 3, 5);
    const Out<float> before = c;
    CHECK_THROWS_WITH_AS(gemm(cpu, nt, a.matrix(), b.matrix(), c.matrix(), Output::overwrite),
                         message, std::invalid_argument);
    CHECK(c == before);
  };
  refuse(16, 128,
         "gemm: groups along the sum (16) must be a multiple of segments (16), of which 32, 64 and "
         "128 are supported");
  refuse(64, 96,
         "gemm: groups along the sum (96) must be a multiple of segments (64), of which 32, 64 and "
         "128 are supported");
  refuse(96, 96,
         "gemm: groups along the sum (96) must be a multiple of segments (96), of which 32, 64 and "
         "128 are supported");
  refuse(128, 200,
         "gemm: groups along the sum (200) must be a multiple of segments (128), of which 32, 64 "
         "and 128 are supported");
}

TEST_CASE("Groups along the rows and columns of the output may have any size") {
  Cpu cpu(1);
  EigenCpu reference;
  for (const Index rows : {3, 29})
    for (const bool right : {true, false}) {
      const auto a = operand<e4m3>(1, rows, 300, true, {5, 128}, 1, Fill::integers);
      const auto b = operand<e4m3>(1, 290, 300, right, {37, 64}, 2, Fill::integers);
      Out<float> ours(1, rows, 290), theirs(1, rows, 290);
      const auto run = [&](auto& backend, Out<float>& c) {
        if (right)
          gemm(backend, nt, a.matrix(), b.matrix(), c.matrix(), Output::overwrite);
        else
          gemm(backend, nn, a.matrix(), b.matrix(), c.matrix(), Output::overwrite);
      };
      run(cpu, ours);
      run(reference, theirs);
      CHECK(ours == theirs);
    }
}

TEST_CASE("A single group along the sum may have any size") {
  Cpu cpu(1);
  for (const Index k : {1, 16, 96, 200})
    compare<Product::nt, e4m3, e4m3, float>(cpu, 3, 5, k, {0, 0}, Output::overwrite);
}

TEST_CASE("Cpu's products of codes refuse extents that disagree") {
  Cpu cpu(1);
  const Codes<e4m3> a(1, 3, 4, 1, 128, 1, Fill::any), b(1, 5, 6, 128, 128, 2, Fill::any);
  Out<float> c(1, 3, 5);
  CHECK_THROWS_WITH_AS(gemm(cpu, nt, a.matrix(), b.matrix(), c.matrix(), Output::add),
                       "gemm: columns of a (4) must equal columns of b (6)", std::invalid_argument);
  CHECK_THROWS_WITH_AS(gemm(cpu, nn, a.matrix(), b.matrix(), c.matrix(), Output::add),
                       "gemm: columns of b (6) must equal columns of c (5)", std::invalid_argument);
}
