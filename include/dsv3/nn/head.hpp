// The output head with its cross-entropy, by chunks of tokens: never tokens x vocabulary at once.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/core/check.hpp>
#include <dsv3/core/dry_run.hpp>
#include <dsv3/core/math.hpp>
#include <dsv3/core/weights.hpp>
#include <dsv3/nn/linear.hpp>
#include <dsv3/nn/rows.hpp>

namespace dsv3 {
namespace detail {

// -log softmax(z)[label] of one row; 0 where the label is negative (ignored).
template <class A>
struct CrossEntropyRow {
  View<const A, 2> z;
  View<const std::int32_t, 1> labels;
  View<A, 1> nll;
  View<A, 1> lse;

  DSV3_HD void operator()(auto team, Index t) const {
    const Index n = z.extent(1), label = labels(t);
    const A largest = team.max(n, [&](Index v) { return z(t, v); });
    const A sum = team.sum(n, [&](Index v) { return exp(z(t, v) - largest); });
    team.once([&] {
      lse(t) = largest + log(sum);
      nll(t) = label < 0 ? A(0) : lse(t) - z(t, label);
    });
  }
};

// dz = scale (softmax(z) - onehot(label)); zero where the label is ignored. dz may be z.
template <class A, class T>
struct CrossEntropyBackwardRow {
  View<const A, 2> z;
  View<const std::int32_t, 1> labels;
  View<const A, 1> lse;
  double scale;
  View<T, 2> dz;

  DSV3_HD void operator()(auto team, Index t) const {
    const Index label = labels(t);
    const A s = label < 0 ? A(0) : A(scale), normaliser = lse(t);
    team.each(z.extent(1), [&](Index v) {
      const A p = exp(z(t, v) - normaliser);
      dz(t, v) = T(s * (v == label ? p - A(1) : p));
    });
  }
};

// sum[0] = scale * sum_t x[t]
template <class A>
struct SumRow {
  View<const A, 1> x;
  double scale;
  View<A, 1> sum;

  DSV3_HD void operator()(auto team, Index) const {
    const A total = team.sum(x.extent(0), [&](Index t) { return x(t); });
    team.once([&] { sum(0) = total * A(scale); });
  }
};

}  // namespace detail

/// Elements of logits that a backend holds at once; a backend that has more to do before a launch
/// pays, and more memory, overloads the second.
constexpr Index logits_at_once() { return Index{1} << 22; }  // 16 MiB of floats
template <class Backend>
constexpr Index logits_at_once(const Backend&) {
  return logits_at_once();
}
template <class Backend>
constexpr Index logits_at_once(const DryRun<Backend>& dry) {
  return logits_at_once(dry.backend);
}

/// logits = x weight^T;  loss = scale * sum_t -log softmax(logits[t])[labels[t]].
///
/// Shapes   T tokens, H hidden_size, V vocab_size; weight [V, H], x [T, H] after the norm, labels
///          [T] with negative values ignored.
/// Types    logits in P::accumulator; x in P::activation.
/// Errors   std::invalid_argument when extents disagree.
/// Source   spec 2.5. Loss and gradients come from one pass over the logits, so that they are
///          computed once.
template <class P>
struct Head {
  using T = typename P::activation;
  using Weight = product_matrix_of<const operand_t<P>>;
  using A = typename P::accumulator;

  /// Tokens whose logits are held at once: as many as make `elements` of them, at least 64.
  static constexpr Index chunk_tokens(Index vocab, Index elements = logits_at_once()) {
    const Index fit = elements / vocab, most = elements >> 12;
    return fit < 64 ? 64 : (fit > most ? most : fit);
  }

  /// Writes the logits [T, V].
  template <class Backend>
  void logits(Backend& backend, const Weight& weight, View<const T, 2> x, View<A, 2> z) const {
    gemm(backend, nt, x, weight, z, Output::overwrite);
  }

  /// Writes nll [T], each token's -log probability (0 where ignored), and loss [1].
  template <class Backend>
  void loss(Backend& backend, const Weight& weight, View<const T, 2> x,
            View<const std::int32_t, 1> labels, double scale, View<A, 1> nll, View<A, 1> loss,
            Arena& scratch) const {
    run(backend, weight, x, labels, scale, nll, loss, scratch, [](auto&&...) {});
  }

  /// Writes nll and loss as loss() does; overwrites dx [T, H] and adds to dweight [V, H] the
  /// gradients of gradient_scale * sum_t nll[t].
  template <class Backend>
  void loss_and_gradients(Backend& backend, const Weight& weight, View<const T, 2> x,
                          View<const std::int32_t, 1> labels, double scale, double gradient_scale,
                          View<A, 1> nll, View<A, 1> loss, View<T, 2> dx,
                          View<typename P::master, 2> dweight, Arena& scratch) const {
    check_shape("Head::loss_and_gradients", "dx", dx, x.extent(0), "rows of x", x.extent(1),
                "columns of x");
    run(backend, weight, x, labels, scale, nll, loss, scratch,
        [&](Index first, View<A, 2> z, View<const std::int32_t, 1> chunk_labels,
            View<const A, 1> lse) {
          const ArenaScope scope(scratch);
          const Index tokens = z.extent(0);
          View<T, 2> dz;
          if constexpr (std::is_same_v<T, A>)
            dz = z;
          else
            dz = scratch.take<T>({tokens, z.extent(1)});
          for_each_row(
              backend, tokens,
              detail::CrossEntropyBackwardRow<A, T>{z, chunk_labels, lse, gradient_scale, dz});
          const Linear linear;
          linear.backward_input(backend, weight, dz, dx.rows(first, tokens), Output::overwrite);
          linear.backward_weight(backend, dz, x.rows(first, tokens), dweight);
        });
  }

 private:
  template <class Backend>
  void run(Backend& backend, const Weight& weight, View<const T, 2> x,
           View<const std::int32_t, 1> labels, double scale, View<A, 1> nll, View<A, 1> loss,
           Arena& scratch, auto&& per_chunk) const {
    const Index tokens = x.extent(0), vocab = weight.extent(0);
    check_shape("Head::loss", "labels", labels, tokens, "rows of x");
    check_shape("Head::loss", "nll", nll, tokens, "rows of x");
    const ArenaScope scope(scratch);
    const Index most = chunk_tokens(vocab, logits_at_once(backend));
    const auto logits_chunk = scratch.take<A>({tokens < most ? tokens : most, vocab});
    const auto lse = scratch.take<A>({tokens});
    for (Index first = 0; first < tokens; first += most) {
      const Index count = tokens - first < most ? tokens - first : most;
      const auto z = logits_chunk.rows(0, count);
      const auto part = labels.rows(first, count);
      logits(backend, weight, x.rows(first, count), z);
      for_each_row(
          backend, count,
          detail::CrossEntropyRow<A>{z, part, nll.rows(first, count), lse.rows(first, count)});
      per_chunk(first, z, part, as_const(lse.rows(first, count)));
    }
    for_each_row(backend, 1, detail::SumRow<A>{nll, scale, loss});
  }
};

}  // namespace dsv3
