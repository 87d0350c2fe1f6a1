// Weights of a model from and to checkpoints in the published format.
#pragma once

#include <dsv3/io/checkpoint_load.hpp>
#include <dsv3/io/checkpoint_save.hpp>
