// The token embedding, forward and backward.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/core/check.hpp>
#include <dsv3/core/math.hpp>
#include <dsv3/core/scalar.hpp>

namespace dsv3 {
namespace detail {

template <class W, class Y>
struct EmbeddingForwardRow {
  View<const W, 2> weight;
  View<const std::int32_t, 1> tokens;
  View<Y, 2> y;

  DSV3_HD void operator()(auto team, Index t) const {
    const Index id = tokens(t);
    team.each(y.extent(1), [&](Index j) { y(t, j) = Y(accum_t<W>(weight(id, j))); });
  }
};

// One row of the vocabulary: its tokens in ascending order of position, so that the sum repeats.
template <class DY, class G>
struct EmbeddingBackwardRow {
  View<const DY, 2> dy;
  View<const Index, 1> offsets;
  View<const std::int32_t, 1> positions;  // of every token, sorted by id
  View<G, 2> dweight;

  DSV3_HD void operator()(auto team, Index id) const {
    for (Index s = offsets(id); s < offsets(id + 1); ++s) {
      const Index t = positions(s);
      team.each(dy.extent(1), [&](Index j) { dweight(id, j) += G(accum_t<DY>(dy(t, j))); });
    }
  }
};

}  // namespace detail

/// y[t] = weight[tokens[t]], without scaling or position.
///
/// Shapes   T tokens; weight [vocab_size, H], tokens [T] in [0, vocab_size), y [T, H].
/// Errors   std::invalid_argument when extents disagree. Token ids are checked on the host, where
///          they enter the model.
/// Source   spec 2.3.
struct Embedding {
  /// Writes y [T, H].
  template <class Backend, class W, class Y>
  void forward(Backend& backend, View<const W, 2> weight, View<const std::int32_t, 1> tokens,
               View<Y, 2> y) const {
    check_shape("Embedding::forward", "y", y, tokens.extent(0), "size of tokens", weight.extent(1),
                "columns of weight");
    for_each_row(backend, tokens.extent(0), detail::EmbeddingForwardRow<W, Y>{weight, tokens, y});
  }

  /// Adds to dweight, for each id in the order of its positions.
  template <class Backend, class DY, class G>
  void backward(Backend& backend, View<const std::int32_t, 1> tokens, View<const DY, 2> dy,
                View<G, 2> dweight, Arena& scratch) const {
    const Index n = tokens.extent(0), vocab = dweight.extent(0);
    check_shape("Embedding::backward", "dy", dy, n, "size of tokens", dweight.extent(1),
                "columns of weight");
    const ArenaScope scope(scratch);
    const auto offsets = scratch.take<Index>({vocab + 1});
    const auto positions = scratch.take<std::int32_t>({n});
    const auto slots = scratch.take<std::int32_t>({n, 1});
    sort_by_expert(backend, View<const std::int32_t, 2>(tokens.data, {n, 1}), offsets, positions,
                   slots);
    for_each_row(backend, vocab,
                 detail::EmbeddingBackwardRow<DY, G>{dy, offsets, positions, dweight});
  }
};

}  // namespace dsv3
