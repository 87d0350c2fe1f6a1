// What the tests of the blocks share: memory, numbers, sequences and central differences.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <dsv3/backend/host.hpp>
#include <dsv3/core/arena.hpp>
#include <dsv3/core/buffer.hpp>
#include <dsv3/core/philox.hpp>
#include <dsv3/nn/sequences.hpp>
#include <initializer_list>
#include <string>
#include <vector>

namespace fixture {

using dsv3::Index;
using dsv3::View;

/// Fills a view with numbers spread evenly over (-scale, scale): others for every stream.
template <class T, int Rank>
void fill(const View<T, Rank>& view, std::uint64_t stream, double scale = 1) {
  const dsv3::Philox philox(17, stream);
  for (Index i = 0; i < view.size(); ++i) {
    const auto block = philox(static_cast<std::uint64_t>(i));
    view.data[i] = T(scale * (2 * dsv3::uniform(block.word[0]) - 1));
  }
}

/// Memory of a test. Every byte starts as 0xFF: a number that nobody wrote is not a number.
struct Memory {
  dsv3::HostMemory host;
  dsv3::Buffer<dsv3::HostMemory> buffer;
  dsv3::Arena arena;
  std::uint64_t stream = 0;

  explicit Memory(Index bytes = Index{1} << 22) : buffer(host, bytes), arena(buffer.data(), bytes) {
    std::memset(buffer.data(), 0xFF, static_cast<std::size_t>(bytes));
  }

  template <class T, int Rank>
  View<T, Rank> empty(const Index (&shape)[Rank]) {
    return arena.take<T>(shape);
  }
  template <class T, int Rank>
  View<T, Rank> zeros(const Index (&shape)[Rank]) {
    const auto view = arena.take<T>(shape);
    for (Index i = 0; i < view.size(); ++i) view.data[i] = T(0.0f);
    return view;
  }
  /// Numbers in (-scale, scale).
  template <class T, int Rank>
  View<T, Rank> random(const Index (&shape)[Rank], double scale = 1) {
    const auto view = arena.take<T>(shape);
    fill(view, ++stream, scale);
    return view;
  }
};

/// Sequences of the given lengths, one after another; positions start at 0 in each.
struct Lengths {
  std::vector<std::int32_t> position, begin, end, first, sequence;

  Lengths(std::initializer_list<std::int32_t> lengths) {
    std::int32_t at = 0, number = 0;
    for (const std::int32_t length : lengths) {
      first.push_back(at);
      for (std::int32_t i = 0; i < length; ++i) {
        position.push_back(i);
        begin.push_back(at);
        end.push_back(at + length);
        sequence.push_back(number);
      }
      at += length;
      ++number;
    }
    first.push_back(at);
  }

  dsv3::Sequences view() const {
    const auto all = [](const std::vector<std::int32_t>& list) {
      return View<const std::int32_t, 1>(list.data(), {static_cast<Index>(list.size())});
    };
    return {all(position), all(begin), all(end), all(first), all(sequence)};
  }
};

/// sum_i weight[i] y[i]: a loss whose gradient in y is `weight`.
inline double weighted_sum(const View<const double, 2>& y, const View<const double, 2>& weight) {
  double sum = 0;
  for (Index i = 0; i < y.extent(0); ++i)
    for (Index j = 0; j < y.extent(1); ++j) sum += weight(i, j) * y(i, j);
  return sum;
}

/// largest = max(largest, value), and not a number from the first such value on.
inline void keep_largest(double& largest, double value) {
  if (!std::isnan(largest) && !(value <= largest)) largest = value;
}

/// Compares the gradient of loss() in x with central differences of step 1e-5, at `most` elements
/// spread over x at least. The tolerance 1e-6 is relative to the largest element of the gradient:
/// the differences' own error is near 1e-16 |loss| / 1e-5, so small elements have few digits. The
/// largest must reach `least`, or the comparison would say nothing.
template <class Loss>
void check_differences(const std::string& name, const View<double, 1>& x,
                       const View<const double, 1>& gradient, const Loss& loss, Index most = 50,
                       double least = 1e-4) {
  constexpr double step = 1e-5;
  double largest = 0, worst = 0;
  for (Index i = 0; i < gradient.size(); ++i) keep_largest(largest, std::abs(gradient(i)));
  const Index stride = x.size() > most ? x.size() / most : 1;
  for (Index i = 0; i < x.size(); i += stride) {
    const double kept = x(i);
    x(i) = kept + step;
    const double above = loss();
    x(i) = kept - step;
    const double below = loss();
    x(i) = kept;
    keep_largest(worst, std::abs((above - below) / (2 * step) - gradient(i)));
  }
  INFO(name, ": largest element ", largest);
  CHECK(largest >= least);
  CHECK(worst <= 1e-6 * largest);
}

/// The relative Frobenius distance of x from y; where y is all zero, 0 if x is too.
template <class TX, class TY>
double distance(const View<TX, 1>& x, const View<TY, 1>& y) {
  double difference = 0, norm = 0;
  for (Index i = 0; i < y.size(); ++i) {
    const double d = double(x(i)) - double(y(i));
    difference += d * d;
    norm += double(y(i)) * double(y(i));
  }
  return norm > 0 || difference > 0 ? std::sqrt(difference / norm) : difference;
}

/// Whether both hold the same bits.
template <class T, int Rank>
bool same_bits(const View<T, Rank>& a, const View<T, Rank>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data, b.data, static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace fixture
