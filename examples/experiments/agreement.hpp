// How often the draft of MTP is what the main head then says.
#pragma once

#include <algorithm>

#include "trained.hpp"

namespace experiment {

/// The share of positions of held-out text, of all domains, where depth 1 says of a token what the
/// main head says when it has seen one token more.
inline double agreement(Trained& t) {
  const Index vocab = t.model.config().vocab_size;
  double same = 0, all = 0;
  for (Index d = 0; d < t.domains.size(); ++d) {
    const auto text = t.prompt(d, t.domains.row_length());
    const auto length = static_cast<Index>(text.size());
    dsv3::Batch batch;
    batch.tokens = dsv3::View<const std::int32_t, 2>(text.data(), {1, length});
    const auto main = t.model.logits(batch), draft = t.model.mtp_logits(batch, 1);
    const auto best = [&](const auto& logits, Index at) {
      const auto* row = logits.data() + at * vocab;
      return std::max_element(row, row + vocab) - row;
    };
    for (Index i = 0; i + 2 < length; ++i, ++all) same += best(draft, i) == best(main, i + 1);
  }
  return same / all;
}

}  // namespace experiment
