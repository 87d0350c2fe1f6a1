// LatentCache: the latents of many sequences, in blocks of a backend's memory.
#pragma once

#include <dsv3/config.hpp>
#include <dsv3/core/arena.hpp>
#include <dsv3/core/buffer.hpp>
#include <dsv3/core/cache_pages.hpp>
#include <dsv3/infer/block_pool.hpp>
#include <dsv3/nn/rows.hpp>

namespace dsv3 {

/// How large a cache is, and how it is cut.
struct CacheOptions {
  Index blocks = 0;      ///< in all
  Index block_size = 0;  ///< tokens of each
  bool mtp = false;      ///< whether MTP's layers have entries too, for speculation

  /// One block for each of `sequences` sequences of at most `length` tokens.
  static constexpr CacheOptions contiguous(Index sequences, Index length, bool with_mtp = false) {
    return {sequences, length, with_mtp};
  }
  /// At least `tokens` tokens in blocks of `size` (FlashMLA's is 64), one more for each of
  /// `sequences` sequences' last block.
  static constexpr CacheOptions paged(Index tokens, Index sequences = 1, Index size = 64,
                                      bool with_mtp = false) {
    return {groups_of(tokens, size) + sequences - 1, size, with_mtp};
  }

  /// The main model, and MTP's depths where they have entries.
  constexpr Index levels(const ModelConfig& c) const {
    return 1 + (mtp ? c.num_nextn_predict_layers : 0);
  }
};

/// The views of one layer's cache from an arena.
template <class C>
constexpr CachePages<C> take_cache_layer(const ModelConfig& c, const CacheOptions& options,
                                         Arena& arena) {
  using E = CacheElement<C>;
  const Index slots = options.blocks * options.block_size;
  CachePages<C> pages;
  pages.latent = arena.take<C>({slots, c.kv_lora_rank});
  pages.scales = arena.take<float>({slots, E::scales(c.kv_lora_rank)});
  pages.rope = arena.take<typename E::Rope>({slots, c.qk_rope_head_dim});
  return pages;
}

/// The normalised latents and rotated keys of every layer, for many sequences.
///
/// Types    C is double, float or bf16: both in C; or e4m3: latents as codes with float scales of
///          1 x 128, rotated keys in bf16 (656 bytes a token and layer at V3's sizes).
/// Units    plan::cache_bytes counts its memory exactly.
/// Errors   std::invalid_argument as BlockPool; std::bad_alloc.
/// Source   DeepSeek-V2 section 2.1; spec 4.5.
template <class Backend, class C>
class LatentCache : public BlockPool {
 public:
  using Element = C;

  LatentCache(Backend& backend, const ModelConfig& config, const CacheOptions& options)
      : BlockPool(options.blocks, options.block_size, options.levels(config)),
        backend_(&backend),
        main_layers_(config.num_hidden_layers) {
    const Index layers = main_layers_ + levels() - 1;
    Arena counting;
    for (Index l = 0; l < layers; ++l) take_cache_layer<C>(config, options, counting);
    memory_ = Buffer<Backend>(backend, counting.used());
    Arena arena(memory_.data(), memory_.bytes());
    for (Index l = 0; l < layers; ++l)
      layers_.push_back(take_cache_layer<C>(config, options, arena));
  }

  Backend& backend() const { return *backend_; }
  Index bytes() const { return memory_.bytes(); }

  /// The pages of block `layer` of the main model, or of MTP depth `level`.
  const CachePages<C>& pages(Index level, Index layer) const {
    return layers_[static_cast<std::size_t>(level == 0 ? layer : main_layers_ + level - 1)];
  }

  /// Makes room for entries, and copies what several sequences share where they are to be written.
  /// Errors   std::invalid_argument where blocks are too few: nothing has changed.
  void prepare(Index sequence, Index count, Index level = 0) {
    copies_.clear();
    BlockPool::prepare(sequence, count, level, copies_);
    for (const Copy& copy : copies_)
      for (const CachePages<C>& pages : layers_) {
        copy_block(pages.latent, copy);
        if (pages.scales.extent(1)) copy_block(pages.scales, copy);
        copy_block(pages.rope, copy);
      }
  }

 private:
  template <class U>
  void copy_block(const View<U, 2>& slots, const Copy& copy) {
    for_each_row(*backend_, block_size(),
                 detail::CopyRow<U>{as_const(slots.rows(copy.from * block_size(), block_size())),
                                    slots.rows(copy.to * block_size(), block_size())});
  }

  Backend* backend_;
  Index main_layers_;
  Buffer<Backend> memory_;
  std::vector<CachePages<C>> layers_;
  std::vector<Copy> copies_;
};

}  // namespace dsv3
