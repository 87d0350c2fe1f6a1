// Operands of the benchmarks, made on the device, and coarse checks of what comes out.
#pragma once

#include <dsv3/backend/cuda.hpp>
#include <dsv3/nn/chunks.hpp>

#include "harness.hpp"

namespace gpu_bench {

using dsv3::as_const;
using dsv3::bf16;
using dsv3::e4m3;
using dsv3::Output;
using dsv3::Product;
using dsv3::Quantized;
using dsv3::QuantizedStack;

/// 32 bits that depend on both numbers in no visible way.
DSV3_HD inline std::uint32_t mixed(std::uint32_t seed, std::uint64_t index) {
  std::uint64_t z = (index + 1) * 0x9E3779B97F4A7C15u + seed * 0xD1B54A32D192ED03u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return static_cast<std::uint32_t>(z >> 32);
}

/// Nearly normal numbers times `scale`, plus `offset`: the four bytes of a word added up.
template <class T>
struct RandomRow {
  View<T, 1> x;
  std::uint32_t seed;
  float scale, offset;

  DSV3_HD void operator()(auto team, Index chunk) const {
    const Index first = chunk * dsv3::detail::optimizer_chunk;
    team.each(dsv3::detail::chunk_size(x.extent(0), chunk), [&](Index j) {
      const std::uint32_t word = mixed(seed, static_cast<std::uint64_t>(first + j));
      const auto sum = static_cast<float>((word & 255u) + (word >> 8 & 255u) + (word >> 16 & 255u) +
                                          (word >> 24));
      x(first + j) = T((sum - 510.0f) * (1 / 147.8f) * scale + offset);  // 147.8: their deviation
    });
  }
};

/// Integers in [0, below).
struct RandomIntegerRow {
  View<std::int32_t, 1> x;
  std::uint32_t seed, below;

  DSV3_HD void operator()(auto team, Index chunk) const {
    const Index first = chunk * dsv3::detail::optimizer_chunk;
    team.each(dsv3::detail::chunk_size(x.extent(0), chunk), [&](Index j) {
      x(first + j) =
          static_cast<std::int32_t>(mixed(seed, static_cast<std::uint64_t>(first + j)) % below);
    });
  }
};

inline Index chunks_of(Index elements) {
  return dsv3::groups_of(elements, dsv3::detail::optimizer_chunk);
}

/// Fills a dense view.
template <class T, int Rank>
void randomize(Run& run, const View<T, Rank>& x, std::uint32_t seed, float scale = 1,
               float offset = 0) {
  for_each_row(run.cuda, chunks_of(x.size()), RandomRow<T>{x.flat(), seed, scale, offset});
}

/// A dense view of random values.
template <class T, int Rank>
View<T, Rank> random(Run& run, const Index (&shape)[Rank], std::uint32_t seed, float scale = 1,
                     float offset = 0) {
  const auto x = run.take<T>(shape);
  randomize(run, x, seed, scale, offset);
  return x;
}

/// Codes as quantising gives them, the largest of a group near 448, and scales around `scale`.
inline void randomize(Run& run, const Quantized<e4m3>& q, std::uint32_t seed, float scale) {
  randomize(run, q.codes, seed, 130);
  const View<float, 1> scales(q.scales.data, {q.scales.extents[0] * q.scales.extents[1]});
  randomize(run, scales, seed + 1, scale / 8, scale);
}
inline void randomize(Run& run, const QuantizedStack<e4m3>& q, std::uint32_t seed, float scale) {
  randomize(run, q.codes, seed, 130);
  const View<float, 1> scales(q.scales.data, {q.scales.extents[0] * q.scales.extents[1]});
  randomize(run, scales, seed + 1, scale / 8, scale);
}

/// Of every row that is looked at, the values that are not finite and those that are not zero.
template <class T>
struct ProbeRow {
  View<const T, 2> x;
  Index step;
  View<float, 2> counts;  // [rows looked at, 2]

