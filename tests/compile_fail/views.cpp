// Views of matrices that would be read wrongly, and views that do not fit.
#include <dsv3/backend/eigen.hpp>

using dsv3::View;
using Index = dsv3::Index;

inline void right(dsv3::EigenCpu& backend, dsv3::RowMajor<float>& matrix,
                  View<const Index, 1> offsets) {
  const auto view = dsv3::view_of(matrix);
  View<float, 3> experts;
  dsv3::grouped_gemm(backend, dsv3::nt, view, experts, view, offsets, dsv3::Output::overwrite);
}

// case: dsv3 reads matrices row by row: declare yours with Eigen::RowMajor
inline auto column_major(Eigen::MatrixXf& matrix) { return dsv3::view_of(matrix); }
// case: a column-major matrix would be read transposed
inline auto constant(const Eigen::Matrix<double, 3, 4>& matrix) { return dsv3::view_of(matrix); }
// case: grouped_gemm: the tensor with one matrix for each expert has rank 3
inline void one_matrix(dsv3::EigenCpu& backend, View<float, 2> m, View<const Index, 1> offsets) {
  dsv3::grouped_gemm(backend, dsv3::nt, m, m, m, offsets, dsv3::Output::overwrite);
}
// case: grouped_gemm: the tensor with one matrix for each expert has rank 3
inline void gradient(dsv3::EigenCpu& backend, View<float, 2> m, View<const Index, 1> offsets) {
  dsv3::grouped_gemm(backend, dsv3::tn, m, m, m, offsets, dsv3::Output::add);
}
// case: a View has at least one dimension
inline View<float, 0> none;
