#include "run.hpp"
#include "variants.hpp"

std::vector<example::Variant> example::format_variants() {
  return {
      variant<dsv3::Fp8>("DeepSeek-V3's recipe: E4M3, tiles of 1 x 128, blocks of 128 x 128"),
      variant<E5m2Gradients>("gradients in activations as E5M2"),
      variant<Ue8m0>("every scale a power of two"),
      variant<Stochastic>("gradients in activations rounded stochastically"),
      variant<Fp8Moments>("AdamW's moments as codes: E4M3, and E5M2 for the root of the second"),
  };
}
