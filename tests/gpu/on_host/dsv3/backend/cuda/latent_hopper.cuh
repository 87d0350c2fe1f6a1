// No wgmma here.
#pragma once

#include <dsv3/backend/cuda/latent_load.cuh>

namespace dsv3::detail {

template <class>
bool latent_hopper_usable(const Cuda&) {
  return false;
}
template <class C>
void latent_hopper_kernel(LatentPass<C>) {}

}  // namespace dsv3::detail
