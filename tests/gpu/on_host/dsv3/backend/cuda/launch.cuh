// How kernels start: at once, on the calling thread.
#pragma once

#include <dsv3/backend/cuda/context.hpp>

namespace dsv3::detail {

template <class... Parameters, class... Arguments>
void launch(Cuda& cuda, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
            std::size_t bytes, const Arguments&... arguments) {
  cuda.started(reinterpret_cast<void*>(kernel));
  cuda.multiprocessor().run(grid, threads, bytes, [&] { kernel(arguments...); });
}

}  // namespace dsv3::detail
