#include "run.hpp"
#include "variants.hpp"

std::vector<example::Variant> example::short_accumulation_variants() {
  return {
      variant<Hopper32>("accumulators of 14 bits, promoted after 32 products; emulated, so slow"),
      variant<Hopper64>("the same, after 64 products"),
      variant<Hopper128>("the same, after 128 products, as in DeepSeek-V3"),
  };
}
