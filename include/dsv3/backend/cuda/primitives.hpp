// The primitives of Cuda that start kernels of ours, declared: nvcc defines them, and the host's
// compiler links to what nvcc made of them.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/core/product.hpp>
#include <dsv3/core/quantized.hpp>

namespace dsv3 {

/// Primitive. Calls body(team, row) for every row in [0, rows), in any order: one block of threads
/// for each. Not inlined, so that a .cpp file finds it in the .o of a .cu file.
template <class Body>
[[gnu::noinline]] void for_each_row(Cuda& cuda, Index rows, Body body);

/// Primitive. As sort_by_expert of the CPU backends, except that a value outside [0, E) is reported
/// by the next wait, as std::invalid_argument; until then it counts as expert 0.
template <class Unused = void>
[[gnu::noinline]] void sort_by_expert(Cuda& cuda, View<const std::int32_t, 2> topk_idx,
                                      View<Index, 1> offsets, View<std::int32_t, 1> pair_of_slot,
                                      View<std::int32_t, 2> slot_of_pair);

/// Primitive. The matrix product that the tag names; operands may have rows apart, and differ in
/// type.
///
/// Types    double; float and bf16 in any mixture, also of the output. Sums in float, in double
///          where c is double; each element of c is rounded once.
/// Errors   std::invalid_argument when extents disagree, before anything is written.
template <Product p, class TA, class TB, class TC>
[[gnu::noinline]] void gemm(Cuda& cuda, ProductTag<p>, View<TA, 2> a, View<TB, 2> b, View<TC, 2> c,
                            Output output);

/// Primitive. gemm for each entry of the first dimension.
template <Product p, class TA, class TB, class TC>
[[gnu::noinline]] void batched_gemm(Cuda& cuda, ProductTag<p>, View<TA, 3> a, View<TB, 3> b,
                                    View<TC, 3> c, Output output);

/// Primitive. One product for each expert, over its rows offsets[e] ... offsets[e + 1] - 1, as
/// grouped_gemm of the CPU backends. The offsets stay on the device.
template <Product p, class TA, class TB, class TC, int RankB, int RankC>
[[gnu::noinline]] void grouped_gemm(Cuda& cuda, ProductTag<p>, View<TA, 2> a, View<TB, RankB> b,
                                    View<TC, RankC> c, View<const Index, 1> offsets, Output output);

/// Primitive. The product of two matrices of codes, as gemm on codes of the CPU backends:
///
///     total = fma(sum in a segment of K, scale_a * scale_b, total)        segments in order
///
/// Source   spec 7.4.
template <Product p, class CA, class CB, class TC>
[[gnu::noinline]] void gemm(Cuda& cuda, ProductTag<p>, Quantized<CA> a, Quantized<CB> b,
                            View<TC, 2> c, Output output);

/// Primitive. The same for each expert: nt and nn.
template <Product p, class CA, class CB, class TC>
requires(p != Product::tn)
    [[gnu::noinline]] void grouped_gemm(Cuda& cuda, ProductTag<p>, Quantized<CA> a,
                                        QuantizedStack<CB> b, View<TC, 2> c,
                                        View<const Index, 1> offsets, Output output);

/// Primitive. The same for each expert: tn, over groups of rows as in Quantized::segment.
template <class CA, class CB, class TC>
[[gnu::noinline]] void grouped_gemm(Cuda& cuda, ProductTag<Product::tn>, Quantized<CA> a,
                                    Quantized<CB> b, View<TC, 3> c, View<const Index, 1> offsets,
                                    Output output);

/// Elements of logits that the head holds at once: 512 MiB of floats, because each part reads and
/// writes the whole gradient of the head.
inline Index logits_at_once(const Cuda&) { return Index{1} << 27; }

}  // namespace dsv3
