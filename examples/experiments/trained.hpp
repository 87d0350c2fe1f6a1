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

/// Gives a model the weights and gate biases of another of the same shapes.
inline void copy_weights(const dsv3::Model<dsv3::Bf16, dsv3::Cpu>& from,
                         dsv3::Model<dsv3::Bf16, dsv3::Cpu>& to) {
  dsv3::for_each_tensor<dsv3::Bf16>([](const std::string&, const auto& a,
                                       const auto& b) { std::copy_n(a.data, a.size(), b.data); },
                                    from.masters(), to.masters());
  std::copy_n(from.bias().data, from.bias().size(), to.bias().data);
  to.refresh_operands();
}

}  // namespace experiment
