// CachePages and CacheTable: the latent cache of one layer as kernels see it.
#pragma once

#include <dsv3/core/quantized.hpp>

namespace dsv3 {

/// What a latent cache stores. C is the type of the latent's elements; in an FP8 cache they are
/// codes with one scale for each 1 x 128, and the rotated key stays in bf16.
///
/// Source   spec 4.5: at V3's sizes 512 codes, 4 scales and 64 elements of bf16 are 656 bytes.
template <class C>
struct CacheElement {
  using Latent = std::remove_const_t<C>;
  static constexpr bool quantized = is_fp8<Latent>;
  using Rope = std::conditional_t<quantized, bf16, Latent>;
  static constexpr Index group = 128;

  /// Scales of one latent; 0 where elements need none.
  static constexpr Index scales(Index kv_lora_rank) {
    return quantized ? groups_of(kv_lora_rank, group) : 0;
  }
  /// Bytes of one token in one layer.
  static constexpr Index bytes(Index kv_lora_rank, Index qk_rope_head_dim) {
    return kv_lora_rank * static_cast<Index>(sizeof(Latent)) +
           scales(kv_lora_rank) * static_cast<Index>(sizeof(float)) +
           qk_rope_head_dim * static_cast<Index>(sizeof(Rope));
  }
};

/// The cache of one layer. A slot holds one token: its normalised latent and its rotated key.
///
/// Shapes   slots = blocks * block_size, r kv_lora_rank, d_r qk_rope_head_dim.
template <class C>
struct CachePages {
  using Element = CacheElement<C>;
  template <class U>
  using Like = std::conditional_t<std::is_const_v<C>, const U, U>;

  View<C, 2> latent;                           // [slots, r]
  View<Like<float>, 2> scales;                 // [slots, ceil(r / 128)]; FP8 only
  View<Like<typename Element::Rope>, 2> rope;  // [slots, d_r]

  DSV3_HD constexpr CachePages() {}
  DSV3_HD constexpr CachePages(View<C, 2> l, View<Like<float>, 2> s,
                               View<Like<typename Element::Rope>, 2> r)
      : latent(l), scales(s), rope(r) {}
  template <class U>
  requires(std::is_same_v<const U, C> && !std::is_same_v<U, C>) DSV3_HD
      constexpr CachePages(const CachePages<U>& o)
      : latent(o.latent), scales(o.scales), rope(o.rope) {}

  /// Element j of a slot's latent, rounded to T, in which every form of attention reads it.
  template <class T>
  DSV3_HD T latent_as(Index slot, Index j) const {
    using A = accum_t<std::remove_const_t<C>>;
    if constexpr (Element::quantized)
      return T(A(latent(slot, j)) * scales(slot, j / Element::group));
    else
      return T(accum_t<T>(A(latent(slot, j))));
  }
  template <class T>
  DSV3_HD T rope_as(Index slot, Index j) const {
    return T(accum_t<T>(accum_t<typename Element::Rope>(rope(slot, j))));
  }
};

/// Where the tokens of a pass find their keys. A part is a run of tokens of one sequence.
///
/// Shapes   T tokens, S parts. Views in the backend's memory.
struct CacheTable {
  View<const std::int32_t, 2> blocks;    // [S, most blocks] of each part's sequence, in order
  View<const std::int32_t, 1> part;      // [T]
  View<const std::int32_t, 1> position;  // [T] a token sees the keys 0 ... position
  Index block_size = 1;
  Index keys = 0;  // the most keys that a token sees

  /// The slot of the entry at `position` of a part's sequence.
  DSV3_HD Index slot(Index part_index, Index at) const {
    return Index{blocks(part_index, at / block_size)} * block_size + at % block_size;
  }
};

}  // namespace dsv3
