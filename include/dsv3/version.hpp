// The version of the library, for the preprocessor. CMake reads it from here.
#pragma once

/// major * 10000 + minor * 100 + patch.
#define DSV3_VERSION 100
