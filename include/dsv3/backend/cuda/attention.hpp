// Attention of training and prefill in bf16 as a GPU offers it. For the host's compiler too, which
// sees declarations: attention.cuh has what only nvcc compiles.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/core/arena.hpp>
#include <dsv3/core/scalar.hpp>

namespace dsv3 {
namespace detail {

// The widest q and the widest o of one head that the kernels hold.
inline constexpr Index widest_attention_head = 256;

// Words of a tile map: its counters, then a place for each token, of which every one may be a
// sequence and so a tile.
constexpr Index attention_map_words(Index tokens) { return 4 + tokens; }

}  // namespace detail

/// Bytes that fused_attention_forward takes from its arena: a list of tiles.
template <class T>
requires std::is_same_v<T, bf16> Index fused_attention_forward_bytes(const Cuda& /*cuda*/,
                                                                     Index tokens, Index /*heads*/,
                                                                     Index /*d_n*/, Index /*d_r*/,
                                                                     Index /*d_v*/) {
  return Arena::bytes<std::int32_t>(detail::attention_map_words(tokens));
}

/// Bytes that fused_attention_backward takes from its arena: a list of tiles, two numbers for each
/// token and head, and each head's gradient of the rotated key.
template <class T>
requires std::is_same_v<T, bf16> Index fused_attention_backward_bytes(const Cuda& /*cuda*/,
                                                                      Index tokens, Index heads,
                                                                      Index /*d_n*/, Index d_r,
                                                                      Index /*d_v*/) {
  return Arena::bytes<std::int32_t>(detail::attention_map_words(tokens)) +
         2 * Arena::bytes<float>(heads * tokens) + Arena::bytes<float>(tokens * heads * d_r);
}

/// Fused form of Attention::forward on tensor cores. float and double keep the row kernels.
///
/// The bits of a token depend on its query and on the keys it sees, not on neighbours in the batch
/// or on where its tile begins: key tiles start at multiples of 64, or of 128 where wgmma serves,
/// from the first key, and a tile of queries is of one sequence.
///
/// Shapes   q [T, n, d_n + d_r], kv [keys, n, d_n + d_v], k_rope [keys, d_r]; begin, end, first_key
///          and own_key [T] as in Sequences, o [T, n, d_v], lse [T, n]. Tokens of one sequence have
///          the same first key.
/// Types    bf16; scores, weights' sums and outputs are summed in float, weights enter the product
///          with values as bf16.
/// Errors   std::invalid_argument where q or o of a head is wider than 256, before any launch.
/// Source   Dao 2023, arXiv:2307.08691; spec 4.6.
template <class T>
requires std::is_same_v<T, bf16>
void fused_attention_forward(Cuda& cuda, View<const T, 3> q, View<const T, 3> kv,
                             View<const T, 2> k_rope, View<const std::int32_t, 1> begin,
                             View<const std::int32_t, 1> end, View<const std::int32_t, 1> first_key,
                             View<const std::int32_t, 1> own_key, double scale, View<T, 3> o,
                             View<accum_t<T>, 2> lse, Arena& scratch);

/// Fused form of Attention::backward on tensor cores: kernels sum over queries for dkv and over
/// keys for dq, each in ascending order, without atomic additions. Overwrites dq, dkv and
/// dk_rope, whose sum over heads runs in ascending order.
///
/// Tiles start at multiples of 64 from the start of their sequence, so that neighbours in the batch
/// change no bit.
///
/// Types    bf16; sums in float, P and dS enter products as bf16.
/// Errors   std::invalid_argument where q or o of a head is wider than 256, before any launch.
/// Source   spec 4.7.
template <class T>
requires std::is_same_v<T, bf16>
void fused_attention_backward(Cuda& cuda, View<const T, 3> q, View<const T, 3> kv,
                              View<const T, 2> k_rope, View<const std::int32_t, 1> begin,
                              View<const std::int32_t, 1> end, double scale, View<const T, 3> o,
                              View<const accum_t<T>, 2> lse, View<const T, 3> d_o, View<T, 3> dq,
                              View<T, 3> dkv, View<T, 2> dk_rope, Arena& scratch);

}  // namespace dsv3
