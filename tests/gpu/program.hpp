// What both compilers see: what the core headers compute, on any backend, and the sizes of types.
#pragma once

#include <dsv3/core/buffer.hpp>
#include <dsv3/core/philox.hpp>
#include <vector>

#include "../small_model.hpp"
#include "device.hpp"

namespace gpu {

/// exp, log, sigmoid, normal numbers and the narrow types, of row numbers: integer results.
struct CoreRow {
  View<std::uint32_t, 2> bits;  // [rows, 6]

  DSV3_HD void operator()(auto team, Index row) const {
    team.once([&] {
      const dsv3::Philox philox(1, 2);
      const float x = 8 * dsv3::normal(philox, static_cast<std::uint64_t>(row));
      const float values[] = {x, dsv3::exp(x), dsv3::log(x < 0 ? -x : x), dsv3::sigmoid(x),
                              float(dsv3::bf16(x))};
      for (int i = 0; i < 5; ++i) bits(row, i) = __builtin_bit_cast(std::uint32_t, values[i]);
      bits(row, 5) = dsv3::e4m3(x).code + 256u * dsv3::e5m2(x).code;
    });
  }
};

template <class Backend>
std::vector<std::uint32_t> core(Backend& backend) {
  constexpr Index rows = 1000, bytes = rows * 6 * 4;
  const dsv3::Buffer<Backend> buffer(backend, bytes);
  for_each_row(backend, rows, CoreRow{{static_cast<std::uint32_t*>(buffer.data()), {rows, 6}}});
  std::vector<std::uint32_t> bits(rows * 6);
  copy_to_host(backend, bits.data(), buffer.data(), bytes);
  return bits;
}

/// Sizes of what the host and the device hand each other: one layout, whichever compiler.
inline std::vector<std::size_t> layout() {
  using Transformer = dsv3::Transformer<dsv3::Bf16>;
  return {sizeof(View<float, 1>),
          sizeof(View<float, 3>),
          sizeof(dsv3::ModelConfig),
          sizeof(dsv3::Philox),
          sizeof(dsv3::Batch),
          sizeof(dsv3::DeviceLevel),
          sizeof(dsv3::Block<dsv3::Bf16>),
          sizeof(Transformer),
          sizeof(Transformer::Pass),
          sizeof(dsv3::Model<dsv3::Bf16, Device>),
          sizeof(dsv3::StepReport),
          sizeof(CoreRow)};
}

/// The same, as nvcc sees it.
std::vector<std::size_t> layout_of_nvcc();

}  // namespace gpu
