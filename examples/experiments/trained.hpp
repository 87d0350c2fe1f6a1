// A trained model, for experiments that generate with it.
#pragma once

#include <dsv3/model.hpp>

#include "training.hpp"

namespace experiment {

struct Trained {
  dsv3::Model<dsv3::Bf16, dsv3::Cpu>& model;
  const Domains& domains;

  /// The first `count` tokens of a domain's first held-out row.
  std::vector<std::int32_t> prompt(Index domain, Index count) const {
    std::vector<std::int32_t> storage(
        static_cast<std::size_t>(Domains::held_out_rows * (domains.row_length() + 1)));
    domains.held_out_batch(domain,
                           {storage.data(), {Domains::held_out_rows, domains.row_length() + 1}});
    storage.resize(static_cast<std::size_t>(std::min(count, domains.row_length())));
    return storage;
  }
};

}  // namespace experiment
