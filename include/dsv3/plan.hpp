// Plan: what a model and its training cost, before they exist. One concept a header; those that
// count this library's own memory need a backend, the others a ModelConfig alone.
#pragma once

#include <dsv3/plan/activations.hpp>
#include <dsv3/plan/cache.hpp>
#include <dsv3/plan/cost.hpp>
#include <dsv3/plan/flops.hpp>
#include <dsv3/plan/layout.hpp>
#include <dsv3/plan/parameters.hpp>
#include <dsv3/plan/pass.hpp>
#include <dsv3/plan/pipeline.hpp>
#include <dsv3/plan/rank_memory.hpp>
#include <dsv3/plan/training_memory.hpp>
#include <dsv3/plan/transfer.hpp>
#include <dsv3/plan/weights.hpp>
