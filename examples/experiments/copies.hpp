// Which nodes the copies of tokens go to, counted from the experts that the tokens chose.
#pragma once

#include <algorithm>
#include <dsv3/core/view.hpp>
#include <vector>

namespace experiment {

using dsv3::Index;
using dsv3::View;

/// Copies of tokens under node-limited routing. A node is a group of experts, each of which is on a
/// GPU of its own; row r of tokens is on GPU r, counted over all nodes and over again. A copy
/// crosses to the GPU of the same index in another node, and goes on from there to each expert that
/// is on another GPU.
///
/// Source   DeepSeek-V3, section 3.2.2.
struct Copies {
  std::vector<Index> nodes;    ///< [nodes + 1] tokens whose experts lie on 0, 1, ... nodes
  std::vector<Index> between;  ///< [nodes] copies that arrive from other nodes
  std::vector<Index> inside;   ///< [nodes] copies that go on to other GPUs of the node

  /// Counts rows of `length` tokens, the first of which is row first_row, by their choices [T, K]
  /// among `experts`.
  void add(View<const std::int32_t, 2> chosen, Index experts, Index first_row, Index length) {
    const Index each = experts / static_cast<Index>(between.size());
    for (Index t = 0; t < chosen.extent(0); ++t) {
      const Index gpu = (first_row + t / length) % experts;
      std::vector<bool> used(between.size());
      for (Index i = 0; i < chosen.extent(1); ++i) {
        const auto node = static_cast<std::size_t>(chosen(t, i) / each);
        if (!used[node] && static_cast<Index>(node) != gpu / each) ++between[node];
        if (chosen(t, i) % each != gpu % each) ++inside[node];
        used[node] = true;
      }
      ++nodes[static_cast<std::size_t>(std::count(used.begin(), used.end(), true))];
    }
  }
};

}  // namespace experiment
