// The CUDA backend, all of it. The host's compiler sees the kernels' primitives only declared, and
// links to a .cu file that instantiates the same model.
#pragma once

#include <dsv3/backend/cuda/attention.hpp>
#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/backend/cuda/fused_columns.hpp>
#include <dsv3/backend/cuda/fused_rows.hpp>
#include <dsv3/backend/cuda/graphs.hpp>
#include <dsv3/backend/cuda/latent_attention.hpp>
#include <dsv3/backend/cuda/primitives.hpp>
#include <dsv3/backend/cuda/sampling.hpp>
#include <dsv3/backend/cuda/vendor_products.hpp>

#ifdef __CUDACC__
#include <dsv3/backend/cuda/attention.cuh>
#include <dsv3/backend/cuda/fused_columns.cuh>
#include <dsv3/backend/cuda/fused_columns_adamw.cuh>
#include <dsv3/backend/cuda/fused_columns_experts.cuh>
#include <dsv3/backend/cuda/fused_rows.cuh>
#include <dsv3/backend/cuda/latent_attention.cuh>
#include <dsv3/backend/cuda/products.cuh>
#include <dsv3/backend/cuda/sampling.cuh>
#include <dsv3/backend/cuda/sort.cuh>
#include <dsv3/backend/cuda/team.cuh>
#endif
