// Counter-based random numbers: Philox 4x32-10. The n-th number of a stream needs no state, so
// nothing random depends on threads, sharding or order.
#pragma once

#include <dsv3/core/math.hpp>
#include <string_view>

namespace dsv3 {

/// 64-bit FNV-1a. Names a random stream after a tensor.
constexpr std::uint64_t hash_name(std::string_view name) {
  std::uint64_t h = 0xCBF29CE484222325u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return h;
}

/// The Philox 4x32-10 block function.
///
/// Source   Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
struct Philox {
  std::uint32_t key[2];

  /// A stream of its own for each pair of seed and stream number.
  DSV3_HD constexpr Philox(std::uint64_t seed, std::uint64_t stream)
      : key{static_cast<std::uint32_t>(mix(seed ^ mix(stream))),
            static_cast<std::uint32_t>(mix(seed ^ mix(stream)) >> 32)} {}

  struct Block {
    std::uint32_t word[4];
  };

  /// Four 32-bit words for one 128-bit counter (its upper half is zero).
  DSV3_HD constexpr Block operator()(std::uint64_t counter) const {
    return rounds(
        {{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0}},
        key[0], key[1]);
  }

  /// The bare function, for the published test vectors.
  DSV3_HD static constexpr Block rounds(Block c, std::uint32_t k0, std::uint32_t k1) {
    for (int i = 0; i < 10; ++i) {
      const std::uint64_t a = std::uint64_t{0xD2511F53u} * c.word[0];
      const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * c.word[2];
      c = {{static_cast<std::uint32_t>(b >> 32) ^ c.word[1] ^ k0, static_cast<std::uint32_t>(b),
            static_cast<std::uint32_t>(a >> 32) ^ c.word[3] ^ k1, static_cast<std::uint32_t>(a)}};
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return c;
  }

 private:
  // splitmix64's finaliser: neighbouring seeds give unrelated keys.
  DSV3_HD static constexpr std::uint64_t mix(std::uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
};

/// A word as a number in the open interval (0, 1), in steps of 2^-32.
DSV3_HD constexpr double uniform(std::uint32_t word) {
  return (static_cast<double>(word) + 0.5) * 0x1p-32;
}

/// The standard normal number whose distribution function is p, to about 1e-7 relative.
///
/// Source   Wichura 1988, algorithm AS 241 (PPND7): a rational function in the middle, one of
///          sqrt(-ln p) in each tail.
DSV3_HD inline float normal_quantile(double p) {
  const auto q = static_cast<float>(p - 0.5);
  if (q >= -0.425f && q <= 0.425f) {
    const float r = fma(-q, q, 0.180625f);
    const float above =
        fma(fma(fma(59.109374720f, r, 159.29113202f), r, 50.434271938f), r, 3.3871327179f);
    const float below = fma(fma(fma(67.187563600f, r, 78.757757664f), r, 17.895169469f), r, 1.0f);
    return q * (above / below);
  }
  const float r = sqrt(-log(static_cast<float>(q < 0.0f ? p : 1.0 - p)));
  float x;
  if (r <= 5.0f) {
    const float t = r - 1.6f;
    x = fma(fma(fma(0.17023821103f, t, 1.3067284816f), t, 2.7568153900f), t, 1.4234372777f) /
        fma(fma(0.12021132975f, t, 0.73700164250f), t, 1.0f);
  } else {
    const float t = r - 5.0f;
    x = fma(fma(fma(0.017337203997f, t, 0.42868294337f), t, 3.0812263860f), t, 6.6579051150f) /
        fma(fma(0.012258202635f, t, 0.24197894225f), t, 1.0f);
  }
  return q < 0.0f ? -x : x;
}

/// Element `index` of a stream of standard normal numbers.
DSV3_HD inline float normal(const Philox& philox, std::uint64_t index) {
  const auto block = philox(index >> 2);
  return normal_quantile(uniform(block.word[index & 3]));
}

}  // namespace dsv3
