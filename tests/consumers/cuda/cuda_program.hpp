// Sizes of types of the CUDA backend, as this file's compiler sees them.
#pragma once

#include <dsv3/backend/cuda.hpp>

#include "program.hpp"

namespace program {

constexpr std::size_t cuda_sizes[] = {
    sizeof(dsv3::Cuda), sizeof(dsv3::CudaOptions), sizeof(dsv3::Buffer<dsv3::Cuda>),
    sizeof(dsv3::Model<dsv3::Bf16, dsv3::Cuda>), sizeof(dsv3::Model<dsv3::Fp8, dsv3::Cuda>)};

}  // namespace program

extern template std::vector<float> program::squares(dsv3::Cuda&);
