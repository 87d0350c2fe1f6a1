// What nvcc compiles: the kernels that the other files start.
#include "cuda_program.hpp"

template std::vector<float> program::squares(dsv3::Cuda&);

std::vector<std::size_t> program::layout_of_nvcc() { return list(plain_sizes); }
std::vector<std::size_t> program::cuda_layout_of_nvcc() { return list(cuda_sizes); }
