// Projection: a linear layer whose product reads its operands as the precision policy says, plain
// or as codes.
#pragma once

#include <dsv3/nn/projection_codes.hpp>
#include <dsv3/nn/projection_plain.hpp>
