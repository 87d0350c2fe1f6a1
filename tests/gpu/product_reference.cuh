// What the tests of the GPU's products share: tensors with gaps and guards, a plain reference in
// double, and a comparison that says where it fails.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <dsv3/backend/cuda/tile_product.cuh>
#include <vector>

#include "where.hpp"

namespace product_test {

using namespace dsv3;

// On fibers one size in seven is tried.
inline bool left_out(Index number) { return on_fibers && number % 7 != 0; }

// The GPU of all tests; none where there is none, which is said once.
inline Cuda* device() {
  static const std::unique_ptr<Cuda> cuda = [] {
    const std::string reason = cuda_unavailable();
    if (!reason.empty()) std::printf("skipped: %s\n", reason.c_str());
    return reason.empty() ? std::make_unique<Cuda>() : nullptr;
  }();
  return cuda.get();
}

class Random {
 public:
  explicit Random(std::uint32_t seed) : state_(seed * 2654435761u + 12345u) {}
  std::uint32_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 17;
    state_ ^= state_ << 5;
    return state_;
  }
  double uniform() { return bits() / 4294967296.0 * 2 - 1; }
  Index below(Index bound) { return static_cast<Index>(bits() % static_cast<unsigned>(bound)); }

 private:
  std::uint32_t state_;
};

template <class T>
T random_value(Random& random) {
  if constexpr (is_fp8<T>) {
    T code;
    do code.code = static_cast<std::uint8_t>(random.bits());
    while (!(std::fabs(float(code)) <= T::max));
    return code;
  } else {
    return T(random.uniform());
  }
}

// What a kernel must neither use nor overwrite.
template <class T>
T poison() {
  T value;
  std::memset(&value, 0xFF, sizeof value);  // NaN in every type
  return value;
}

// How the rows of a tensor lie.
struct Gaps {
  Index before = 0, multiple = 1, extra = 0;  // elements before, rows rounded up, elements between
};

// [entries, rows, columns] on the host and on the device, with poison around and between rows.
template <class T>
class Tensor {
 public:
  Tensor(Index entries, Index rows, Index columns, const Gaps& gaps, Random& random) : gaps_(gaps) {
    stride_ = groups_of(columns, gaps.multiple) * gaps.multiple + gaps.extra;
    extents_[0] = entries, extents_[1] = rows, extents_[2] = columns;
    host.assign(static_cast<std::size_t>(gaps.before + entries * rows * stride_ + 64), poison<T>());
    for (Index e = 0; e < entries; ++e)
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < columns; ++j) on_host()(e, i, j) = random_value<T>(random);
    device_ = static_cast<T*>(allocate(*device(), bytes()));
    upload();
  }
  Tensor(const Tensor&) = delete;
  ~Tensor() { deallocate(*device(), device_, bytes()); }

  View<T, 3> on_host() { return view(host.data()); }
  View<T, 3> stack() { return view(device_); }
  View<T, 2> matrix() { return stack()[0]; }
  void upload() { copy_to_backend(*device(), device_, host.data(), bytes()); }
  std::vector<T> download() {
    std::vector<T> values(host.size());
    copy_to_host(*device(), values.data(), device_, bytes());
    return values;
  }
  Index bytes() const { return static_cast<Index>(host.size() * sizeof(T)); }
  View<T, 3> view(T* data) const {
    View<T, 3> view;
    view.data = data + gaps_.before;
    for (int d = 0; d < 3; ++d) view.extents[d] = extents_[d];
    view.strides[0] = extents_[1] * stride_, view.strides[1] = stride_, view.strides[2] = 1;
    return view;
  }

  std::vector<T> host;

 private:
  Gaps gaps_;
  Index stride_, extents_[3];
  T* device_;
};

// The sum of one element in double, and that of its magnitudes.
struct Exact {
  double value, size;
};

struct Element {
  template <class T>
  DSV3_HD static double of(const T& x) {
    return double(accum_t<T>(x));
  }
};

// One thread for each element of c; operands are views, or Quantized with the scales' segments.
template <Product p, class A, class B, class TC>
__global__ void exact_kernel(A a, B b, View<TC, 2> c, Exact* exact, bool add) {
  const Index at = blockIdx.x * Index{blockDim.x} + threadIdx.x;
  if (at >= c.size()) return;
  const Index i = at / c.extent(1), j = at % c.extent(1);
  constexpr bool left = p != Product::tn, right = p == Product::nt;
  const auto x = detail::elements_of(a);
  const auto y = detail::elements_of(b);
  const Index depth = x.extent(left ? 1 : 0);
  Exact total = {add ? Element::of(c(i, j)) : 0, add ? fabs(Element::of(c(i, j))) : 0};
  for (Index k = 0; k < depth; ++k) {
    double product = Element::of(left ? x(i, k) : x(k, i)) * Element::of(right ? y(j, k) : y(k, j));
    if constexpr (requires { a.scales; })
      product *= double(detail::operand_scales(a, left).at(i, k) *
                        detail::operand_scales(b, right).at(j, k));
    total.value += product;
    total.size += fabs(product);
  }
  exact[at] = total;
}

