// No wgmma here.
#pragma once

#include <dsv3/backend/cuda/context.hpp>

namespace dsv3::detail {

template <class, class, class>
inline constexpr bool hopper_codes_types = false;
inline bool hopper_codes_fit(auto&&...) { return false; }
inline void hopper_codes_gemm(auto&&...) {}
inline void hopper_codes_grouped(auto&&...) {}
inline bool hopper_kernels_run(const Cuda&) { return false; }

}  // namespace dsv3::detail
