// The vectors of one instruction set, chosen by the flags of the translation unit. Nothing above
// this file names an instruction.
#pragma once

#include <cstring>
#include <dsv3/core/math.hpp>
#include <dsv3/core/scalar.hpp>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dsv3::detail {

#if defined(__AVX2__)
// The compiler's own vectors of integers, for conversions between bf16 and float.
struct Lanes8 {
  using U32 [[gnu::vector_size(32)]] = std::uint32_t;
  using U16 [[gnu::vector_size(16)]] = std::uint16_t;
  using U8 [[gnu::vector_size(8)]] = std::uint8_t;
  using F32 [[gnu::vector_size(32)]] = float;
};
struct Lanes16 {
  using U32 [[gnu::vector_size(64)]] = std::uint32_t;
  using U16 [[gnu::vector_size(32)]] = std::uint16_t;
  using U8 [[gnu::vector_size(16)]] = std::uint8_t;
  using F32 [[gnu::vector_size(64)]] = float;
};

template <class Lanes>
typename Lanes::U32 widen_bits(const bf16* p) {
  typename Lanes::U16 half;
  std::memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, typename Lanes::U32) << 16;
}

// bf16(float) of each lane.
template <class Lanes>
void narrow_bits(bf16* p, typename Lanes::U32 u) {
  using U32 = typename Lanes::U32;
  const U32 rounded = u + (((u >> 16) & 1u) + 0x7FFFu), quiet = u | 0x400000u;
  const U32 bits = ((u & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded) >> 16;
  const auto half = __builtin_convertvector(bits, typename Lanes::U16);
  std::memcpy(p, &half, sizeof half);
}
#endif

// One inline namespace for each path: code compiled for different paths has different names, so
// that two translation units with different flags link into one program and keep their own.
//
// Simd<A> is a vector of A: lanes, load, store, broadcast, fma, and `rows`, the height of the
// register tile that is 2 vectors wide. narrow() rounds floats to bf16 exactly as bf16(float) does.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#if defined(__AVX512BF16__)
inline namespace avx512_bf16 {
struct Isa {
  static constexpr const char* name = "avx512_bf16";
#if defined(__AVX512VBMI__)
  static constexpr bool vbmi = true;
#else
  static constexpr bool vbmi = false;
#endif
};
#else
inline namespace avx512 {
struct Isa {
  static constexpr const char* name = "avx512";
#if defined(__AVX512VBMI__)
  static constexpr bool vbmi = true;
#else
  static constexpr bool vbmi = false;
#endif
};
#endif

template <class A>
struct Simd;

template <>
struct Simd<float> {
  using Vector = __m512;
  static constexpr Index lanes = 16;
  static constexpr int rows = 12;
  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector broadcast(float x) { return _mm512_set1_ps(x); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static Vector load(const bf16* p) { return reinterpret_cast<Vector>(widen_bits<Lanes16>(p)); }
  static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  static void narrow(bf16* p, Vector v) {
    narrow_bits<Lanes16>(p, reinterpret_cast<Lanes16::U32>(v));
  }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
};

template <>
struct Simd<double> {
  using Vector = __m512d;
  static constexpr Index lanes = 8;
  static constexpr int rows = 12;
  static Vector zero() { return _mm512_setzero_pd(); }
  static Vector broadcast(double x) { return _mm512_set1_pd(x); }
  static Vector load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, Vector v) { _mm512_storeu_pd(p, v); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_pd(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm512_add_pd(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_pd(a, b); }
};

#elif defined(__AVX2__) && defined(__FMA__)
inline namespace avx2 {
struct Isa {
  static constexpr const char* name = "avx2";
  static constexpr bool vbmi = false;
};

template <class A>
struct Simd;

template <>
struct Simd<float> {
  using Vector = __m256;
  static constexpr Index lanes = 8;
  static constexpr int rows = 6;
  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector broadcast(float x) { return _mm256_set1_ps(x); }
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static Vector load(const bf16* p) { return reinterpret_cast<Vector>(widen_bits<Lanes8>(p)); }
  static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  static void narrow(bf16* p, Vector v) {
    narrow_bits<Lanes8>(p, reinterpret_cast<Lanes8::U32>(v));
  }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
};

template <>
struct Simd<double> {
  using Vector = __m256d;
  static constexpr Index lanes = 4;
  static constexpr int rows = 6;
  static Vector zero() { return _mm256_setzero_pd(); }
  static Vector broadcast(double x) { return _mm256_set1_pd(x); }
  static Vector load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, Vector v) { _mm256_storeu_pd(p, v); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_pd(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm256_add_pd(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_pd(a, b); }
};

#else
inline namespace plain {
struct Isa {
  static constexpr const char* name = "plain";
  static constexpr bool vbmi = false;
};

// Arrays of 16 bytes: what a compiler turns into one vector on any machine.
template <class A>
struct Simd {
  static constexpr Index lanes = 16 / static_cast<Index>(sizeof(A));
  static constexpr int rows = 4;
  struct Vector {
    A lane[lanes];
  };
  static Vector zero() { return {}; }
  static Vector broadcast(A x) {
    Vector v;
    for (Index i = 0; i < lanes; ++i) v.lane[i] = x;
    return v;
  }
  template <class T>
  static Vector load(const T* p) {
    Vector v;
    for (Index i = 0; i < lanes; ++i) v.lane[i] = static_cast<A>(p[i]);
    return v;
  }
  static void store(A* p, Vector v) {
    for (Index i = 0; i < lanes; ++i) p[i] = v.lane[i];
  }
  static void narrow(bf16* p, Vector v) {
    for (Index i = 0; i < lanes; ++i) p[i] = bf16(v.lane[i]);
  }
  static Vector fma(Vector a, Vector b, Vector c) {
    for (Index i = 0; i < lanes; ++i) c.lane[i] = dsv3::fma(a.lane[i], b.lane[i], c.lane[i]);
    return c;
  }
  static Vector add(Vector a, Vector b) {
    for (Index i = 0; i < lanes; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static Vector multiply(Vector a, Vector b) {
    for (Index i = 0; i < lanes; ++i) a.lane[i] *= b.lane[i];
    return a;
  }
};
#endif

// How one product is computed: the type of the packed operands, of the sums, and one step along K.
// A packed row holds `step` consecutive elements of K for each step; a packed panel of the right
// operand holds, for each step and column, `step` elements of K. `depth` is the length of the
// blocks into which K is cut: it decides the order of summation, so it depends on nothing else.
template <class A>
struct FmaKernel {
  using Packed = A;
  using Sum = A;
  using S = Simd<A>;
  static constexpr Index step = 1, depth = 1024 / static_cast<Index>(sizeof(A));
  static typename S::Vector broadcast(const A* a) { return S::broadcast(*a); }
  static typename S::Vector panel(const A* b) { return S::load(b); }
#if defined(__AVX512F__)
  static __m512 panel_of(__m512i words) { return _mm512_castsi512_ps(words); }
#endif
  static typename S::Vector multiply_add(typename S::Vector a, typename S::Vector b,
                                         typename S::Vector sum) {
    return S::fma(a, b, sum);
  }
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__)
// vdpbf16ps: each lane of 32 bits adds the product of a pair along K.
struct Bf16Kernel {
  using Packed = bf16;
  using Sum = float;
  using S = Simd<float>;
  static constexpr Index step = 2, depth = 512;
  static __m512i broadcast(const bf16* a) {
    int pair;
    std::memcpy(&pair, a, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static __m512i panel(const bf16* b) { return _mm512_loadu_si512(b); }
  static __m512i panel_of(__m512i words) { return words; }
  static __m512 multiply_add(__m512i a, __m512i b, __m512 sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
};
#else
using Bf16Kernel = FmaKernel<float>;
#endif

}  // inline namespace of the path

// Types all of whose values are bf16 numbers, and none of them subnormal there.
template <class T>
inline constexpr bool exact_in_bf16 = std::is_same_v<std::remove_const_t<T>, bf16> || is_fp8<T>;

// The kernel of a product, by the types of its operands and its output.
template <class TA, class TB, class TC>
using KernelFor = std::conditional_t<
    std::is_same_v<accum_t<TC>, double>, FmaKernel<double>,
    std::conditional_t<exact_in_bf16<TA> && exact_in_bf16<TB>, Bf16Kernel, FmaKernel<float>>>;

}  // namespace dsv3::detail
