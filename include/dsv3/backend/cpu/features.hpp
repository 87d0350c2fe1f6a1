// What the compiled code needs of a processor, and what this processor has.
#pragma once

#include <dsv3/backend/cpu/simd.hpp>
#include <stdexcept>
#include <string>

namespace dsv3 {

/// The path that the flags of this translation unit chose, and the machine it runs on.
struct CpuFeatures {
  std::string compiled;      ///< "avx512_bf16", "avx512", "avx2" or "plain"
  bool avx2 = false;         ///< the machine has AVX2 and FMA
  bool avx512 = false;       ///< ... AVX-512 F, BW, VL and DQ
  bool avx512_bf16 = false;  ///< ... and AVX-512 BF16
  bool avx512_vbmi = false;  ///< the machine has AVX-512 VBMI, which decodes FP8
  bool uses_vbmi = false;    ///< the compiled code does

  /// The fastest path that the machine could run.
  std::string best() const {
    return avx512_bf16 ? "avx512_bf16" : avx512 ? "avx512" : avx2 ? "avx2" : "plain";
  }
};

/// Asks the processor.
template <class Isa = detail::Isa>
CpuFeatures cpu_features() {
  CpuFeatures features;
  features.compiled = Isa::name;
  features.uses_vbmi = Isa::vbmi;
#if defined(__x86_64__)
  __builtin_cpu_init();
  features.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  features.avx512 = features.avx2 && __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq");
  features.avx512_bf16 = features.avx512 && __builtin_cpu_supports("avx512bf16");
  features.avx512_vbmi = features.avx512 && __builtin_cpu_supports("avx512vbmi");
#endif
  return features;
}

/// Throws unless the machine can run what was compiled.
///
/// Errors   std::runtime_error that names both.
inline void require(const CpuFeatures& features) {
  const std::string& needed = features.compiled;
  const bool enough = needed == "plain" || (needed == "avx2" && features.avx2) ||
                      (needed == "avx512" && features.avx512) ||
                      (needed == "avx512_bf16" && features.avx512_bf16);
  if (enough && (!features.uses_vbmi || features.avx512_vbmi)) return;
  throw std::runtime_error(
      "Cpu: this program was compiled for " + needed + (enough ? " with avx512_vbmi" : "") +
      ", but the best path that this processor can run is " + features.best() +
      ": compile it on this machine with -march=native, or without -march for any x86-64");
}

}  // namespace dsv3