  DSV3_HD void operator()(auto team, Index row) const {
    const Index i = row * step;
    const auto value = [&](Index j) { return float(x(i, j)); };
    const float broken =
        team.sum(x.extent(1), [&](Index j) { return value(j) - value(j) == 0 ? 0.0f : 1.0f; });
    const float other = team.sum(x.extent(1), [&](Index j) { return value(j) != 0 ? 1.0f : 0.0f; });
    team.once([&] {
      counts(row, 0) = broken;
      counts(row, 1) = other;
    });
  }
};

/// Throws unless the values of up to 2048 rows are finite, and at least a few of them not zero.
template <class T>
void check_output(Run& run, const char* what, const View<T, 2>& x) {
  const Index rows = x.extent(0), step = dsv3::groups_of(rows, 2048);
  const Index looked = dsv3::groups_of(rows, step);
  const auto counts = run.take<float>({looked, 2});
  for_each_row(run.cuda, looked, ProbeRow<std::remove_const_t<T>>{as_const(x), step, counts});
  std::vector<float> host(static_cast<std::size_t>(2 * looked));
  copy_to_host(run.cuda, host.data(), counts.data, 2 * looked * Index{sizeof(float)});
  double broken = 0, other = 0;
  for (std::size_t i = 0; i < host.size(); i += 2) {
    broken += double(host[i]);
    other += double(host[i + 1]);
  }
  const auto all = static_cast<double>(looked * x.extent(1));
  if (broken > 0)
    throw std::runtime_error(std::string(what) + ": of " + std::to_string(all) + " values " +
                             std::to_string(broken) + " are not finite");
  if (other < 0.05 * all)
    throw std::runtime_error(std::string(what) + ": of " + std::to_string(all) + " values only " +
                             std::to_string(other) + " are not zero");
}
template <class T>
void check_output(Run& run, const char* what, const View<T, 3>& x) {
  check_output(run, what, View<T, 2>(x.data, {x.extent(0) * x.extent(1), x.extent(2)}));
}

/// Element of an operand in double.
template <class T>
DSV3_HD double element(const View<T, 2>& x, Index i, Index j) {
  return double(float(x(i, j)));
}
template <class C>
DSV3_HD double element(const Quantized<C>& x, Index i, Index j) {
  return double(x(i, j));
}

/// Some elements of a product in double, beside what is there: [samples, 3] with the value there,
/// the sum, and the sum of magnitudes.
template <Product p, class A, class B, class T>
struct SpotRow {
  A a;
  B b;
  View<const T, 2> c;
  View<double, 2> spots;

  DSV3_HD static Index place(Index sample, std::uint32_t seed, Index n) {
    // The corners first, where tiles are ragged.
    if (sample < 4) return (sample >> (seed & 1u) & 1) ? n - 1 : 0;
    return static_cast<Index>(mixed(seed, static_cast<std::uint64_t>(sample)) %
                              static_cast<std::uint32_t>(n));
  }
  DSV3_HD void operator()(auto team, Index sample) const {
    const Index i = place(sample, 0, c.extent(0)), j = place(sample, 1, c.extent(1));
    constexpr bool left = p != Product::tn, right = p == Product::nt;
    const auto term = [&](Index k) {
      return (left ? element(a, i, k) : element(a, k, i)) *
             (right ? element(b, j, k) : element(b, k, j));
    };
    const Index depth = a.extent(left ? 1 : 0);
    const double sum = team.sum(depth, term);
    const double size = team.sum(depth, [&](Index k) {
      const double t = term(k);
      return t < 0 ? -t : t;
    });
    team.once([&] {
      spots(sample, 0) = double(float(c(i, j)));
      spots(sample, 1) = sum;
      spots(sample, 2) = size;
    });
  }
};

/// Throws unless 48 elements of the product are what they should be: 2^-8 of the value for its
/// rounding, 2^-11 of the sum of magnitudes for sums inside tensor cores.
template <Product p, class A, class B, class T>
void check_product(Run& run, const char* what, const A& a, const B& b, const View<T, 2>& c) {
  constexpr Index samples = 48;
  const auto spots = run.take<double>({samples, 3});
  for_each_row(run.cuda, samples, SpotRow<p, A, B, T>{a, b, as_const(c), spots});
  double host[3 * samples];
  copy_to_host(run.cuda, host, spots.data, Index{sizeof host});
  for (Index s = 0; s < samples; ++s) {
    const double got = host[3 * s], sum = host[3 * s + 1], size = host[3 * s + 2];
    const double error = got > sum ? got - sum : sum - got;
    const double bound = (sum < 0 ? -sum : sum) / 256 + size / 2048;
    if (error <= bound) continue;
    using Spot = SpotRow<p, A, B, T>;
    throw std::runtime_error(
        std::string(what) + ": element (" + std::to_string(Spot::place(s, 0, c.extent(0))) + ", " +
        std::to_string(Spot::place(s, 1, c.extent(1))) + ") is " + std::to_string(got) +
        " and must be " + std::to_string(sum) + " within " + std::to_string(bound));
  }
}

}  // namespace gpu_bench
