// Device: a GPU as a backend, in the plainest way, to compile (and where there is one, run) every
// row kernel as device code. The host's compiler sees for_each_row only declared.
#pragma once

#include <dsv3/core/check.hpp>
#include <dsv3/core/math.hpp>
#include <dsv3/core/product.hpp>
#include <dsv3/core/quantized.hpp>

namespace gpu {

using dsv3::Index;
using dsv3::Product;
using dsv3::Quantized;
using dsv3::QuantizedStack;
using dsv3::View;

struct Device {};

/// True where this machine has a GPU that the program can use.
bool available();

void* allocate(Device&, Index bytes);
void deallocate(Device&, void* memory, Index bytes) noexcept;
void copy_to_backend(Device&, void* to, const void* from, Index bytes);
void copy_to_host(Device&, void* to, const void* from, Index bytes);
void fill_zero(Device&, void* memory, Index bytes);
void synchronize(Device&);

/// Launches one block of threads for each row. Defined in launch.cuh, for nvcc alone; not inlined
/// there, because the host's compiler links to it.
template <class Body>
[[gnu::noinline]] void for_each_row(Device&, Index rows, Body body);

// One element of a product, whose operands' element (i, k) or (k, j) lies at the given strides.
template <class TA, class TB, class TC>
struct ProductElement {
  const TA* a;
  const TB* b;
  Index a_row, a_k, b_k, b_column, depth;
  View<TC, 2> c;
  bool add;

  DSV3_HD void operator()(auto team, Index element) const {
    using A = dsv3::accum_t<TC>;
    const Index i = element / c.extent(1), j = element % c.extent(1);
    const A sum = team.dot(
        depth, [&](Index k) { return A(a[i * a_row + k * a_k]); },
        [&](Index k) { return A(b[k * b_k + j * b_column]); });
    team.once([&] { c(i, j) = TC(add ? A(c(i, j)) + sum : sum); });
  }
};

template <Product p, class TA, class TB, class TC>
void gemm(Device& device, dsv3::ProductTag<p>, View<TA, 2> a, View<TB, 2> b, View<TC, 2> c,
          dsv3::Output output) {
  dsv3::detail::check_product<p>("gemm", a.extent(0), a.extent(1), b.extent(0), b.extent(1),
                                 c.extent(0), c.extent(1));
  constexpr bool left = p == Product::tn, right = p == Product::nt;
  for_each_row(device, c.size(),
               ProductElement<std::remove_const_t<TA>, std::remove_const_t<TB>, TC>{
                   a.data, b.data, left ? 1 : a.strides[0], left ? a.strides[0] : 1,
                   right ? 1 : b.strides[0], right ? b.strides[0] : 1,
                   left ? a.extent(0) : a.extent(1), c, output == dsv3::Output::add});
}

template <Product p, class TA, class TB, class TC>
void batched_gemm(Device& device, dsv3::ProductTag<p> tag, View<TA, 3> a, View<TB, 3> b,
                  View<TC, 3> c, dsv3::Output output) {
  for (Index i = 0; i < c.extent(0); ++i) gemm(device, tag, a[i], b[i], c[i], output);
}

// f(e, first row, rows) for each expert.
void for_each_expert(Device& device, View<const Index, 1> offsets, auto&& f) {
  for (Index e = 0; e + 1 < offsets.extent(0); ++e) {
    Index segment[2];
    copy_to_host(device, segment, offsets.data + e, Index{sizeof(segment)});
    f(e, segment[0], segment[1] - segment[0]);
  }
}

template <Product p, class TA, class TB, class TC, int RankB, int RankC>
void grouped_gemm(Device& device, dsv3::ProductTag<p> tag, View<TA, 2> a, View<TB, RankB> b,
                  View<TC, RankC> c, View<const Index, 1> offsets, dsv3::Output output) {
  for_each_expert(device, offsets, [&](Index e, Index first, Index count) {
    if constexpr (p == Product::tn)
      gemm(device, tag, a.rows(first, count), b.rows(first, count), c[e], output);
    else
      gemm(device, tag, a.rows(first, count), b[e], c.rows(first, count), output);
  });
}

// One element of a product of codes: the sums of the segments of K within which no scale changes,
// each times both scales.
template <class CA, class CB, class TC>
struct CodesElement {
  ProductElement<CA, CB, TC> codes;
  dsv3::detail::OperandScales<float> a_scales, b_scales;

