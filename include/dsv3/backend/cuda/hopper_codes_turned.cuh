// Products of turned copies of codes, stripe by stripe through the context's workspace.
#pragma once

#include <dsv3/backend/cuda/hopper_codes_launch.cuh>
#include <dsv3/backend/cuda/hopper_stripes.hpp>

namespace dsv3::detail {

// Memory for a turned stripe: [groups, rows, along] in rows of whole tiles.
inline View<e4m3, 3> turned_stripe(void* memory, Index groups, Index rows, Index along) {
  View<e4m3, 3> stripe(static_cast<e4m3*>(memory), {groups, rows, hopper_whole_tiles(along)});
  stripe.extents[2] = along;
  return stripe;
}
template <class TC>
View<TC, 2> part_of(const View<TC, 2>& c, Index row, Index rows, Index column, Index columns) {
  View<TC, 2> part = c;
  part.data += row * c.strides[0] + column;
  part.extents[0] = rows;
  part.extents[1] = columns;
  return part;
}
constexpr Index least_of(Index x, Index y) { return x < y ? x : y; }

// nn: as run_hopper_codes, by nt of `stripe` columns of b at a time, turned.
template <bool bounded, class CA, class CB, class TC>
void run_turned_nn(Cuda& cuda, const char* caller, const Quantized<CA>& a,
                   const QuantizedStack<CB>& b, const View<TC, 2>& c,
                   const View<const Index, 1>& offsets, Output output, const HopperCut& cut,
                   Index stripe) {
  HopperMaps maps;
  maps.a = tensor_map(caller, codes_shape(a.codes, cut.height()));
  for (Index first = 0; first < c.extent(1); first += stripe) {
    const Index columns = least_of(stripe, c.extent(1) - first);
    const auto turned = turned_stripe(cuda.workspace(), b.extent(0), columns, b.extent(1));
    turn_codes(cuda, caller, b.codes, first, turned);
    auto work = hopper_work(cuda, part_of(c, 0, c.extent(0), first, columns), 0, a.extent(1),
                            b.extent(0), offsets, output);
    take_scales<Product::nn>(work, a, b, first);
    maps.b = tensor_map(caller, codes_shape(turned, cut.width));
    maps.a_scales = maps.b_scales = maps.a;
    launch_hopper_codes<Product::nt, false, bounded>(cuda, caller, maps, work, cut);
  }
}

// tn: as run_hopper_codes_tn, of turned stripes of both operands.
template <bool bounded, class CA, class CB, class TC>
void run_turned_tn(Cuda& cuda, const char* caller, const Quantized<CA>& a, const Quantized<CB>& b,
                   const View<TC, 2>& c, Index c_group, Index groups,
                   const View<const Index, 1>& offsets, Output output, const HopperCut& cut,
                   const HopperTurns& turns) {
  const Index tokens = hopper_turned_tokens(a.extent(0), groups);
  const Index rows = c.extent(0), columns = c.extent(1);
  const View<const e4m3, 3> a_from = stack_of_one(a).codes, b_from = stack_of_one(b).codes;
  auto* const memory = static_cast<char*>(cuda.workspace());
  const auto turn = [&](bool is_a, Index first) {
    const Index features =
        is_a ? least_of(turns.a, rows - first) : least_of(turns.b, columns - first);
    const auto to = turned_stripe(is_a ? memory : memory + turns.a * tokens, 1, features, tokens);
    turn_segments(cuda, caller, is_a ? a_from : b_from, first, to, groups, offsets);
    return to;
  };
  const auto multiply = [&](const View<e4m3, 3>& a_turned, Index row, const View<e4m3, 3>& b_turned,
                            Index column) {
    const auto part = part_of(c, row, a_turned.extent(1), column, b_turned.extent(1));
    const auto work = hopper_work(cuda, part, c_group, a.extent(0), groups, offsets, output);
    HopperMaps maps;
    maps.a = tensor_map(caller, codes_shape(a_turned[0], cut.height()));
    maps.b = tensor_map(caller, codes_shape(b_turned, hopper_tile));
    maps.a_scales = tensor_map(caller, scales_shape(a.scales, row, cut.height()));
    maps.b_scales = tensor_map(caller, scales_shape(b.scales, column, hopper_tile));
    launch_hopper_codes<Product::tn, true, bounded>(cuda, caller, maps, work, cut);
  };
  if (turns.a_inside) {
    for (Index column = 0; column < columns; column += turns.b) {
      const auto b_turned = turn(false, column);
      for (Index row = 0; row < rows; row += turns.a)
        multiply(turn(true, row), row, b_turned, column);
    }
  } else {
    for (Index row = 0; row < rows; row += turns.a) {
      const auto a_turned = turn(true, row);
      for (Index column = 0; column < columns; column += turns.b)
        multiply(a_turned, row, turn(false, column), column);
    }
  }
}

}  // namespace dsv3::detail
