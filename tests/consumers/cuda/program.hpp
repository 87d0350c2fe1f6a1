// What the files of this program share. No CUDA.
#pragma once

#include <dsv3/model.hpp>
#include <vector>

namespace program {

/// y[row] = sum of the squares of x's row: the same bits on every backend, for whole numbers.
struct SquaresRow {
  dsv3::View<const float, 2> x;
  dsv3::View<float, 1> y;

  DSV3_HD void operator()(auto team, dsv3::Index row) const {
    const float sum = team.sum(x.extent(1), [&](dsv3::Index i) { return x(row, i) * x(row, i); });
    team.once([&] { y(row) = sum; });
  }
};

constexpr dsv3::Index rows = 3, columns = 37;

/// Sums of squares of 0, 1, 2, ....
template <class Backend>
std::vector<float> squares(Backend& backend) {
  std::vector<float> x(rows * columns), y(rows);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  constexpr dsv3::Index x_bytes = rows * columns * 4, y_bytes = rows * 4;
  const dsv3::Buffer<Backend> on_x(backend, x_bytes), on_y(backend, y_bytes);
  copy_to_backend(backend, on_x.data(), x.data(), x_bytes);
  for_each_row(backend, rows,
               SquaresRow{{static_cast<const float*>(on_x.data()), {rows, columns}},
                          {static_cast<float*>(on_y.data()), {rows}}});
  copy_to_host(backend, y.data(), on_y.data(), y_bytes);
  return y;
}

/// Sizes of types that all files use, as this file's compiler sees them. No inline function: all
/// files would call one and the same.
constexpr std::size_t plain_sizes[] = {sizeof(dsv3::View<float, 1>),
                                       sizeof(dsv3::View<float, 3>),
                                       sizeof(dsv3::ModelConfig),
                                       sizeof(dsv3::Batch),
                                       sizeof(dsv3::StepReport),
                                       sizeof(dsv3::Quantized<dsv3::e4m3>),
                                       sizeof(dsv3::QuantizedWeightStack<dsv3::e4m3>),
                                       sizeof(dsv3::Block<dsv3::Bf16>),
                                       sizeof(dsv3::Block<dsv3::Fp8>),
                                       sizeof(dsv3::Transformer<dsv3::Bf16>),
                                       sizeof(dsv3::Transformer<dsv3::Fp8>),
                                       sizeof(dsv3::Transformer<dsv3::Fp8>::Pass),
                                       sizeof(SquaresRow)};

template <std::size_t n>
std::vector<std::size_t> list(const std::size_t (&sizes)[n]) {
  return {sizes, sizes + n};
}

std::vector<std::size_t> layout_of_plain();                        // plain.cpp
std::vector<float> squares_on_cpu();                               // plain.cpp
std::vector<std::size_t> layout_of_nvcc(), cuda_layout_of_nvcc();  // kernels.cu

}  // namespace program
