// A file that knows nothing of CUDA.
#include "program.hpp"

#if defined(CUDART_VERSION) || defined(__CUDA_RUNTIME_H__)
#error "dsv3/model.hpp includes CUDA's headers"
#endif

std::vector<std::size_t> program::layout_of_plain() { return list(plain_sizes); }

std::vector<float> program::squares_on_cpu() {
  dsv3::Cpu backend(1);
  return squares(backend);
}
