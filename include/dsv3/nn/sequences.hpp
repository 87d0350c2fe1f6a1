// Which tokens of a flat batch belong together.
#pragma once

#include <dsv3/core/view.hpp>

namespace dsv3 {

/// A batch without padding: all tokens of all sequences in one row of T, each sequence contiguous.
/// A sequence is a row of the caller's batch, or one document of it. Token t attends to tokens
/// begin[t] ... t; it is attended by tokens t ... end[t] - 1.
///
/// Where the keys are not the tokens themselves (those of a cache stand before them), first_key and
/// own_key name rows of the keys: t attends to rows first_key[t] ... own_key[t]. Forward only.
///
/// Shapes   T tokens, S sequences. All in the backend's memory.
struct Sequences {
  View<const std::int32_t, 1> position;  // [T] the angle of RoPE is position * frequency
  View<const std::int32_t, 1> begin;     // [T] first token of t's sequence
  View<const std::int32_t, 1> end;       // [T] one past the last token of t's sequence
  View<const std::int32_t, 1> first;     // [S + 1] first token of each sequence, then T
  View<const std::int32_t, 1> sequence;  // [T] the sequence of t
  View<const std::int32_t, 1> first_key = {}, own_key = {};  // [T]; or empty: begin[t] and t

  constexpr Index tokens() const { return position.extent(0); }
  constexpr Index count() const { return first.extent(0) - 1; }
};

}  // namespace dsv3
