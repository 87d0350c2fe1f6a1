// When codes that lie across the sum are turned before the product instead of inside its kernel,
// and in which stripes. Plain functions without a device.
#pragma once

#include <dsv3/backend/cuda/hopper_schedule.hpp>

namespace dsv3::detail {

// A turned copy has a row for each row or column of c, the sum's direction along it, so that the
// kernel need not transpose; as large a stripe of them at a time as the workspace holds.
//
// Seconds, from times on an H200: the kernel multiplies 670 TFLOP/s (nn) or 550 (tn) where it
// transposes, 1050 or 950 where it does not; a copy reads and writes 3.2 TB/s; a stripe costs two
// launches that the device is not full of. So nn pays from about 600 rows of dY for each weight on,
// tn from about 400 features (of the harmonic mean) on, if the product is not small.
struct HopperRates {
  double transposing, plain, bytes, stripe;
};
constexpr HopperRates hopper_rates(Product p) {
  return p == Product::nn ? HopperRates{670e12, 1050e12, 3.2e12, 8e-6}
                          : HopperRates{550e12, 950e12, 3.2e12, 8e-6};
}
constexpr bool hopper_turning_pays(Product p, double operations, double turned_bytes,
                                   double stripes) {
  const HopperRates r = hopper_rates(p);
  return operations / r.transposing >
         operations / r.plain + 2 * turned_bytes / r.bytes + stripes * r.stripe;
}

constexpr Index hopper_whole_tiles(Index n) { return groups_of(n, hopper_tile) * hopper_tile; }

// nn: columns of c in a stripe, a multiple of 128, all stripes about equal; 0: none fits. A stripe
// of all groups' weights is a stack [groups, stripe, depth], rows of whole tiles apart.
constexpr Index hopper_stripe(Index groups, Index columns, Index depth, Index workspace) {
  const Index each = groups * hopper_whole_tiles(depth) * hopper_tile;
  const Index tiles = groups_of(columns, hopper_tile), most = each > 0 ? workspace / each : 0;
  return most > 0 ? groups_of(tiles, groups_of(tiles, most)) * hopper_tile : 0;
}

// tn: features of a and of b in their stripes; stripes of one walk inside each stripe of the other.
struct HopperTurns {
  Index a = 0, b = 0;     // multiples of 128; 0: nothing fits
  bool a_inside = false;  // for every stripe of b all stripes of a; else the other way
  Index turned = 0;       // features that are turned in all
  Index stripes = 0;      // of c
};

// Tokens of a turned copy: of each segment, whole blocks in the places of its scales' rows.
constexpr Index hopper_turned_tokens(Index tokens, Index groups) {
  return (tokens / hopper_tile + groups) * hopper_tile;
}

// What a block of 128 turned tokens takes: rows from `row` on, `count` of them or more than 128.
struct HopperTurnRows {
  int row, count;
};
DSV3_HD constexpr HopperTurnRows hopper_turn_rows(int block, int group, int first, int next) {
  const int row = first + (block - hopper_segment(group, first)) * hopper_tile;
  return row < first ? HopperTurnRows{0, 0} : HopperTurnRows{row, next - row};
}

constexpr HopperTurns hopper_turns(Index groups, Index rows, Index columns, Index tokens,
                                   Index workspace) {
  const Index a_tiles = groups_of(rows, hopper_tile), b_tiles = groups_of(columns, hopper_tile);
  const Index most = workspace / (hopper_turned_tokens(tokens, groups) * hopper_tile);
  const HopperRates r = hopper_rates(Product::tn);
  HopperTurns best{};
  double least = 0;
  for (Index count = 1; count <= a_tiles && count <= 64; ++count) {
    const Index a = groups_of(a_tiles, count);
    if (a >= most) continue;
    const Index b = groups_of(b_tiles, groups_of(b_tiles, most - a));
    const Index a_stripes = groups_of(a_tiles, a), b_stripes = groups_of(b_tiles, b);
    const Index inside_b = a_tiles + a_stripes * b_tiles, inside_a = b_tiles + b_stripes * a_tiles;
    const Index turned = inside_a < inside_b ? inside_a : inside_b;
    const Index stripes = a_stripes * b_stripes;
    const double cost = 2.0 * static_cast<double>(turned * hopper_tile * tokens) / r.bytes +
                        static_cast<double>(stripes) * r.stripe;
    if (best.a > 0 && cost >= least) continue;
    least = cost;
    best = {a * hopper_tile, b * hopper_tile, inside_a < inside_b, turned * hopper_tile, stripes};
  }
  return best;
}

// Whether nn of rows x columns over depth is done first by turned stripes.
constexpr bool hopper_nn_turns(Index groups, Index rows, Index columns, Index depth, Index stripe) {
  if (stripe == 0) return false;
  const double weights = static_cast<double>(columns) * static_cast<double>(depth);
  return hopper_turning_pays(Product::nn, 2 * weights * static_cast<double>(rows),
                             weights * static_cast<double>(groups),
                             static_cast<double>(groups_of(columns, stripe)));
}
// Whether tn of rows x columns over tokens, in any groups, is.
constexpr bool hopper_tn_turns(Index rows, Index columns, Index tokens, const HopperTurns& turns) {
  if (turns.a == 0) return false;
  const double length = static_cast<double>(tokens);
  return hopper_turning_pays(
      Product::tn, 2 * length * static_cast<double>(rows) * static_cast<double>(columns),
      length * static_cast<double>(turns.turned), static_cast<double>(turns.stripes));
}

}  // namespace dsv3::detail