template <class T>
bool same_bits(const T& x, const T& y) {
  return std::memcmp(&x, &y, sizeof x) == 0;
}

// Units of rounding of the output, and of a sum of so many elements.
template <class TC>
double tolerance(const Exact& exact, Index depth) {
  const double output = std::is_same_v<TC, bf16>    ? 0x1.02p-8
                        : std::is_same_v<TC, float> ? 0x1p-23
                                                    : 0x1p-52;
  const double sum = std::is_same_v<TC, double> ? 0x1p-52 : 0x1p-22;
  const double steps =
      std::is_same_v<TC, double> ? double(depth) : double(depth) / 8;  // of the tensor core
  return output * std::fabs(exact.value) + sum * (steps + 8) * exact.size + 1e-37;
}

// Compares c, as downloaded, with the exact sums; and everything around c with what was there.
template <class TC>
bool agrees(const std::string& what, Tensor<TC>& c, const std::vector<TC>& got,
            const std::vector<Exact>& exact, const std::vector<Index>& depths) {
  std::vector<bool> inside(got.size());
  const View<TC, 3> view = c.on_host();
  Index bad = 0, seen = 0;
  std::string first, where;
  Index in_tile[16][8] = {};
  for (Index e = 0; e < view.extent(0); ++e)
    for (Index i = 0; i < view.extent(1); ++i)
      for (Index j = 0; j < view.extent(2); ++j, ++seen) {
        const auto at = static_cast<std::size_t>(&view(e, i, j) - c.host.data());
        inside[at] = true;
        const Exact& want = exact[static_cast<std::size_t>(seen)];
        const double value = Element::of(got[at]);
        const double bound =
            tolerance<TC>(want, depths[depths.size() == 1 ? 0 : static_cast<std::size_t>(e)]);
        const bool right = std::isnan(want.value)   ? std::isnan(value)
                           : std::isinf(want.value) ? value == want.value
                                                    : std::fabs(value - want.value) <= bound;
        if (right) continue;
        ++in_tile[i % 16][j % 8];
        if (bad++ < 6) {
          char line[200];
          std::snprintf(line, sizeof line, "  [%td, %td, %td] is %.9g, must be %.9g +- %.3g\n", e,
                        i, j, value, want.value, bound);
          first += line;
        }
      }
  Index overwritten = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    if (!inside[i] && !same_bits(got[i], c.host[i])) {
      if (!overwritten++)
        first += "  element " + std::to_string(i) + " of the memory, outside c, is overwritten\n";
    }
  if (bad == 0 && overwritten == 0) return true;
  std::printf("%s: %td of %td elements are wrong, %td outside are overwritten\n%s", what.c_str(),
              bad, seen, overwritten, first.c_str());
  std::printf("  wrong by row %% 16 (down) and column %% 8:\n");
  for (const auto& row : in_tile) {
    for (const Index count : row) std::printf(" %6td", count);
    std::printf("\n");
  }
  std::fflush(stdout);
  return false;
}

// Memory of the device for the exact sums.
class ExactSums {
 public:
  explicit ExactSums(Index count) : count_(count) {
    device_ = static_cast<Exact*>(allocate(*device(), bytes()));
  }
  ExactSums(const ExactSums&) = delete;
  ~ExactSums() { deallocate(*device(), device_, bytes()); }

  // Those of one matrix, at `first`; c as it is before the product.
  template <Product p, class A, class B, class TC>
  void add(Index first, const A& a, const B& b, const View<TC, 2>& c, bool add) {
    if (c.size() == 0) return;
    detail::launch(*device(), exact_kernel<p, A, B, TC>,
                   static_cast<unsigned>(groups_of(c.size(), 128)), 128, 0, a, b, c,
                   device_ + first, add);
    detail::check_cuda(cudaGetLastError(), "exact_kernel", "launch");
  }
  std::vector<Exact> download() {
    std::vector<Exact> sums(static_cast<std::size_t>(count_));
    copy_to_host(*device(), sums.data(), device_, bytes());
    return sums;
  }

 private:
  Index bytes() const { return count_ * static_cast<Index>(sizeof(Exact)); }
  Index count_;
  Exact* device_;
};

template <Product p>
const char* name_of() {
  return p == Product::nt ? "nt" : p == Product::nn ? "nn" : "tn";
}

}  // namespace product_test
