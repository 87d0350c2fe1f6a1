// Plan: all the memory of a backend that training takes in one process, as this library takes it.
#pragma once

#include <dsv3/nn/chunks.hpp>
#include <dsv3/plan/pass.hpp>
#include <dsv3/plan/weights.hpp>
#include <dsv3/train/adamw.hpp>

namespace dsv3::plan {

/// Bytes by what they are for.
struct TrainingMemory {
  Index weights = 0;    ///< masters, operands, gate biases
  Index gradients = 0;  ///< in the masters' type
  Index moments = 0;    ///< AdamW's two
  Index counters = 0;   ///< the experts' load, losses, sums of the gradient norm, AdamW's rule
  Index pass = 0;       ///< everything kept for backward, and the largest scratch

  constexpr Index total() const { return weights + gradients + moments + counters + pass; }
};

/// Bytes of the trainer's counters, where every tensor is trained, in one group.
template <class P>
Index counter_bytes(const ModelConfig& c) {
  Arena arena, counters;
  const auto tensors = ModelTensors<P, typename P::master>::make(c, arena);
  Index partial_sums = 0;
  for_each_tensor<P>(
      [&](const std::string&, const auto& view) {
        partial_sums += groups_of(view.size(), dsv3::detail::optimizer_chunk);
      },
      tensors);
  counters.take<Index>({c.moe_layers(), c.n_routed_experts});
  counters.take<double>({partial_sums});
  counters.take<double>({2 + c.num_nextn_predict_layers});
  counters.take<double>({2});
  counters.take<AdamW>({1});
  return counters.used();
}

/// Memory of Model and Trainer on the backend Cpu with so many threads, for passes over B rows of T
/// tokens: pass_bytes and its limits apply. Exact, to the byte.
template <class P>
TrainingMemory training_memory(const ModelConfig& c, Index B, Index T, Keep keep, int threads) {
  TrainingMemory m;
  m.weights = weight_bytes<P>(c);
  m.gradients = tensor_bytes<P, typename P::master>(c);
  m.moments = optimizer_bytes<P>(c) - m.gradients;
  m.counters = counter_bytes<P>(c);
  m.pass = pass_bytes<P>(c, B, T, keep, threads);
  return m;
}

}  // namespace dsv3::plan
