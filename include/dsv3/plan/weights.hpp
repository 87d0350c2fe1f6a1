// Plan: bytes of weights, gradients and moments in one process, as this library has them.
#pragma once

#include <dsv3/core/moment.hpp>
#include <dsv3/nn/mtp.hpp>
#include <dsv3/nn/transformer.hpp>

namespace dsv3::plan {

/// Bytes of one set of all trainable tensors with elements of U, each starting at a multiple of 64.
template <class P, class U>
constexpr Index tensor_bytes(const ModelConfig& c) {
  Arena arena;
  WeightViews<U>::take_matrix(arena, c.vocab_size, c.hidden_size);
  WeightViews<U>::take_vector(arena, c.hidden_size);
  WeightViews<U>::take_matrix(arena, c.vocab_size, c.hidden_size);
  for (Index l = 0; l < c.num_hidden_layers; ++l) Block<P>::template make_tensors<U>(c, l, arena);
  for (Index k = 0; k < c.num_nextn_predict_layers; ++k)
    Mtp<P>::template make_tensors<U>(c, c.num_hidden_layers + k, arena);
  return arena.used();
}

/// Bytes of weights: masters, the rounded or quantised copy where operands have another type, gate
/// biases.
template <class P>
constexpr Index weight_bytes(const ModelConfig& c) {
  Index bytes = tensor_bytes<P, typename P::master>(c);
  if (!std::is_same_v<typename P::master, operand_t<P>>) bytes += tensor_bytes<P, operand_t<P>>(c);
  return bytes + Arena::bytes<typename P::accumulator>(c.moe_layers() * c.n_routed_experts);
}

/// Bytes of gradients and AdamW's two moments. The trainer's counters (load of experts, partial
/// sums of the gradient norm) come on top: 8 bytes for every expert and for every 4096 parameters.
template <class P>
constexpr Index optimizer_bytes(const ModelConfig& c) {
  return tensor_bytes<P, typename P::master>(c) + tensor_bytes<P, typename P::moment>(c) +
         tensor_bytes<P, second_moment_t<P>>(c);
}

}  // namespace dsv3::plan
