// Everything to instantiate, train and run a model: include this. Needs Eigen and nothing else.
#pragma once

#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/config.hpp>
#include <dsv3/infer/generate.hpp>
#include <dsv3/nn/model.hpp>
#include <dsv3/train/trainer.hpp>
