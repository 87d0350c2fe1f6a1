// ProbeTable: a hash table whose slowest search is bounded, whatever a hostile file puts into it.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>
#include <vector>

namespace dsv3::detail {

// Spreads 64 bits over 64 bits (a bijection for each seed).
constexpr std::uint64_t spread(std::uint64_t x, std::uint64_t seed) {
  x = (x ^ seed) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 32)) * (2 * seed + 0xD6E8FEB86659FD93u);
  return x ^ (x >> 32);
}

// FNV-1a, started and ended with the seed.
constexpr std::uint64_t hash_text(std::string_view text, std::uint64_t seed) {
  std::uint64_t hash = 0xCBF29CE484222325u ^ spread(seed, seed);
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return spread(hash, seed);
}

// Open addressing, at most half full, at most `most_steps` slots from home. An entry says whether
// it is there: bool(entry).
template <class Entry>
class ProbeTable {
 public:
  static constexpr int most_steps = 128;

  ProbeTable() : ProbeTable(0) {}
  explicit ProbeTable(std::size_t entries) : slots_(std::bit_ceil(2 * entries + 2)) {}

  // The entry of this hash for which same(entry), or null.
  template <class Same>
  const Entry* find(std::uint64_t hash, Same same) const {
    for (int step = 0; step < most_steps; ++step) {
      const Entry& entry = slots_[(hash + static_cast<unsigned>(step)) & (slots_.size() - 1)];
      if (!entry) return nullptr;
      if (same(entry)) return &entry;
    }
    return nullptr;
  }

  // False where there is no room near home: another seed is to be tried.
  bool insert(std::uint64_t hash, const Entry& added) {
    for (int step = 0; step < most_steps; ++step) {
      Entry& entry = slots_[(hash + static_cast<unsigned>(step)) & (slots_.size() - 1)];
      if (entry) continue;
      entry = added;
      return true;
    }
    return false;
  }

 private:
  std::vector<Entry> slots_;
};

// Calls fill(seed) with one seed after another until it is true. Random entries at most half full
// need one seed; false says that the entries were made to collide.
template <class Fill>
bool fill_with_seed(std::uint64_t& seed, Fill fill) {
  for (seed = 1; seed <= 8; ++seed)
    if (fill(seed)) return true;
  return false;
}

}  // namespace dsv3::detail
