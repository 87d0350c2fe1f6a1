#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/projection.hpp>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

// A matrix of codes in groups of down x across.
struct Matrix {
  Index rows, columns, down, across;
  std::vector<e4m3> codes;
  std::vector<float> scales;

  Matrix(Index r, Index c, Index group_rows, Index group_columns)
      : rows(r),
        columns(c),
        down(group_size(group_rows, r)),
        across(group_size(group_columns, c)),
        codes(static_cast<std::size_t>(r * c), e4m3(1.0f)),
        scales(static_cast<std::size_t>(groups_of(r, down) * groups_of(c, across)), 1.0f) {}

  e4m3& operator()(Index i, Index j) { return codes[static_cast<std::size_t>(i * columns + j)]; }
  Quantized<const e4m3> view() const {
    return {{codes.data(), {rows, columns}},
            {scales.data(), groups_of(rows, down), groups_of(columns, across)},
            down,
            across};
  }
  Matrix transposed() const {
    Matrix t(columns, rows, across, down);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) t(j, i) = view().codes(i, j);
    const Index n = groups_of(rows, down), m = groups_of(columns, across);
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < m; ++j)
        t.scales[static_cast<std::size_t>(j * n + i)] = view().scales(i, j);
    return t;
  }
};

// Values in [low, high), and scales in [1, 2).
Matrix random(Index rows, Index columns, Index down, Index across, std::uint64_t stream, double low,
              double high) {
  Matrix x(rows, columns, down, across);
  const Philox philox(12, stream);
  std::uint64_t at = 0;
  for (auto& code : x.codes)
    code = e4m3(static_cast<float>(low + (high - low) * uniform(philox(at++).word[0])));
  for (auto& scale : x.scales) scale = static_cast<float>(1 + uniform(philox(at++).word[0]));
  return x;
}

// sum_k a[k] b[k], of values that codes hold, at scale 1.
float emulated(std::vector<float> a, std::vector<float> b, Accumulation rule) {
  const auto n = static_cast<Index>(a.size());
  Matrix left(1, n, 1, 0), right(1, n, 1, 0);
  for (Index k = 0; k < n; ++k) {
    left(0, k) = e4m3(a[static_cast<std::size_t>(k)]);
    right(0, k) = e4m3(b[static_cast<std::size_t>(k)]);
  }
  float c = 0;
  EigenCpu backend;
  Memory memory;
  emulated_gemm(backend, nt, left.view(), right.view(), View<float, 2>(&c, {1, 1}),
                Output::overwrite, rule, memory.arena);
  return c;
}

float sum_of(std::vector<float> values, Accumulation rule) {
  return emulated(values, std::vector<float>(values.size(), 1.0f), rule);
}

// One value, then others up to 32 or 64.
std::vector<float> values(float first, float others, std::size_t n) {
  std::vector<float> x(n, others);
  x[0] = first;
  return x;
}

}  // namespace

TEST_CASE("Each product is cut off where the largest has its last bit") {
  // Four bits of 16 end at 2, five at 1: a product of 1 is lost, or is not, and 31 are too.
  CHECK(sum_of({16, 1}, {4, 0}) == 16.0f);
  CHECK(sum_of({16, 1}, {5, 0}) == 17.0f);
  CHECK(sum_of(values(16, 1, 32), {4, 0}) == 16.0f);
  CHECK(sum_of({16, 3}, {4, 0}) == 18.0f);   // 3 is cut to 2
  CHECK(sum_of({16, -3}, {4, 0}) == 14.0f);  // towards zero
  CHECK(sum_of({-16, -1}, {4, 0}) == -16.0f);
  CHECK(emulated({4, 0.5f}, {4, 2}, {4, 0}) == 16.0f);  // it is products that count
}

TEST_CASE("The sum of 32 products is cut to the same number of bits") {
  CHECK(sum_of({15, 15}, {4, 0}) == 30.0f);      // 11110
  CHECK(sum_of({15, 15, 15}, {4, 0}) == 44.0f);  // 101101: 45 is cut to 101100
  // 31 * 448^2 + 7/8 has 24 bits down to 1/2; it is cut, not rounded to the nearest.
  CHECK(emulated(values(0.875f, 448, 32), values(1, 448, 32), {24, 0}) == 31 * 448 * 448 + 0.5f);
}

TEST_CASE("The accumulator is aligned with the next 32 products, until it is promoted") {
  const auto x = values(16, 0, 32), y = values(1, 1, 32);
  auto both = x;
  both.insert(both.end(), y.begin(), y.end());
  CHECK(sum_of(both, {4, 0}) == 16.0f);   // each of 32 ones is lost beside 16
  CHECK(sum_of(both, {5, 0}) == 48.0f);   // none is: 16 + 32 = 110000
  CHECK(sum_of(both, {4, 32}) == 48.0f);  // 16, then 32 by themselves, added in float
  CHECK(sum_of(both, {4, 64}) == 16.0f);
}

