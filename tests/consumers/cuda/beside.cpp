// A .cpp file beside a .cu file: one layout in all files, and, where there is a GPU, results of
// kernels that nvcc compiled, called through a template and through a primitive.
#include <cstdio>

#include "cuda_program.hpp"

namespace {

int failures = 0;

template <class T>
void expect_equal(const char* what, const std::vector<T>& a, const std::vector<T>& b) {
  if (a == b) return;
  ++failures;
  std::printf("%s:", what);
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i)
    std::printf(" %g%s%g", static_cast<double>(a[i]), a[i] == b[i] ? "=" : " is not ",
                static_cast<double>(b[i]));
  std::printf("\n");
}

// for_each_row is only declared here.
std::vector<float> by_primitive(dsv3::Cuda& cuda) {
  using program::columns, program::rows;
  const dsv3::Buffer<dsv3::Cuda> x(cuda, rows * columns * 4), y(cuda, rows * 4);
  fill_zero(cuda, x.data(), rows * columns * 4);
  for_each_row(cuda, rows,
               program::SquaresRow{{static_cast<const float*>(x.data()), {rows, columns}},
                                   {static_cast<float*>(y.data()), {rows}}});
  std::vector<float> sums(rows, -1.0f);
  copy_to_host(cuda, sums.data(), y.data(), rows * 4);
  return sums;
}

}  // namespace

int main() {
  expect_equal("sizes here and in plain.cpp", program::list(program::plain_sizes),
               program::layout_of_plain());
  expect_equal("sizes here and in kernels.cu", program::list(program::plain_sizes),
               program::layout_of_nvcc());
  expect_equal("sizes of the backend", program::list(program::cuda_sizes),
               program::cuda_layout_of_nvcc());
  const auto missing = dsv3::cuda_unavailable();
  if (!missing.empty()) {
    std::printf("%s: no kernel is run\n", missing.c_str());
  } else {
    dsv3::Cuda cuda;
    expect_equal("squares", program::squares(cuda), program::squares_on_cpu());
    expect_equal("zeros", by_primitive(cuda), std::vector<float>(program::rows));
  }
  return failures;
}
