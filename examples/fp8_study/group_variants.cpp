#include "run.hpp"
#include "variants.hpp"

std::vector<example::Variant> example::group_variants() {
  return {
      variant<Tile32>("activations in tiles of 1 x 32"),
      variant<Tile64>("activations in tiles of 1 x 64"),
      variant<Tile256>("activations in tiles of 1 x 256"),
      variant<PerTensor>("one scale for each tensor"),
      variant<Delayed>("the same from the largest values of the 16 steps before"),
      variant<GradientBlocks>("gradients for dX in 128 x 128 blocks"),
  };
}
