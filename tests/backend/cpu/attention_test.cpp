#include <dsv3/nn/attention.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/core/dry_run.hpp>
#include <dsv3/core/philox.hpp>
#include <vector>

using namespace dsv3;

namespace {

constexpr Index heads = 3, d_n = 10, d_r = 6, d_v = 9, d_qk = d_n + d_r, d_kv = d_n + d_v;
constexpr double scale = 0.3;

// Sequences around the sizes of tiles: 64 keys, 96 queries.
const std::vector<Index> lengths = {1, 5, 63, 64, 65, 97, 1, 200};

template <class T>
std::vector<T> random(std::uint64_t stream, Index n) {
  std::vector<T> values(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = T(normal(Philox(1, stream), i));
  return values;
}

struct Lists {
  std::vector<std::int32_t> begin, end, first{0};
  explicit Lists(const std::vector<Index>& sizes) {
    for (const Index n : sizes) {
      const auto start = static_cast<std::int32_t>(begin.size());
      for (Index i = 0; i < n; ++i) {
        begin.push_back(start);
        end.push_back(start + static_cast<std::int32_t>(n));
      }
      first.push_back(start + static_cast<std::int32_t>(n));
    }
  }
  Sequences view() const {
    const auto list = [](const std::vector<std::int32_t>& v) {
      return View<const std::int32_t, 1>(v.data(), {static_cast<Index>(v.size())});
    };
    return {list(begin), list(begin), list(end), list(first), list(begin)};
  }
};

// Everything that forward and backward write, for tokens [from, from + n) of the random inputs.
template <class T>
struct Outcome {
  using A = accum_t<T>;
  std::vector<T> o, dq, dkv, dk_rope;
  std::vector<A> lse;
  Index counted = 0, measured = 0;

  template <class Backend>
  Outcome(Backend& backend, const std::vector<Index>& sizes, Index from = 0) {
    const Lists lists(sizes);
    const Sequences sequences = lists.view();
    const Index n = sequences.tokens(), all = from + n;
    const auto q = random<T>(1, all * heads * d_qk), kv = random<T>(2, all * heads * d_kv);
    const auto rope = random<T>(3, all * d_r), d_o = random<T>(4, all * heads * d_v);
    const auto cube = [&](const std::vector<T>& v, Index d) {
      return View<const T, 3>(v.data() + from * heads * d, {n, heads, d});
    };
    const View<const T, 2> k_rope(rope.data() + from * d_r, {n, d_r});
    o.resize(static_cast<std::size_t>(n * heads * d_v));
    lse.resize(static_cast<std::size_t>(n * heads));
    dq.resize(static_cast<std::size_t>(n * heads * d_qk));
    dkv.resize(static_cast<std::size_t>(n * heads * d_kv));
    dk_rope.resize(static_cast<std::size_t>(n * d_r));
    const auto run = [&](auto& any, Arena& arena) {
      const Attention<T> attention{scale};
      const View<T, 3> out(o.data(), {n, heads, d_v});
      const View<A, 2> log_sum(lse.data(), {n, heads});
      attention.forward(any, cube(q, d_qk), cube(kv, d_kv), k_rope, sequences, out, log_sum, arena);
      attention.backward(any, cube(q, d_qk), cube(kv, d_kv), k_rope, sequences, out, log_sum,
                         cube(d_o, d_v), View<T, 3>(dq.data(), {n, heads, d_qk}),
                         View<T, 3>(dkv.data(), {n, heads, d_kv}),
                         View<T, 2>(dk_rope.data(), {n, d_r}), arena);
    };
    Arena counting;
    DryRun<Backend> dry{backend};
    run(dry, counting);
    counted = counting.peak();
    std::vector<std::byte> memory(static_cast<std::size_t>(counted) + 64);
    void* base = memory.data();
    std::size_t room = memory.size();
    Arena arena(std::align(64, static_cast<std::size_t>(counted), base, room), counted);
    run(backend, arena);
    measured = arena.peak();
  }

  template <class Compare>
  void compare(const Outcome& other, Compare same) const {
    same("o", o, other.o);
    same("lse", lse, other.lse);
    same("dq", dq, other.dq);
    same("dkv", dkv, other.dkv);
    same("dk_rope", dk_rope, other.dk_rope);
  }
};

const auto same_bits = [](const char* name, const auto& a, const auto& b) {
  CAPTURE(name);
  REQUIRE(a.size() == b.size());
  CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
};

}  // namespace

TEST_CASE_TEMPLATE("Cpu's fused attention agrees with the row kernels", T, double, float, bf16) {
  Cpu cpu(2);
  EigenCpu eigen;
  const Outcome<T> fused(cpu, lengths), plain(eigen, lengths);
  // Sums of up to 200 * 3 products of numbers around 1, of which each side keeps its own order. In
  // bf16 both sides round the same float sums, and backward starts from an o that is rounded.
  const double tolerance = std::is_same_v<T, double>  ? 1e-13
                           : std::is_same_v<T, float> ? 1e-4
                                                      : 0.02;
  fused.compare(plain, [&](const char* name, const auto& a, const auto& b) {
    CAPTURE(name);
    double worst = 0, largest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      worst = std::max(worst, std::abs(double(a[i]) - double(b[i])));
      largest = std::max(largest, std::abs(double(b[i])));
    }
    CHECK(worst <= tolerance * largest);
  });
  CHECK(fused.counted == fused.measured);
  CHECK(plain.counted == plain.measured);
}

TEST_CASE_TEMPLATE("fused attention has the same bits for any number of threads", T, double, float,
                   bf16) {
  Cpu one(1);
  const Outcome<T> expected(one, lengths);
  for (const int threads : {2, 3, 5}) {
    Cpu cpu(threads);
    expected.compare(Outcome<T>(cpu, lengths), same_bits);
  }
}

TEST_CASE_TEMPLATE("a sequence has the bits in a batch that it has alone", T, float, bf16) {
  Cpu cpu(2);
  const Outcome<T> batch(cpu, lengths);
  Index from = 0;
  for (const Index n : lengths) {
    const Outcome<T> alone(cpu, {n}, from);
    const auto part = [&](const auto& all, Index width) {
      auto begin = all.begin() + from * width;
      return std::remove_cvref_t<decltype(all)>(begin, begin + n * width);
    };
    same_bits("o", alone.o, part(batch.o, heads * d_v));
    same_bits("lse", alone.lse, part(batch.lse, heads));
    same_bits("dq", alone.dq, part(batch.dq, heads * d_qk));
    same_bits("dkv", alone.dkv, part(batch.dkv, heads * d_kv));
    same_bits("dk_rope", alone.dk_rope, part(batch.dk_rope, d_r));
    from += n;
  }
}

TEST_CASE("the first tokens of a sequence do not see what follows") {
  Cpu cpu(2);
  const Outcome<float> whole(cpu, {200}), part(cpu, {70});
  same_bits("o", part.o, std::vector<float>(whole.o.begin(), whole.o.begin() + 70 * heads * d_v));
}
