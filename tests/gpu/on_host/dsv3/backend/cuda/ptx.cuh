// The instructions of ptx.cuh in words of C++, as the PTX manual defines them. An address of 32
// bits counts from the dynamic shared memory; one that is not aligned, or beyond what the launch
// asked for, is an exception.
#pragma once

#include <dsv3/core/math.hpp>
#include <dsv3/core/scalar.hpp>

#include "gpu/on_host/language.hpp"

namespace dsv3::detail {

inline unsigned char* dynamic_shared() { return cuda_on_host::Multiprocessor::dynamic(); }

inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(static_cast<const unsigned char*>(pointer) - dynamic_shared());
}
template <int bytes>
unsigned char* at_shared(std::uint32_t address) {
  if (address % bytes != 0)
    throw std::logic_error("an address of shared memory (" + std::to_string(address) +
                           ") must be a multiple of " + std::to_string(bytes));
  const std::size_t asked = cuda_on_host::here().dynamic_bytes();
  if (address < cuda_on_host::Multiprocessor::shared_bytes && address + bytes > asked)
    throw std::logic_error("an address of shared memory (" + std::to_string(address) +
                           ") must lie within the launch's " + std::to_string(asked) + " bytes");
  return dynamic_shared() + static_cast<std::int32_t>(address);
}

// Element (i, j) of matrix m: lanes 8 m ... bring where its rows begin.
inline void load_matrices_as(std::uint32_t (&r)[4], std::uint32_t row, bool transposed) {
  const int lane = cuda_on_host::here().lane();
  const auto element = [](std::uint32_t at, int j) {
    std::uint16_t bits;
    std::memcpy(&bits, at_shared<16>(at) + 2 * j, 2);
    return std::uint32_t{bits};
  };
  const auto rows = cuda_on_host::of_warp(row);
  for (int m = 0; m < 4; ++m) {
    const int i = lane / 4, j = 2 * (lane % 4);
    r[m] = transposed ? element(rows(8 * m + j), i) | element(rows(8 * m + j + 1), i) << 16
                      : element(rows(8 * m + i), j) | element(rows(8 * m + i), j + 1) << 16;
  }
}
inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t row) {
  load_matrices_as(r, row, false);
}
inline void load_transposed(std::uint32_t (&r)[4], std::uint32_t row) {
  load_matrices_as(r, row, true);
}
inline void load_matrices(std::uint32_t (&r)[4], const void* row) {
  load_matrices(r, shared_address(row));
}
inline void load_transposed(std::uint32_t (&r)[4], const void* row) {
  load_transposed(r, shared_address(row));
}

// The value of fp16.
inline float half_value(std::uint32_t bits) {
  static const std::vector<float> values = [] {
    std::vector<float> all(65536);
    for (std::uint32_t b = 0; b < 65536; ++b) {
      const int exponent = static_cast<int>(b >> 10 & 31), fraction = static_cast<int>(b & 1023);
      const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                         : exponent
                             ? std::ldexp(1024.0f + static_cast<float>(fraction), exponent - 25)
                             : std::ldexp(static_cast<float>(fraction), -24);
      all[b] = b & 0x8000u ? -size : size;
    }
    return all;
  }();
  return values[bits];
}

// The sum of 16 products in double, then rounded: closer than a tensor core, whose sums have fewer
// bits.
inline void multiply_as(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                        std::uint32_t b1, auto&& value) {
  struct Fragments {
    std::uint32_t word[6];
  };
  const auto brought = cuda_on_host::of_warp(Fragments{{a[0], a[1], a[2], a[3], b0, b1}});
  // Elements k, k + 1 and k + 8, k + 9 of a row of a, or of a column of b, are two words of lane
  // 4 (row or column) + k / 2.
  const int lane = cuda_on_host::here().lane();
  double rows[2][16], columns[2][16];
  const auto unpack = [&](double(&to)[16], int k, std::uint32_t first, std::uint32_t second) {
    to[k] = value(first & 0xFFFFu), to[k + 1] = value(first >> 16);
    to[k + 8] = value(second & 0xFFFFu), to[k + 9] = value(second >> 16);
  };
  for (int i = 0; i < 4; ++i) {
    const Fragments of_row = brought(lane / 4 * 4 + i);
    unpack(rows[0], 2 * i, of_row.word[0], of_row.word[2]);
    unpack(rows[1], 2 * i, of_row.word[1], of_row.word[3]);
    for (int j = 0; j < 2; ++j) {
      const Fragments of_column = brought(4 * (2 * (lane % 4) + j) + i);
      unpack(columns[j], 2 * i, of_column.word[4], of_column.word[5]);
    }
  }
  using Four [[gnu::vector_size(32)]] = double;  // an extension of g++ and clang++
  for (int n = 0; n < 4; ++n) {
    Four sum = {double(c[n]), 0, 0, 0}, x, y;
    for (int k = 0; k < 16; k += 4) {
      std::memcpy(&x, &rows[n / 2][k], sizeof x);
      std::memcpy(&y, &columns[n % 2][k], sizeof y);
      sum += x * y;
    }
    c[n] = static_cast<float>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
}
inline void multiply_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                          std::uint32_t b1) {
  multiply_as(c, a, b0, b1, [](std::uint32_t x) { return __builtin_bit_cast(float, x << 16); });
}
inline void multiply_fp16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                          std::uint32_t b1) {
  multiply_as(c, a, b0, b1, half_value);
}

