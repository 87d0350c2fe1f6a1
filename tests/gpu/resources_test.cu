// Shared memory that the hot kernels ask for when they start: blocks that are meant to run at once
// fit a multiprocessor. What is known without starting them is in the table of tests/gpu/resources.
#include <doctest/doctest.h>

#include <dsv3/backend/cuda.hpp>

namespace {

using namespace dsv3::detail;
using dsv3::Product;

constexpr int kib = 1024;
constexpr int of_hopper = 228 * kib;      // a multiprocessor of 9.0
constexpr int of_a_small_gpu = 99 * kib;  // a block of 8.6, 8.9 and 12.0
constexpr int of_the_driver = kib;        // in every block

// `blocks` at once on Hopper.
struct Use {
  const char* kernel;
  int bytes, blocks;
};

}  // namespace

TEST_CASE("Blocks that are meant to run at once fit a multiprocessor's shared memory") {
  const Use uses[] = {
      {"codes on Hopper, nt", HopperStages<HopperForm<Product::nt, false, 2, 128>>::bytes, 1},
      {"codes on Hopper, nn", HopperStages<HopperForm<Product::nn, false, 2, 128>>::bytes, 1},
      {"codes on Hopper, tn", HopperStages<HopperForm<Product::tn, false, 2, 128>>::bytes, 1},
      {"codes on Hopper, turned", HopperStages<HopperForm<Product::tn, true, 2, 128>>::bytes, 1},
      {"bf16 on Hopper, 256 wide", HopperBf16Form<Product::nt, 256, false>::bytes, 1},
      {"bf16 on Hopper, apart", HopperBf16Form<Product::nt, 128, true>::bytes, 1},
      {"attention on Hopper", AttentionHopperShape<3, true>::bytes, 1},
      {"its queries", AttentionHopperBackwardShape<AttentionPart::queries>::bytes, 1},
      {"its keys", AttentionHopperBackwardShape<AttentionPart::keys>::bytes, 1},
      {"its values", AttentionHopperBackwardShape<AttentionPart::values>::bytes, 1},
      {"decoding, 512 + 64", LatentTile::bytes(512 + 64, 2), 1},
      {"decoding, 128 + 64", LatentTile::bytes(128 + 64, 2), 1},
      {"attention forward, 192 and 128", AttentionForwardOf<192, 128>::bytes, 2},
      {"attention forward, 128 and 128", AttentionForwardOf<128, 128>::bytes, 2},
      {"attention forward, 64 and 64", AttentionForwardOf<64, 64>::bytes, 2},
      {"attention backward, 192 and 128", AttentionBackwardOf<192, 128>::bytes, 2},
      {"attention backward, 128 and 128", AttentionBackwardOf<128, 128>::bytes, 2},
      {"attention backward, 64 and 64", AttentionBackwardOf<64, 64>::bytes, 2},
      {"large tile", tile_bytes<LargeTile>(), LargeTile::blocks},
      {"medium tile", tile_bytes<MediumTile>(), MediumTile::blocks},
      {"small tile", tile_bytes<SmallTile>(), SmallTile::blocks},
      {"large tile of codes", CodeMemory<LargeCodeTile>::bytes, LargeCodeTile::blocks},
      {"small tile of codes", CodeMemory<SmallCodeTile>::bytes, SmallCodeTile::blocks},
  };
  for (const Use& use : uses) {
    INFO(use.kernel, ": ", use.blocks, " blocks of ", use.bytes, " bytes");
    CHECK(use.blocks * (use.bytes + of_the_driver) <= of_hopper);
  }
}

TEST_CASE("What serves sizes that nothing else takes fits every GPU") {
  CHECK(AttentionForwardGeneral::bytes <= of_a_small_gpu);
  CHECK(AttentionBackwardGeneral::bytes <= of_a_small_gpu);
  CHECK(tile_bytes<SmallTile>() <= of_a_small_gpu);
  CHECK(CodeMemory<SmallCodeTile>::bytes <= of_a_small_gpu);
}
