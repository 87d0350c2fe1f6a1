#include "run.hpp"
#include "variants.hpp"

std::vector<example::Variant> example::long_accumulation_variants() {
  return {
      variant<Hopper256>("the same, after 256 products"),
      variant<Hopper512>("the same, after 512 products"),
      variant<HopperNone>("the same, promoted only at the end of a sum"),
  };
}
