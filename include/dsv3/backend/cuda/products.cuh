// The products of Cuda: by cuBLASLt where it has the types, by wgmma on Hopper, else by the
// portable kernels.
#pragma once

#include <dsv3/backend/cuda/hopper_bf16.cuh>
#include <dsv3/backend/cuda/hopper_codes.cuh>
#include <dsv3/backend/cuda/primitives.hpp>
#include <dsv3/backend/cuda/tile_product.cuh>
#include <dsv3/backend/cuda/vendor_products.hpp>

namespace dsv3 {

template <Product p, class TA, class TB, class TC>
void gemm(Cuda& cuda, ProductTag<p>, View<TA, 2> a, View<TB, 2> b, View<TC, 2> c, Output output) {
  detail::check_product<p>("gemm", a.extent(0), a.extent(1), b.extent(0), b.extent(1), c.extent(0),
                           c.extent(1));
  if (c.size() == 0) return;
  const bool add = output == Output::add;
  if constexpr (detail::vendor_multiplies<TA, TB, TC>)
    if (cuda.options().vendor_products && a.size() > 0)
      return detail::vendor_gemm<p>(cuda, detail::batch_of_one(a), detail::batch_of_one(b),
                                    detail::batch_of_one(c), add);
  detail::cuda_gemm<p>(cuda, a, b, c, add);
}

template <Product p, class TA, class TB, class TC>
void batched_gemm(Cuda& cuda, ProductTag<p>, View<TA, 3> a, View<TB, 3> b, View<TC, 3> c,
                  Output output) {
  check_equal("batched_gemm", "batch of a", a.extent(0), "batch of c", c.extent(0));
  check_equal("batched_gemm", "batch of b", b.extent(0), "batch of c", c.extent(0));
  detail::check_product<p>("batched_gemm", a.extent(1), a.extent(2), b.extent(1), b.extent(2),
                           c.extent(1), c.extent(2));
  if (c.size() == 0) return;
  const bool add = output == Output::add;
  if constexpr (detail::vendor_multiplies<TA, TB, TC>)
    if (cuda.options().vendor_products && a.size() > 0)
      return detail::vendor_gemm<p>(cuda, a, b, c, add);
  detail::cuda_batched_gemm<p>(cuda, a, b, c, add);
}

template <Product p, class TA, class TB, class TC, int RankB, int RankC>
void grouped_gemm(Cuda& cuda, ProductTag<p>, View<TA, 2> a, View<TB, RankB> b, View<TC, RankC> c,
                  View<const Index, 1> offsets, Output output) {
  static_assert(p == Product::tn ? (RankB == 2 && RankC == 3) : (RankB == 3 && RankC == 2),
                "grouped_gemm: the tensor with one matrix for each expert has rank 3");
  const Index experts = offsets.extent(0) - 1;
  if constexpr (p == Product::tn) {
    check_equal("grouped_gemm", "matrices of c", c.extent(0), "experts", experts);
    check_equal("grouped_gemm", "rows of a", a.extent(0), "rows of b", b.extent(0));
    check_equal("grouped_gemm", "columns of a", a.extent(1), "rows of each c", c.extent(1));
    check_equal("grouped_gemm", "columns of b", b.extent(1), "columns of each c", c.extent(2));
  } else {
    check_equal("grouped_gemm", "matrices of b", b.extent(0), "experts", experts);
    detail::check_product<p>("grouped_gemm", a.extent(0), a.extent(1), b.extent(1), b.extent(2),
                             c.extent(0), c.extent(1));
  }
  if (experts <= 0 || c.size() == 0) return;
  if constexpr (detail::hopper_bf16_types<p, TA, TB, TC>)
    if (detail::hopper_bf16_fit(cuda, ProductTag<p>{}, a, b, c))
      return detail::hopper_bf16_grouped(cuda, ProductTag<p>{}, a, b, c, offsets, output);
  detail::cuda_grouped_gemm<p>(cuda, a, b, c, offsets, output == Output::add);
}

template <Product p, class CA, class CB, class TC>
void gemm(Cuda& cuda, ProductTag<p>, Quantized<CA> a, Quantized<CB> b, View<TC, 2> c,
          Output output) {
  detail::check_product<p>("gemm", a.extent(0), a.extent(1), b.extent(0), b.extent(1), c.extent(0),
                           c.extent(1));
  if (c.size() == 0) return;
  if constexpr (detail::hopper_codes_types<CA, CB, TC>)
    if (detail::hopper_codes_fit(cuda, ProductTag<p>{}, a, b, c))
      return detail::hopper_codes_gemm(cuda, ProductTag<p>{}, a, b, c, output);
  detail::cuda_gemm<p>(cuda, a, b, c, output == Output::add);
}

template <Product p, class CA, class CB, class TC>
requires(p != Product::tn) void grouped_gemm(Cuda& cuda, ProductTag<p>, Quantized<CA> a,
                                             QuantizedStack<CB> b, View<TC, 2> c,
                                             View<const Index, 1> offsets, Output output) {
  const Index experts = offsets.extent(0) - 1;
  check_equal("grouped_gemm", "matrices of b", b.extent(0), "experts", experts);
  detail::check_product<p>("grouped_gemm", a.extent(0), a.extent(1), b.extent(1), b.extent(2),
                           c.extent(0), c.extent(1));
  if (experts <= 0 || c.size() == 0) return;
  if constexpr (detail::hopper_codes_types<CA, CB, TC>)
    if (detail::hopper_codes_fit(cuda, ProductTag<p>{}, a, b, c))
      return detail::hopper_codes_grouped(cuda, ProductTag<p>{}, a, b, c, offsets, output);
  detail::cuda_grouped_gemm<p>(cuda, a, b, c, offsets, output == Output::add);
}

template <class CA, class CB, class TC>
void grouped_gemm(Cuda& cuda, ProductTag<Product::tn>, Quantized<CA> a, Quantized<CB> b,
                  View<TC, 3> c, View<const Index, 1> offsets, Output output) {
  const Index experts = offsets.extent(0) - 1;
  check_equal("grouped_gemm", "matrices of c", c.extent(0), "experts", experts);
  check_equal("grouped_gemm", "rows of a", a.extent(0), "rows of b", b.extent(0));
  check_equal("grouped_gemm", "columns of a", a.extent(1), "rows of each c", c.extent(1));
  check_equal("grouped_gemm", "columns of b", b.extent(1), "columns of each c", c.extent(2));
  if (experts <= 0 || c.size() == 0) return;
  if constexpr (detail::hopper_codes_types<CA, CB, TC>)
    if (detail::hopper_codes_fit(cuda, ProductTag<Product::tn>{}, a, b, c))
      return detail::hopper_codes_grouped(cuda, ProductTag<Product::tn>{}, a, b, c, offsets,
                                          output);
  detail::cuda_grouped_gemm<Product::tn>(cuda, a, b, c, offsets, output == Output::add);
}

}  // namespace dsv3
