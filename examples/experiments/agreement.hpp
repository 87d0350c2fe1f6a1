// How often the draft of MTP is what the main head, or the text, then says.
#pragma once

#include <algorithm>

#include "trained.hpp"

namespace experiment {

/// Over positions of held-out text of all domains, of what depth 1 says of a token: the share that
/// the main head says too when it has seen one token more, and the share that the text says.
struct Agreement {
  double with_main = 0, with_text = 0;
};

inline Agreement agreement(Trained& t) {
  const Index vocab = t.model.config().vocab_size;
  Agreement same;
  double all = 0;
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
    for (Index i = 0; i + 2 < length; ++i, ++all) {
      const Index says = best(draft, i);
      same.with_main += says == best(main, i + 1);
      same.with_text += says == text[static_cast<std::size_t>(i + 2)];
    }
  }
  return {same.with_main / all, same.with_text / all};
}

}  // namespace experiment
