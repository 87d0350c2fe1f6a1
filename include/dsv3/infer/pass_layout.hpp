// PassLayout: the lists that one pass over a cache reads, made on the host.
#pragma once

#include <dsv3/infer/block_pool.hpp>
#include <dsv3/infer/latent_mla.hpp>
#include <vector>

namespace dsv3 {

/// The next tokens of one sequence.
struct CachePart {
  Index sequence = 0;                ///< as BlockPool::create() numbered it
  std::vector<std::int32_t> tokens;  ///< in [0, vocab_size)

  Index count() const { return static_cast<Index>(tokens.size()); }
};

/// The lists of one pass: tokens, positions, slots, and what the form of attention wants.
class PassLayout {
 public:
  std::vector<std::int32_t> token;

  /// Checks the parts and fills what does not depend on blocks.
  /// Errors   std::invalid_argument naming the part; the pool is not touched.
  void assign(const std::vector<CachePart>& parts, Index level, const BlockPool& pool,
              const ModelConfig& config, AttentionForm form) {
    const char* caller = "Decoder";
    check_at_most(caller, "one", 1, "parts", static_cast<Index>(parts.size()));
    Index blocks = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      check_part(parts, i, config);
      blocks += pool.blocks_needed(parts[i].sequence, parts[i].count(), level);
    }
    check_at_most(caller, "blocks needed", blocks, "free blocks of the cache", pool.free_blocks());
    for (auto* list : {&token, &position_, &slot_, &begin_, &end_, &first_key_, &own_key_,
                       &key_slot_, &part_, &first_, &blocks_})
      list->clear();
    form_ = form;
    keys_ = 0;
    Index all_keys = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const Index start = pool.length(parts[i].sequence, level), count = parts[i].count();
      const Index from = tokens(), key = all_keys;
      first_.push_back(int32(from));
      for (Index t = 0; t < count; ++t) {
        token.push_back(parts[i].tokens[static_cast<std::size_t>(t)]);
        position_.push_back(int32(start + t));
        part_.push_back(int32(static_cast<Index>(i)));
        begin_.push_back(int32(from));
        end_.push_back(int32(from + count));
        first_key_.push_back(int32(key));
        own_key_.push_back(int32(key + start + t));
      }
      all_keys += start + count;
      keys_ = std::max(keys_, start + count);
      check_at_most(caller, "keys of all parts", all_keys, "largest count", Index{1} << 30);
    }
    first_.push_back(int32(tokens()));
  }

  /// Fills what depends on blocks, after the cache has made room. The absorbed form's number of
  /// keys is rounded up to a multiple.
  void place(const std::vector<CachePart>& parts, const BlockPool& pool, Index multiple = 1) {
    block_size_ = pool.block_size();
    table_keys_ = form_ == AttentionForm::expanded ? keys_ : groups_of(keys_, multiple) * multiple;
    most_blocks_ = pool.blocks_for(table_keys_);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const auto& blocks = pool.blocks_of(parts[i].sequence);
      const auto slot = [&](Index at) {
        return int32(Index{blocks[static_cast<std::size_t>(at / block_size_)]} * block_size_ +
                     at % block_size_);
      };
      const Index from = first_[i], to = first_[i + 1],
                  last = position_[static_cast<std::size_t>(to - 1)];
      for (Index t = from; t < to; ++t)
        slot_.push_back(slot(position_[static_cast<std::size_t>(t)]));
      if (form_ == AttentionForm::expanded)
        for (Index at = 0; at <= last; ++at) key_slot_.push_back(slot(at));
      else
        for (Index b = 0; b < most_blocks_; ++b)
          blocks_.push_back(
              b < static_cast<Index>(blocks.size()) ? blocks[static_cast<std::size_t>(b)] : 0);
    }
  }

  Index tokens() const { return static_cast<Index>(token.size()); }
  /// One more than the largest position.
  Index positions() const { return keys_; }

  /// A list in the backend's memory, from the arena.
  template <class Backend>
  static View<const std::int32_t, 1> upload(Backend& backend, const std::vector<std::int32_t>& list,
                                            Arena& arena) {
    const Index n = static_cast<Index>(list.size());
    const auto view = arena.take<std::int32_t>({n});
    if (!arena.counting())
      copy_to_backend(backend, view.data, list.data(), n * Index{sizeof(std::int32_t)});
    return view;
  }

  /// Everything but the tokens in the backend's memory.
  template <class Backend>
  CacheInputs inputs(Backend& backend, Arena& arena) const {
    CacheInputs in;
    in.form = form_;
    in.sequences.position = upload(backend, position_, arena);
    in.slot = upload(backend, slot_, arena);
    if (form_ == AttentionForm::expanded) {
      in.sequences.begin = upload(backend, begin_, arena);
      in.sequences.end = upload(backend, end_, arena);
      in.sequences.first_key = upload(backend, first_key_, arena);
      in.sequences.own_key = upload(backend, own_key_, arena);
      in.key_slot = upload(backend, key_slot_, arena);
    } else {
      const auto blocks = upload(backend, blocks_, arena);
      in.table.blocks = {blocks.data, {static_cast<Index>(first_.size()) - 1, most_blocks_}};
      in.table.part = upload(backend, part_, arena);
      in.table.position = in.sequences.position;
      in.table.block_size = block_size_;
      in.table.keys = table_keys_;
    }
    // No balance loss is wanted: no sequences are counted.
    in.sequences.first = {in.slot.data, {1}};
    return in;
  }

 private:
  static std::int32_t int32(Index value) { return static_cast<std::int32_t>(value); }

  static void check_part(const std::vector<CachePart>& parts, std::size_t i,
                         const ModelConfig& config) {
    const std::string where = "Decoder: part " + std::to_string(i);
    check_at_most(where.c_str(), "one", 1, "tokens", parts[i].count());
    for (std::size_t t = 0; t < parts[i].tokens.size(); ++t) {
      const Index id = parts[i].tokens[t];
      if (id < 0 || id >= config.vocab_size)
        throw std::invalid_argument(where + ": token " + std::to_string(t) + " (" +
                                    std::to_string(id) +
                                    ") must be at least 0 and below vocab_size (" +
                                    std::to_string(config.vocab_size) + ")");
    }
    for (std::size_t other = 0; other < i; ++other)
      if (parts[other].sequence == parts[i].sequence)
        throw std::invalid_argument(where + ": sequence (" + std::to_string(parts[i].sequence) +
                                    ") must not be that of part " + std::to_string(other));
  }

  AttentionForm form_ = AttentionForm::expanded;
  std::vector<std::int32_t> position_, slot_, begin_, end_, first_key_, own_key_, key_slot_, part_,
      first_, blocks_;
  Index keys_ = 0, table_keys_ = 0, block_size_ = 1, most_blocks_ = 0;
};

}  // namespace dsv3
