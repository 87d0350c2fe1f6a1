// No wgmma here.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/core/product.hpp>

namespace dsv3::detail {

template <Product, class, class, class>
inline constexpr bool hopper_bf16_types = false;
inline bool hopper_bf16_fit(auto&&...) { return false; }
inline void hopper_bf16_grouped(auto&&...) {}

}  // namespace dsv3::detail
