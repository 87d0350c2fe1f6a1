// The host's compiler beside nvcc: one layout of every shared type, and a model whose kernels are
// in a .cu file.
#include <doctest/doctest.h>

#include "program.hpp"

TEST_CASE("Both compilers lay out the library's types alike") {
  const std::vector<std::size_t> sizes(std::begin(gpu::sizes), std::end(gpu::sizes));
  CHECK(sizes == gpu::sizes_of_nvcc());
}

TEST_CASE("The host part of a program with device code trains on Cpu") {
  dsv3::Cpu cpu(1);
  const auto figures = small::train<dsv3::Fp64>(cpu).figures;
  REQUIRE(figures.size() == 14);
  CHECK(figures[8] < figures[0]);
}

TEST_CASE("Core functions have the bits of the host, called from a .cpp file") {
  if (!gpu::available()) return;
  dsv3::Cuda cuda;
  dsv3::Cpu cpu(1);
  CHECK(gpu::core(cuda) == gpu::core(cpu));
}

TEST_CASE("A GPU that is not there is an error that says so") {
  CHECK(dsv3::cuda_unavailable(1 << 20) != "");
  CHECK_THROWS_AS(dsv3::Cuda({.device = 1 << 20}), std::runtime_error);
}

TEST_CASE("Memory that is not there is an error with both sizes, and nothing changes") {
  if (!gpu::available()) return;
  dsv3::Cuda cuda;
  CHECK_THROWS_AS(dsv3::Buffer<dsv3::Cuda>(cuda, dsv3::Index{1} << 50), dsv3::OutOfDeviceMemory);
  CHECK_THROWS_AS(dsv3::Buffer<dsv3::Cuda>(cuda, dsv3::Index{1} << 50), std::bad_alloc);
  const dsv3::Buffer<dsv3::Cuda> small(cuda, 64);
  synchronize(cuda);
}
