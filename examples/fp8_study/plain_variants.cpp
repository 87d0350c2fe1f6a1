#include "run.hpp"

std::vector<example::Variant> example::plain_variants() {
  return {
      variant<dsv3::Bf16>("BF16: what all others are compared with"),
      variant<dsv3::Fp32>("float throughout: how far rounding alone moves a run"),
  };
}
