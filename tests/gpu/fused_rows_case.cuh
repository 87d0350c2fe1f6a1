// What the tests of the fused row kernels share: memory of the device, codes, values of all kinds.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <dsv3/backend/cuda/fused_rows.cuh>
#include <dsv3/backend/cuda/team.cuh>
#include <dsv3/core/philox.hpp>
#include <dsv3/nn/projection.hpp>
#include <limits>
#include <memory>
#include <vector>

#include "where.hpp"

namespace fused_test {

using dsv3::bf16;
using dsv3::Cuda;
using dsv3::e4m3;
using dsv3::e5m2;
using dsv3::Index;
using dsv3::Quantized;
using dsv3::ScaleRule;
using dsv3::View;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float none = std::numeric_limits<float>::quiet_NaN();
inline const ScaleRule rules[] = {{}, {1e-4, false}, {0, true}};

// The GPU, or null and a message.
inline std::unique_ptr<Cuda> gpu() {
  const auto reason = dsv3::cuda_unavailable();
  if (reason.empty()) return std::make_unique<Cuda>();
  std::printf("skipped: %s\n", reason.c_str());
  return nullptr;
}

// Memory of the device, every byte 0xAB at first.
template <class T>
struct Memory {
  Cuda& cuda;
  std::size_t size;
  T* data;

  Memory(Cuda& c, Index n)
      : cuda(c), size(static_cast<std::size_t>(n)), data(static_cast<T*>(allocate(c, bytes()))) {
    std::vector<std::uint8_t> fill(size * sizeof(T), 0xAB);
    copy_to_backend(cuda, data, fill.data(), bytes());
    synchronize(cuda);
  }
  Memory(Cuda& c, const std::vector<T>& values) : Memory(c, static_cast<Index>(values.size())) {
    copy_to_backend(cuda, data, values.data(), bytes());
    synchronize(cuda);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { deallocate(cuda, data, bytes()); }

  Index bytes() const { return static_cast<Index>(size * sizeof(T)); }
  std::vector<std::uint8_t> host() const {
    std::vector<std::uint8_t> values(size * sizeof(T));
    copy_to_host(cuda, values.data(), data, bytes());
    return values;
  }
};

// Whether two elements have the same bits. On a GPU arithmetic gives one NaN; where kernels run on
// the host, NaN has the sign that the host's gives it.
template <class T>
bool same_bits(const std::uint8_t* a, const std::uint8_t* b) {
  if (std::memcmp(a, b, sizeof(T)) == 0) return true;
#ifdef __CUDACC__
  return false;
#else
  T x, y;
  std::memcpy(&x, a, sizeof(T));
  std::memcpy(&y, b, sizeof(T));
  return std::isnan(float(x)) && std::isnan(float(y));
#endif
}

// Two memories must be equal, also between rows: says how many bytes differ, and where.
template <class T>
void check_same(const char* what, const Memory<T>& ours, const Memory<T>& theirs, Index stride) {
  const auto a = ours.host(), b = theirs.host();
  std::size_t count = 0, first = 0, last = 0;
  for (std::size_t i = 0; i < a.size(); i += sizeof(T))
    if (!same_bits<T>(&a[i], &b[i])) {
      if (count++ == 0) first = i / sizeof(T);
      last = i / sizeof(T);
    }
  CHECK(count == 0);
  if (count == 0) return;
  const auto bits = [&](const std::vector<std::uint8_t>& from, std::size_t at) {
    std::uint32_t word = 0;
    std::memcpy(&word, &from[at * sizeof(T)], sizeof(T));
    return word;
  };
  const auto at = [&](std::size_t i) {
    const auto s = static_cast<std::size_t>(stride);
    return std::to_string(i / s) + ", " + std::to_string(i % s);
  };
  FAIL_CHECK(what << ": " << count << " of " << ours.size << " differ, from (" << at(first)
                  << "), bits " << bits(a, first) << ", must be " << bits(b, first) << ", to ("
                  << at(last) << "), bits " << bits(a, last) << ", must be " << bits(b, last));
}

// Codes and scales whose rows lie `gap` elements apart.
template <class C>
struct Codes {
  Index rows, columns, width, stride, groups;
  Memory<C> codes;
  Memory<float> scales;

  Codes(Cuda& cuda, Index r, Index c, Index w, Index gap)
      : rows(r),
        columns(c),
        width(w),
        stride(c + gap),
        groups(dsv3::groups_of(c, w)),
        codes(cuda, r * stride),
        scales(cuda, r * (groups + 1)) {}

  Quantized<C> view() const {
    View<C, 2> v(codes.data, {rows, columns});
    v.strides[0] = stride;
    dsv3::Scales<float> s(scales.data, rows, groups);
    s.strides[0] += 1;
    return {v, s, 1, width};
  }
  void must_be(const char* what, const Codes& expected) const {
    CAPTURE(what);
    check_same("scales", scales, expected.scales, groups + 1);
    check_same("codes", codes, expected.codes, stride);
  }
};

template <class T>
View<const T, 2> matrix(const Memory<T>& m, Index rows, Index columns, Index gap) {
  View<const T, 2> v(m.data, {rows, columns});
  v.strides[0] = columns + gap;
  return v;
}

// Values of many magnitudes; rows 0 ... 7 hold what is special, where there are so many.
template <class T>
std::vector<T> special_values(Index rows, Index columns, Index gap, std::uint32_t seed) {
  const dsv3::Philox philox(seed, static_cast<std::uint64_t>(columns));
  std::vector<T> x(static_cast<std::size_t>(rows * (columns + gap)), T(none));
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) {
      const auto at = static_cast<std::size_t>(i * (columns + gap) + j);
      const auto block = philox(static_cast<std::uint64_t>(at));
      auto value =
          static_cast<float>((2 * dsv3::uniform(block.word[0]) - 1) *
                             std::exp2(std::floor(dsv3::uniform(block.word[1]) * 24 - 12)));
      const bool odd = block.word[2] & 1, rare = block.word[2] % 61 == 0;
      if (rows >= 12) {
        if (i == 0) value = odd ? 0.0f : -0.0f;
        if (i == 1) value = odd ? 1e-39f : -1e-37f;  // the scale would be subnormal
        if (i == 2 && rare) value = none;
        if (i == 3 && rare) value = odd ? infinity : -infinity;
        if (i == 4 && rare) value = -none;
        if (i == 5 && j % 64 < 2) value = j % 64 ? none : infinity;
        if (i == 6) value *= 0x1p110f;
        if (i == 7) value *= 0x1p-100f;
        if (i == 8) value = std::round(value * 16) / 16;  // ties
        if (i == 9) value *= 0x1p-70f;
        if (i == 10) value = (odd ? 448 : 57344) * std::exp2(float(block.word[3] % 30) - 15.0f);
        if (i == 11) value *= 100;
      }
      x[at] = T(value);
    }
  return x;
}

struct Shape {
  Index rows, columns, width, gap;
};
inline const Shape shapes[] = {{16, 1024, 128, 0}, {13, 1040, 128, 16}, {70, 512, 128, 0},
                               {12, 37, 128, 0},   {1, 1, 32, 3},       {17, 259, 64, 5},
                               {12, 700, 256, 4},  {14, 96, 32, 32},    {13, 1000, 128, 0},
                               {12, 2064, 16, 0},  {12, 1536, 512, 0},  {300, 7168, 128, 0}};

}  // namespace fused_test
