// The fused row kernels, all of them.
#pragma once

#include <dsv3/backend/cuda/fused_rows_norm.cuh>
#include <dsv3/backend/cuda/fused_rows_norm_backward.cuh>
#include <dsv3/backend/cuda/fused_rows_quantize.cuh>
#include <dsv3/backend/cuda/fused_rows_swiglu.cuh>
