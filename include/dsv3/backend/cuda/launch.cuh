// How kernels start.
#pragma once

#include <dsv3/backend/cuda/context.hpp>

namespace dsv3::detail {

// kernel(arguments...) by a grid of blocks of so many threads, with so many bytes of dynamic shared
// memory, on the backend's stream. What comes of it is asked of cudaGetLastError.
template <class... Parameters, class... Arguments>
void launch(Cuda& cuda, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
            std::size_t bytes, const Arguments&... arguments) {
  kernel<<<grid, threads, bytes, cuda.stream()>>>(arguments...);
}

}  // namespace dsv3::detail
