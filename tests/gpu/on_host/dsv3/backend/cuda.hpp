// The CUDA backend without a GPU: all but graphs, cuBLASLt and wgmma.
#pragma once

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
