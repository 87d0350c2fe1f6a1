#include <doctest/doctest.h>

#include <cstring>
#include <dsv3/backend/cpu.hpp>
#include <dsv3/core/philox.hpp>
#include <string>
#include <vector>

using namespace dsv3;

namespace {

// Every kind of row and column: none, one, fewer than a panel, panels and a rest; sums of one block
// of K, of several, and of lengths that are not whole units.
constexpr Index row_counts[] = {1, 7, 16, 31, 32, 33, 96, 300};
constexpr Index depths[] = {1, 2, 3, 4, 64, 66, 127, 128, 512, 516, 1300};
constexpr Index batches[] = {0, 1, 2, 3, 5, 8, 9, 13, 400};

template <class T>
std::vector<T> random_elements(Index n, std::uint64_t stream) {
  const Philox philox(11, stream);
  std::vector<T> all;
  for (Index i = 0; i < n; ++i) {
    const auto word = philox(static_cast<std::uint64_t>(i)).word[0];
    all.push_back(T(static_cast<float>(2 * uniform(word) - 1)));
  }
  return all;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// A stack of weights, as they lie and arranged.
template <class T>
struct Weights {
  Index experts, rows, columns;
  std::vector<T> plain, arranged;

  Weights(Cpu& cpu, Index e, Index n, Index k)
      : experts(e), rows(n), columns(k), plain(random_elements<T>(e * n * k, 1)), arranged(plain) {
    for (Index i = 0; i < experts; ++i)
      arrange(cpu, View<T, 2>(arranged.data() + i * n * k, {rows, columns}));
  }
  View<const T, 3> stack() const { return {plain.data(), {experts, rows, columns}}; }
  Arranged<View<const T, 3>> arranged_stack() const {
    return {{arranged.data(), {experts, rows, columns}},
            arranged_order(static_cast<Cpu*>(nullptr))};
  }
};

template <class T, class TC>
void compare_plain(int threads) {
  Cpu cpu(threads);
  for (const Index n : row_counts)
    for (const Index k : depths) {
      const Weights<T> w(cpu, 1, n, k);
      for (const Index m : batches) {
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(k);
        const auto x = random_elements<T>(m * k, 2);
        std::vector<TC> expected = random_elements<TC>(m * n, 3), ours = expected;
        const View<const T, 2> a(x.data(), {m, k});
        for (const Output output : {Output::overwrite, Output::add}) {
          gemm(cpu, nt, a, w.stack()[0], View<TC, 2>(expected.data(), {m, n}), output);
          gemm(cpu, nt, a, w.arranged_stack()[0], View<TC, 2>(ours.data(), {m, n}), output);
          CHECK(same_bits(expected, ours));
        }
      }
    }
}

// Codes in groups of 1 x 128 by weights in blocks of 128 x 128.
template <class C>
struct CodeWeights : Weights<C> {
  std::vector<float> scales;
  CodeWeights(Cpu& cpu, Index e, Index n, Index k)
      : Weights<C>(cpu, e, n, k),
        scales(random_elements<float>(e * groups_of(n, 128) * groups_of(k, 128), 4)) {}
  QuantizedStack<const C> codes(View<const C, 3> view) const {
    return {view,
            Scales<const float>(scales.data(), this->experts * groups_of(this->rows, 128),
                                groups_of(this->columns, 128)),
            128, 128};
  }
};

template <class C>
void compare_codes(int threads) {
  Cpu cpu(threads);
  const int order = arranged_order(&cpu);
  for (const Index n : row_counts)
    for (const Index k : depths) {
      const CodeWeights<C> w(cpu, 1, n, k);
      const auto plain = w.codes(w.stack())[0], arranged = w.codes(w.arranged_stack().matrix)[0];
      for (const Index m : batches) {
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(k);
        const auto x = random_elements<C>(m * k, 2);
        const auto s = random_elements<float>(m * groups_of(k, 128), 5);
        const Quantized<const C> a(View<const C, 2>(x.data(), {m, k}),
                                   Scales<const float>(s.data(), m, groups_of(k, 128)), 1, 128);
        std::vector<bf16> expected = random_elements<bf16>(m * n, 3), ours = expected;
        for (const Output output : {Output::overwrite, Output::add}) {
          gemm(cpu, nt, a, plain, View<bf16, 2>(expected.data(), {m, n}), output);
          gemm(cpu, nt, a, Arranged<Quantized<const C>>{arranged, order},
               View<bf16, 2>(ours.data(), {m, n}), output);
          CHECK(same_bits(expected, ours));
        }
      }
    }
}

}  // namespace

TEST_CASE("A product by an arranged weight has the bits of the product by its rows") {
  SUBCASE("float") { compare_plain<float, float>(1); }
  SUBCASE("bf16") { compare_plain<bf16, bf16>(1); }
  SUBCASE("bf16, sums in float, two threads") { compare_plain<bf16, float>(2); }
  SUBCASE("e4m3") { compare_codes<e4m3>(1); }
  SUBCASE("e5m2, two threads") { compare_codes<e5m2>(2); }
}

TEST_CASE("Experts read their own arranged weight") {
  Cpu cpu(2);
  const Index n = 70, k = 132, offsets_of[] = {0, 3, 3, 20, 21};
  const View<const Index, 1> offsets(offsets_of, {5});
  const Index m = offsets_of[4];
  SUBCASE("plain") {
    const Weights<bf16> w(cpu, 4, n, k);
    const auto x = random_elements<bf16>(m * k, 2);
    std::vector<bf16> expected(static_cast<std::size_t>(m * n)), ours = expected;
    const View<const bf16, 2> a(x.data(), {m, k});
    grouped_gemm(cpu, nt, a, w.stack(), View<bf16, 2>(expected.data(), {m, n}), offsets,
                 Output::overwrite);
    grouped_gemm(cpu, nt, a, w.arranged_stack(), View<bf16, 2>(ours.data(), {m, n}), offsets,
                 Output::overwrite);
    CHECK(same_bits(expected, ours));
  }
  SUBCASE("codes") {
    const CodeWeights<e4m3> w(cpu, 4, n, k);
    const auto x = random_elements<e4m3>(m * k, 2);
    const auto s = random_elements<float>(m * 2, 5);
    std::vector<bf16> expected(static_cast<std::size_t>(m * n)), ours = expected;
    const Quantized<const e4m3> a(View<const e4m3, 2>(x.data(), {m, k}),
                                  Scales<const float>(s.data(), m, 2), 1, 128);
    grouped_gemm(cpu, nt, a, w.codes(w.stack()), View<bf16, 2>(expected.data(), {m, n}), offsets,
                 Output::overwrite);
    const Arranged<QuantizedStack<const e4m3>> b{w.codes(w.arranged_stack().matrix),
                                                 arranged_order(&cpu)};
    grouped_gemm(cpu, nt, a, b, View<bf16, 2>(ours.data(), {m, n}), offsets, Output::overwrite);
    CHECK(same_bits(expected, ours));
  }
}

TEST_CASE("Bands are arranged as the whole weight is") {
  Cpu cpu(2);
  const Index n = 150, k = 68;
  const Weights<bf16> w(cpu, 1, n, k);
  std::vector<bf16> bands = w.plain;
  for (Index first = 0; first < n; first += 64) {
    const Index count = std::min<Index>(64, n - first);
    arrange(cpu, View<bf16, 2>(bands.data() + first * k, {count, k}));
  }
  CHECK(same_bits(bands, w.arranged));
}

TEST_CASE("What would be read wrongly is refused") {
  Cpu cpu(1);
  std::vector<float> memory(64 * 40), x(8), y(64);
  View<float, 2> gaps(memory.data(), {64, 8});
  gaps.strides[0] = 40;
  std::string message;
  try {
    arrange(cpu, gaps);
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  CHECK(message == "arrange: stride of rows (40) must equal columns (8)");
  const Arranged<View<const float, 2>> other{{memory.data(), {64, 8}}, 7};
  message.clear();
  try {
    gemm(cpu, nt, View<const float, 2>(x.data(), {1, 8}), other, View<float, 2>(y.data(), {1, 64}),
         Output::overwrite);
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  CHECK(message == "gemm: order of the arranged operand (7) must be that of this code (" +
                       std::to_string(arranged_order(&cpu)) +
                       "): both must be compiled for the same instructions");
}
