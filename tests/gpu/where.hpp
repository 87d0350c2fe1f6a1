// Where kernels of these tests run.
#pragma once

/// As fibers of the host (on_host/language.hpp) instead of on a GPU: then less is tried.
#ifdef __CUDACC__
inline constexpr bool on_fibers = false;
#else
inline constexpr bool on_fibers = true;
#endif