  DSV3_HD void operator()(auto team, Index element) const {
    const auto& c = codes.c;
    const Index i = element / c.extent(1), j = element % c.extent(1);
    float total = 0;
    for (Index first = 0, count = 0; first < codes.depth; first += count) {
      count = codes.depth - first < 128 ? codes.depth - first : Index{128};
      for (const auto& scales : {a_scales, b_scales}) {
        const Index left = scales.k_group - first % scales.k_group;
        if (scales.k_stride != 0 && left < count) count = left;
      }
      const float sum = team.dot(
          count, [&](Index k) { return float(codes.a[i * codes.a_row + (first + k) * codes.a_k]); },
          [&](Index k) { return float(codes.b[(first + k) * codes.b_k + j * codes.b_column]); });
      total = dsv3::fma(sum, a_scales.at(i, first) * b_scales.at(j, first), total);
    }
    team.once([&] { c(i, j) = TC(codes.add ? float(c(i, j)) + total : total); });
  }
};

template <Product p, class CA, class CB, class TC>
void gemm(Device& device, dsv3::ProductTag<p>, Quantized<CA> a, Quantized<CB> b, View<TC, 2> c,
          dsv3::Output output) {
  dsv3::detail::check_product<p>("gemm", a.extent(0), a.extent(1), b.extent(0), b.extent(1),
                                 c.extent(0), c.extent(1));
  constexpr bool left = p == Product::tn, right = p == Product::nt;
  for_each_row(
      device, c.size(),
      CodesElement<std::remove_const_t<CA>, std::remove_const_t<CB>, TC>{
          {a.codes.data, b.codes.data, left ? 1 : a.codes.strides[0], left ? a.codes.strides[0] : 1,
           right ? 1 : b.codes.strides[0], right ? b.codes.strides[0] : 1,
           left ? a.extent(0) : a.extent(1), c, output == dsv3::Output::add},
          dsv3::detail::operand_scales(a, !left),
          dsv3::detail::operand_scales(b, right)});
}

template <Product p, class CA, class CB, class TC>
requires(p != Product::tn) void grouped_gemm(Device& device, dsv3::ProductTag<p> tag,
                                             Quantized<CA> a, QuantizedStack<CB> b, View<TC, 2> c,
                                             View<const Index, 1> offsets, dsv3::Output output) {
  for_each_expert(device, offsets, [&](Index e, Index first, Index count) {
    gemm(device, tag, a.rows(first, count), b[e], c.rows(first, count), output);
  });
}

template <class CA, class CB, class TC>
void grouped_gemm(Device& device, dsv3::ProductTag<Product::tn> tag, Quantized<CA> a,
                  Quantized<CB> b, View<TC, 3> c, View<const Index, 1> offsets,
                  dsv3::Output output) {
  for_each_expert(device, offsets, [&](Index e, Index first, Index count) {
    gemm(device, tag, a.segment(e, first, count), b.segment(e, first, count), c[e], output);
  });
}

// The stable counting sort by one thread.
struct SortByExpert {
  View<const std::int32_t, 2> topk_idx;
  View<Index, 1> offsets;
  View<std::int32_t, 1> pair_of_slot;
  View<std::int32_t, 2> slot_of_pair;

  DSV3_HD void operator()(auto team, Index) const {
    team.once([&] {
      const Index k = topk_idx.extent(1), experts = offsets.extent(0) - 1;
      Index slot = 0;
      for (Index e = 0; e < experts; ++e) {
        offsets(e) = slot;
        for (Index p = 0; p < topk_idx.size(); ++p)
          if (topk_idx(p / k, p % k) == e) {
            pair_of_slot(slot) = static_cast<std::int32_t>(p);
            slot_of_pair(p / k, p % k) = static_cast<std::int32_t>(slot++);
          }
      }
      offsets(experts) = slot;
    });
  }
};

inline void sort_by_expert(Device& device, View<const std::int32_t, 2> topk_idx,
                           View<Index, 1> offsets, View<std::int32_t, 1> pair_of_slot,
                           View<std::int32_t, 2> slot_of_pair) {
  for_each_row(device, 1, SortByExpert{topk_idx, offsets, pair_of_slot, slot_of_pair});
}

}  // namespace gpu
