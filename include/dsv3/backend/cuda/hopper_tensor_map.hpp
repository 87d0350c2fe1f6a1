// Tensor maps: what TMA knows of a matrix in device memory. For the host's compiler too; needs no
// -lcuda.
#pragma once

#include <cuda.h>

#include <dsv3/backend/cuda/errors.hpp>

namespace dsv3::detail {

// A tensor of up to three dimensions, the contiguous one first.
struct TensorShape {
  CUtensorMapDataType type;
  const void* data;  // a multiple of 16
  int rank;
  Index extents[3];       // elements
  Index stride_bytes[2];  // of the second and third dimension: multiples of 16
  int box[3];             // elements that one copy brings; zeros where it reaches beyond the tensor
  bool swizzle;           // rows of 128 bytes in 128-byte swizzle
};

// The driver's cuTensorMapEncodeTiled, found through the runtime.
inline auto tensor_map_encoder() {
  using Encoder = decltype(&cuTensorMapEncodeTiled);
  static const Encoder encoder = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                cudaEnableDefault, &result),
               "tensor_map", "cudaGetDriverEntryPointByVersion");
    if (!found || result != cudaDriverEntryPointSuccess)
      throw std::runtime_error("tensor_map: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encoder>(found);
  }();
  return encoder;
}

inline CUtensorMap tensor_map(const char* caller, const TensorShape& shape) {
  cuuint64_t extents[3], strides[2];
  cuuint32_t box[3], steps[3] = {1, 1, 1};
  for (int d = 0; d < shape.rank; ++d) {
    extents[d] = static_cast<cuuint64_t>(shape.extents[d]);
    box[d] = static_cast<cuuint32_t>(shape.box[d]);
    if (d > 0) strides[d - 1] = static_cast<cuuint64_t>(shape.stride_bytes[d - 1]);
  }
  CUtensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map, shape.type, static_cast<cuuint32_t>(shape.rank), const_cast<void*>(shape.data), extents,
      strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      shape.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return map;
  std::string sizes;
  for (int d = 0; d < shape.rank; ++d)
    sizes += (d ? " x " : "") + std::to_string(shape.extents[d]) + " in boxes of " +
             std::to_string(shape.box[d]);
  throw std::runtime_error(std::string(caller) + ": cuTensorMapEncodeTiled (" + sizes +
                           ") failed: " + std::to_string(static_cast<int>(result)));
}

}  // namespace dsv3::detail
