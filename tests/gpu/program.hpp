// What the .cpp and the .cu files of these tests share: what core functions compute on any backend,
// and the sizes of types as each compiler sees them.
#pragma once

#include <dsv3/backend/cuda.hpp>
#include <dsv3/core/philox.hpp>
#include <dsv3/model.hpp>
#include <vector>

#include "nn/fp8_variants.hpp"
#include "small_generation.hpp"

namespace gpu {

using dsv3::Index;
using dsv3::View;

/// exp, log, sigmoid, normal numbers and the narrow types with their casts, of row numbers: integer
/// results.
struct CoreRow {
  static constexpr Index columns = 9;
  View<std::uint32_t, 2> bits;  // [rows, columns]

  DSV3_HD void operator()(auto team, Index row) const {
    team.once([&] {
      const dsv3::Philox philox(1, 2);
      const float x = 8 * dsv3::normal(philox, static_cast<std::uint64_t>(row));
      const float values[] = {x, dsv3::exp(x), dsv3::log(x < 0 ? -x : x), dsv3::sigmoid(x),
                              float(dsv3::bf16(x))};
      for (int i = 0; i < 5; ++i) bits(row, i) = __builtin_bit_cast(std::uint32_t, values[i]);
      const dsv3::e4m3 a(x);
      const dsv3::e5m2 b(x);
      const dsv3::e5m6 d(x);
      const auto word = static_cast<std::uint32_t>(row) * 2654435761u;
      bits(row, 5) = a.code + 256u * b.code + 65536u * d.code;
      bits(row, 6) = __builtin_bit_cast(std::uint32_t, float(a) + float(b) + float(d));
      bits(row, 7) = dsv3::e4m3::format::encode_stochastic(x, word) +
                     256u * dsv3::e5m2::format::encode_stochastic(x / 4096, word);
      bits(row, 8) = dsv3::bf16_stochastic(x, word).bits + 65536u * dsv3::ue8m0(x).code;
    });
  }
};

template <class Backend>
std::vector<std::uint32_t> core(Backend& backend) {
  constexpr Index rows = 1000, columns = CoreRow::columns, bytes = rows * columns * 4;
  const dsv3::Buffer<Backend> buffer(backend, bytes);
  for_each_row(backend, rows,
               CoreRow{{static_cast<std::uint32_t*>(buffer.data()), {rows, columns}}});
  std::vector<std::uint32_t> bits(rows * columns);
  copy_to_host(backend, bits.data(), buffer.data(), bytes);
  return bits;
}

/// Sizes of what the host and the device hand each other: as this file's
/// compiler sees them. No inline function: all files would call one and the same.
constexpr std::size_t sizes[] = {sizeof(View<float, 1>),
                                 sizeof(View<float, 3>),
                                 sizeof(dsv3::ModelConfig),
                                 sizeof(dsv3::Philox),
                                 sizeof(dsv3::Batch),
                                 sizeof(dsv3::DeviceLevel),
                                 sizeof(dsv3::Block<dsv3::Bf16>),
                                 sizeof(dsv3::Transformer<dsv3::Bf16>),
                                 sizeof(dsv3::Transformer<dsv3::Bf16>::Pass),
                                 sizeof(dsv3::Cuda),
                                 sizeof(dsv3::Model<dsv3::Bf16, dsv3::Cuda>),
                                 sizeof(dsv3::StepReport),
                                 sizeof(dsv3::Quantized<dsv3::e4m3>),
                                 sizeof(dsv3::QuantizedWeightStack<dsv3::e4m3>),
                                 sizeof(dsv3::PackedE5m6),
                                 sizeof(dsv3::Block<dsv3::Fp8>),
                                 sizeof(dsv3::Transformer<dsv3::Fp8>),
                                 sizeof(dsv3::Model<dsv3::Fp8, dsv3::Cuda>),
                                 sizeof(dsv3::detail::SampleRule),
                                 sizeof(dsv3::detail::SampledRow),
                                 sizeof(dsv3::detail::SampleRow<float>),
                                 sizeof(CoreRow)};

/// The same, as nvcc sees it.
std::vector<std::size_t> sizes_of_nvcc();

/// True where there is a GPU to run on; else says once why not.
inline bool available() {
  static const std::string reason = [] {
    const auto why = dsv3::cuda_unavailable();
    if (!why.empty()) std::printf("%s: nothing is run on a GPU\n", why.c_str());
    return why;
  }();
  return reason.empty();
}

}  // namespace gpu

// Compiled by nvcc, called by the host's compiler.
extern template std::vector<std::uint32_t> gpu::core(dsv3::Cuda&);
extern template small::Outcome small::train<dsv3::Fp64>(dsv3::Cuda&);