inline void require_aligned(const void* from, std::uintptr_t bytes, bool read) {
  if (read && reinterpret_cast<std::uintptr_t>(from) % bytes != 0)
    throw std::logic_error("an asynchronous copy of " + std::to_string(bytes) +
                           " bytes must read from a multiple of as many");
}
inline void copy_async(std::uint32_t to, const void* from, bool inside) {
  require_aligned(from, 16, inside);
  cuda_on_host::here().copy({at_shared<16>(to), from, inside ? 16 : 0, inside ? 0 : 16});
}
inline void copy_word_async(std::uint32_t to, const void* from, bool inside) {
  require_aligned(from, 4, inside);
  cuda_on_host::here().copy({at_shared<4>(to), from, inside ? 4 : 0, inside ? 0 : 4});
}
inline void copy_async(void* to, const void* from, bool inside) {
  copy_async(shared_address(to), from, inside);
}
inline void copy_bytes_async(std::uint32_t to, const void* from, int bytes) {
  require_aligned(from, 16, bytes > 0);
  cuda_on_host::here().copy({at_shared<16>(to), from, bytes, 16 - bytes});
}
inline void copies_end_group() { cuda_on_host::here().end_group(); }
template <int pending>
void wait_for_copies() {
  cuda_on_host::here().wait_for_copies(pending);
}

inline void load_16_bytes(std::uint32_t (&r)[4], std::uint32_t from) {
  std::memcpy(r, at_shared<16>(from), 16);
}
inline void store_16_bytes(std::uint32_t to, const std::uint32_t (&words)[4]) {
  std::memcpy(at_shared<16>(to), words, 16);
}
inline void store_16_bytes(std::uint32_t to, std::uint32_t x, std::uint32_t y, std::uint32_t z,
                           std::uint32_t w) {
  const std::uint32_t words[4] = {x, y, z, w};
  store_16_bytes(to, words);
}
inline void load_two_floats(float& first, float& second, std::uint32_t from) {
  std::memcpy(&first, at_shared<8>(from), 4);
  std::memcpy(&second, at_shared<8>(from) + 4, 4);
}

inline Index reread(Index x) { return x; }
inline int reread_thread() { return cuda_on_host::here().thread(); }

inline std::uint32_t pack_bf16(float low, float high) {
  return bf16(low).bits | std::uint32_t{bf16(high).bits} << 16;
}

// By a power of two that keeps all bits, as the only caller does.
inline std::uint32_t multiply_halves(std::uint32_t a, std::uint32_t b) {
  const auto product = [](std::uint32_t x, std::uint32_t y) {
    const float exact = half_value(x) * half_value(y), size = std::fabs(exact);
    const std::uint32_t sign = (x ^ y) & 0x8000u;
    if (size == 0) return sign;
    if (!(size < 65536.0f)) return sign | (size != size ? 0x7FFFu : 0x7C00u);
    int power = 0;
    std::frexp(size, &power);  // size in [2^(power - 1), 2^power)
    const int exponent = std::max(power - 1, -14);
    const float units = std::ldexp(size, 10 - exponent);
    const auto significand = static_cast<std::uint32_t>(units);
    if (static_cast<float>(significand) != units) throw std::logic_error("multiply_halves rounds");
    return sign | (static_cast<std::uint32_t>(exponent + 14) * 1024 + significand);
  };
  return product(a & 0xFFFFu, b & 0xFFFFu) | product(a >> 16, b >> 16) << 16;
}

// A GPU has one NaN, which its arithmetic gives; here NaN keeps its bits, as in the row kernels.
inline float larger_magnitude(float most, float x) {
  const auto a = __builtin_bit_cast(std::uint32_t, most);
  const std::uint32_t b = __builtin_bit_cast(std::uint32_t, x) & 0x7FFFFFFFu;
  return __builtin_bit_cast(float, a < b ? b : a);
}

inline float exp2_fast(float x) {
  const float result = std::exp2(x);
  return result < 1.17549435e-38f ? 0.0f : result;
}

template <class C>
void decode_pair(std::uint32_t codes, float& low, float& high) {
  low = C::format::decode(codes & 0xFFu);
  high = C::format::decode(codes >> 8 & 0xFFu);
}
template <class C>
std::uint32_t encode_pair(float low, float high) {
  return C(low).code | static_cast<std::uint32_t>(C(high).code) << 8;
}

}  // namespace dsv3::detail