TEST_CASE("Where the scale changes the accumulator goes on in units of the new one") {
  Matrix a(1, 64, 1, 32), b(1, 64, 1, 0);
  a.scales = {1, 2};
  EigenCpu backend;
  Memory memory;
  float c[] = {5};
  const auto run = [&](Accumulation rule, Output output) {
    emulated_gemm(backend, nt, a.view(), b.view(), View<float, 2>(c, {1, 1}), output, rule,
                  memory.arena);
  };
  run({6, 0}, Output::add);
  CHECK(c[0] == 101.0f);  // 5 + (32 / 2 + 32) * 2
  run({4, 0}, Output::overwrite);
  CHECK(c[0] == 32.0f);  // the ones are lost beside 16
  a(0, 32) = e4m3(256.0f);
  run({4, 0}, Output::overwrite);
  CHECK(c[0] == 512.0f);  // 32 is 16 units of 2, half the last bit of 256; the ones are lost too
  run({4, 32}, Output::overwrite);
  CHECK(c[0] == 544.0f);  // 32, then 256 * 2
}

TEST_CASE("With 24 bits and promotion at 128 it is the plain product, where sums are exact") {
  Cpu backend(2);
  Memory memory(Index{1} << 23);
  const auto whole = [](Matrix x) {
    for (auto& code : x.codes) code = e4m3(std::floor(float(code)));
    return x;
  };
  for (const Index depth : {0, 1, 31, 128, 129, 300, 1025}) {
    const Matrix a = whole(random(7, depth, 1, 128, 1, -8, 9));
    const Matrix b = whole(random(33, depth, 128, 128, 2, -8, 9));
    const Matrix at = a.transposed(), bt = b.transposed();
    const auto plain = memory.empty<float>({7, 33}), c = memory.empty<float>({7, 33});
    gemm(backend, nt, a.view(), b.view(), plain, Output::overwrite);
    const auto check = [&](auto product, const Matrix& x, const Matrix& y) {
      emulated_gemm(backend, product, x.view(), y.view(), c, Output::overwrite, {24, 128},
                    memory.arena);
      CHECK(same_bits(c, plain));
    };
    check(nt, a, b);
    check(nn, a, bt);
    check(tn, at, bt);
  }
}

TEST_CASE("Promotion bounds the error of 14 bits: 4096 products of positive numbers") {
  // Spec 7.4 has 7.5 % without promotion, 0.6 % at 512 and 0.06 % at 128.
  Cpu backend(2);
  Memory memory;
  constexpr Index m = 16, n = 32, depth = 4096;
  const Matrix a = random(m, depth, 0, 0, 3, 0, 448), b = random(n, depth, 0, 0, 4, 0, 448);
  const auto c = memory.empty<float>({m, n});
  double before = 1;
  for (const Index interval : {0, 512, 256, 128, 64, 32}) {
    emulated_gemm(backend, nt, a.view(), b.view(), c, Output::overwrite, {14, interval},
                  memory.arena);
    double error = 0, norm = 0;
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) {
        double exact = 0;
        for (Index k = 0; k < depth; ++k)
          exact += double(float(a.view().codes(i, k))) * double(float(b.view().codes(j, k)));
        exact *= double(a.scales[0] * b.scales[0]);
        CHECK(c(i, j) <= exact * (1 + 0x1p-22));  // what is cut off is missing
        error += std::abs(exact - double(c(i, j)));
        norm += exact;
      }
    const double relative = error / norm;
    MESSAGE("N_C = ", interval, ": relative error ", relative);
    CHECK(relative < before);
    before = relative;
    if (interval == 0) CHECK(relative >= 0.05);
    if (interval == 128) CHECK(relative <= 0.003);
  }
}

// --- One rule for every form of the product ---

namespace {

constexpr Index rows = 398, n = 37, depth = 161;
const std::vector<Index> offsets = {0, 0, 1, 128, 128, 256, 385, 398, 398};
const View<const Index, 1> at(offsets.data(), {9});
const Accumulation rules[] = {{14, 0}, {14, 64}, {10, 128}};

// Matrices of n x depth, one for each expert.
struct Stack {
  std::vector<Matrix> experts;
  std::vector<e4m3> codes;
  std::vector<float> scales;

  explicit Stack(bool transposed, Index block) {
    for (Index e = 0; e < 8; ++e) {
      const Matrix one = random(n, depth, block, block, 30 + static_cast<std::uint64_t>(e), -9, 9);
      experts.push_back(transposed ? one.transposed() : one);
      codes.insert(codes.end(), experts.back().codes.begin(), experts.back().codes.end());
      scales.insert(scales.end(), experts.back().scales.begin(), experts.back().scales.end());
    }
  }
  QuantizedStack<const e4m3> view() const {
    const Matrix& x = experts[0];
    return {{codes.data(), {8, x.rows, x.columns}},
            {scales.data(), 8 * groups_of(x.rows, x.down), groups_of(x.columns, x.across)},
            x.down,
            x.across};
  }
};

}  // namespace

