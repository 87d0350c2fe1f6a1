// DryRun: stands in for a backend and does nothing, for counting the memory that a computation
// takes.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/core/cache_pages.hpp>
#include <dsv3/core/product.hpp>
#include <dsv3/core/scalar.hpp>

namespace dsv3 {

/// Stands in for a backend while an Arena without memory counts. Every primitive returns at once.
template <class Backend>
struct DryRun {
  Backend& backend;
};

template <class B, class Body>
void for_each_row(DryRun<B>&, Index, Body&&) {}

template <class B, Product p>
void gemm(DryRun<B>&, ProductTag<p>, auto&&...) {}

template <class B, Product p>
void batched_gemm(DryRun<B>&, ProductTag<p>, auto&&...) {}

template <class B, Product p>
void grouped_gemm(DryRun<B>&, ProductTag<p>, auto&&...) {}

template <class B>
void sort_by_expert(DryRun<B>&, auto&&...) {}

template <class B>
void copy_to_backend(DryRun<B>&, void*, const void*, Index) {}

template <class B>
void copy_to_host(DryRun<B>&, void*, const void*, Index) {}

/// Takes what the backend's own form would take.
template <class B, class T>
requires requires(const B& b, Index n) { fused_attention_forward_bytes<T>(b, n, n, n, n, n); }
void fused_attention_forward(DryRun<B>& dry, View<const T, 3> q, View<const T, 3> kv,
                             View<const T, 2> k_rope, View<const std::int32_t, 1>,
                             View<const std::int32_t, 1>, View<const std::int32_t, 1>,
                             View<const std::int32_t, 1>, double, View<T, 3>, View<accum_t<T>, 2>,
                             Arena& scratch) {
  const ArenaScope scope(scratch);
  const Index d_r = k_rope.extent(1), d_n = q.extent(2) - d_r;
  scratch.take<std::byte>({fused_attention_forward_bytes<T>(dry.backend, q.extent(0), q.extent(1),
                                                            d_n, d_r, kv.extent(2) - d_n)});
}

/// Takes what the backend's own form would take.
template <class B, class T>
requires requires(const B& b, Index n) { fused_attention_backward_bytes<T>(b, n, n, n, n, n); }
void fused_attention_backward(DryRun<B>& dry, View<const T, 3> q, View<const T, 3> kv,
                              View<const T, 2> k_rope, View<const std::int32_t, 1>,
                              View<const std::int32_t, 1>, double, View<const T, 3>,
                              View<const accum_t<T>, 2>, View<const T, 3>, View<T, 3>, View<T, 3>,
                              View<T, 2>, Arena& scratch) {
  const ArenaScope scope(scratch);
  const Index d_r = k_rope.extent(1), d_n = q.extent(2) - d_r;
  scratch.take<std::byte>({fused_attention_backward_bytes<T>(dry.backend, q.extent(0), q.extent(1),
                                                             d_n, d_r, kv.extent(2) - d_n)});
}

/// Takes what the backend's own form would take.
template <class B, class T, class C>
requires requires(const B& b, Index n) { fused_latent_attention_bytes<T>(b, n, n, n, n, n); }
void fused_latent_attention(DryRun<B>& dry, View<const T, 3>, View<const T, 3> q,
                            CachePages<const C> pages, const CacheTable& table, double, View<T, 3>,
                            Arena& scratch) {
  const ArenaScope scope(scratch);
  scratch.take<std::byte>(
      {fused_latent_attention_bytes<T>(dry.backend, q.extent(0), q.extent(1),
                                       pages.latent.extent(1), pages.rope.extent(1), table.keys)});
}

}  // namespace dsv3
