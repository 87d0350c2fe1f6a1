// The tuned backend for CPUs: the threads of one machine, packed products, fused attention.
#pragma once

#include <dsv3/backend/cpu/arrange_weights.hpp>
#include <dsv3/backend/cpu/fused_attention.hpp>
#include <dsv3/backend/cpu/fused_latent_attention.hpp>
#include <dsv3/backend/cpu/products.hpp>