TEST_CASE("Transposed operands give the same bits, on Cpu and on EigenCpu") {
  Memory memory(Index{1} << 23);
  Cpu cpu(3);
  EigenCpu reference;
  const auto first = memory.empty<bf16>({29, n}), c = memory.empty<bf16>({29, n});
  for (const Index tile : {32, 128, 0})
    for (const Accumulation& rule : rules) {
      const Matrix a = random(29, depth, tile ? 1 : 0, tile, 5, -9, 9);
      const Matrix b = random(n, depth, tile, tile, 6, -9, 9);
      const Matrix ta = a.transposed(), tb = b.transposed();
      const auto run = [&](auto& backend, auto product, const Matrix& x, const Matrix& y,
                           View<bf16, 2> out) {
        emulated_gemm(backend, product, x.view(), y.view(), out, Output::overwrite, rule,
                      memory.arena);
      };
      run(reference, nt, a, b, first);
      const auto check = [&](auto& backend) {
        run(backend, nt, a, b, c);
        CHECK(same_bits(c, first));
        run(backend, nn, a, tb, c);
        CHECK(same_bits(c, first));
        run(backend, tn, ta, tb, c);
        CHECK(same_bits(c, first));
      };
      check(cpu);
      check(reference);
    }
}

TEST_CASE_TEMPLATE("Grouped forms give each expert the bits of its own product", Backend, Cpu,
                   EigenCpu) {
  Memory memory(Index{1} << 24);
  Backend backend;
  const auto c = memory.empty<float>({rows, n}), alone = memory.empty<float>({rows, n});
  for (const Index tile : {64, 128, 0})
    for (const Accumulation& rule : rules) {
      const Matrix a = random(rows, depth, tile ? 1 : 0, tile, 7, -9, 9);
      const Stack stack(false, tile), transposed(true, tile);
      const auto check = [&](auto product, const Stack& b) {
        emulated_grouped_gemm(backend, product, a.view(), b.view(), c, at, Output::overwrite, rule,
                              memory.arena);
        for (Index e = 0; e < 8; ++e)
          emulated_gemm(backend, product, a.view().rows(at(e), at(e + 1) - at(e)),
                        b.experts[static_cast<std::size_t>(e)].view(),
                        alone.rows(at(e), at(e + 1) - at(e)), Output::overwrite, rule,
                        memory.arena);
        CHECK(same_bits(c, alone));
      };
      check(nt, stack);
      const std::vector<float> before(c.data, c.data + c.size());
      check(nn, transposed);
      CHECK(std::memcmp(before.data(), c.data, before.size() * sizeof(float)) == 0);
    }
}

TEST_CASE_TEMPLATE("Sums over the tokens of an expert have the bits of its tokens alone", Backend,
                   Cpu, EigenCpu) {
  Memory memory(Index{1} << 24);
  Backend backend;
  for (const Index tile : {64, 128, 0})
    for (const Accumulation& rule : rules) {
      // A scale for each group of each segment.
      const Index groups = tile ? rows / tile + 8 : 1;
      const auto make = [&](Index columns, std::uint64_t stream) {
        Matrix x = random(rows, columns, tile, tile ? 1 : 0, stream, -9, 9);
        x.scales = random(groups, tile ? columns : 1, 1, 1, stream + 1, 0, 1).scales;
        return x;
      };
      const Matrix a = make(11, 8), b = make(n, 10);
      const auto view = [&](const Matrix& x) {
        auto q = x.view();
        q.scales = {x.scales.data(), groups, tile ? x.columns : 1};
        return q;
      };
      const auto c = memory.zeros<float>({8, 11, n}), alone = memory.zeros<float>({8, 11, n});
      for (int twice = 0; twice < 2; ++twice)
        emulated_grouped_gemm(backend, tn, view(a), view(b), c, at, Output::add, rule,
                              memory.arena);
      for (Index e = 0; e < 8; ++e)
        for (int twice = 0; twice < 2; ++twice)
          emulated_gemm(backend, tn, view(a).segment(e, at(e), at(e + 1) - at(e)),
                        view(b).segment(e, at(e), at(e + 1) - at(e)), alone[e], Output::add, rule,
                        memory.arena);
      CHECK(same_bits(c, alone));
    }
}

TEST_CASE("Emulated products refuse extents that disagree") {
  EigenCpu backend;
  Memory memory;
  const Matrix a(3, 4, 1, 128), b(5, 6, 128, 128);
  const auto c = memory.empty<float>({3, 5});
  CHECK_THROWS_WITH_AS(
      emulated_gemm(backend, nt, a.view(), b.view(), c, Output::overwrite, {14, 128}, memory.arena),
      "emulated_gemm: columns of a (4) must equal columns of b (6)", std::invalid_argument);
  const Stack stack(false, 128);
  const Matrix x = random(rows, depth, 1, 128, 7, -9, 9);
  const auto y = memory.empty<float>({rows, n});
  CHECK_THROWS_WITH_AS(emulated_grouped_gemm(backend, nt, x.view(), stack.view(), y,
                                             View<const Index, 1>(offsets.data(), {8}),
                                             Output::overwrite, {14, 128}, memory.arena),
                       "emulated_grouped_gemm: matrices of b (8) must equal experts (7)",
                       std::invalid_argument);
}
