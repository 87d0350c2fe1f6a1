// How kernels start: at once, on the calling thread.
#pragma once

#include <dsv3/backend/cuda/context.hpp>

namespace dsv3::detail {

template <class... Parameters, class... Arguments>
void launch(Cuda& cuda, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
            std::size_t bytes, const Arguments&... arguments) {
  const auto* const name = reinterpret_cast<const void*>(kernel);
  const auto allowed = dynamic_bytes_allowed().find(name);
  const std::size_t most = allowed == dynamic_bytes_allowed().end()
                               ? 48 << 10
                               : static_cast<std::size_t>(allowed->second);
  if (bytes > most)
    throw std::logic_error("a launch with " + std::to_string(bytes) +
                           " bytes of dynamic shared memory, of which " + std::to_string(most) +
                           " are allowed");
  cuda.multiprocessor().run(grid, threads, bytes, [&] { kernel(arguments...); });
}

}  // namespace dsv3::detail
