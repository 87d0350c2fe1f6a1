// Sizes of types of the CUDA backend, as the compiler of the calling file sees them.
#pragma once

#include <dsv3/backend/cuda.hpp>

#include "program.hpp"

namespace program {

inline std::vector<std::size_t> cuda_layout() {
  return {sizeof(dsv3::Cuda), sizeof(dsv3::CudaOptions), sizeof(dsv3::Buffer<dsv3::Cuda>),
          sizeof(dsv3::Model<dsv3::Bf16, dsv3::Cuda>), sizeof(dsv3::Model<dsv3::Fp8, dsv3::Cuda>)};
}

}  // namespace program

extern template std::vector<float> program::squares(dsv3::Cuda&);
