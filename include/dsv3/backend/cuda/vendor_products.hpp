// Products by cuBLASLt: bf16, float and double, dense and batched. For the host's compiler too.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/core/product.hpp>
#include <dsv3/core/scalar.hpp>

namespace dsv3::detail {

/// Whether cuBLASLt multiplies these types: operands of one type, sums in float or double.
template <class TA, class TB, class TC>
inline constexpr bool vendor_multiplies = [] {
  using A = std::remove_const_t<TA>;
  if (!std::is_same_v<A, std::remove_const_t<TB>>) return false;
  if (std::is_same_v<A, bf16>) return std::is_same_v<TC, bf16> || std::is_same_v<TC, float>;
  return std::is_same_v<A, TC> && (std::is_same_v<A, float> || std::is_same_v<A, double>);
}();

template <class T>
inline constexpr cudaDataType_t vendor_type =
    std::is_same_v<std::remove_const_t<T>, bf16>    ? CUDA_R_16BF
    : std::is_same_v<std::remove_const_t<T>, float> ? CUDA_R_32F
                                                    : CUDA_R_64F;

/// The largest power of two, at most 256, that divides an address.
inline Index alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  Index alignment = 256;
  while (address % static_cast<std::uintptr_t>(alignment) != 0) alignment /= 2;
  return alignment;
}

// One product, in the words of the row-major caller.
struct VendorProduct {
  Product product;
  cudaDataType_t operand, output;
  Index rows, columns, depth, batch;
  const void *a, *b;
  void* c;
  Index a_row, b_row, c_row;           // elements from one row to the next
  Index a_matrix, b_matrix, c_matrix;  // and from one matrix of the batch to the next
  bool add;

  std::string sizes() const {
    return std::to_string(rows) + " x " + std::to_string(columns) + " x " + std::to_string(depth) +
           ", batch " + std::to_string(batch);
  }
};

// A layout as cuBLASLt has it, column by column, which is the transpose of ours.
inline void set_layout(cublasLtMatrixLayout_t layout, Index batch, Index matrix) {
  const auto count = static_cast<std::int32_t>(batch);
  const auto offset = static_cast<std::int64_t>(matrix);
  check_cublas(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                                sizeof count),
               "gemm", "cublasLtMatrixLayoutSetAttribute");
  check_cublas(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                &offset, sizeof offset),
               "gemm", "cublasLtMatrixLayoutSetAttribute");
}

// Everything that cuBLASLt wants to know about one shape, made once.
class VendorPlan {
 public:
  VendorPlan(const Cuda& cuda, const VendorProduct& p) {
    const bool is_double = p.operand == CUDA_R_64F;
    const auto compute = is_double ? CUBLAS_COMPUTE_64F
                         : p.operand == CUDA_R_32F && cuda.options().tf32
                             ? CUBLAS_COMPUTE_32F_FAST_TF32
                             : CUBLAS_COMPUTE_32F;
    make(cublasLtMatmulDescCreate(&description_, compute, is_double ? CUDA_R_64F : CUDA_R_32F));
    // c^T = b^T a^T, so that b is their left operand. Row-major [n, k] is column-major [k, n].
    const bool b_transposed = p.product == Product::nt, a_transposed = p.product == Product::tn;
    set(CUBLASLT_MATMUL_DESC_TRANSA, b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    const auto u = [](Index n) { return static_cast<std::uint64_t>(n); };
    make(cublasLtMatrixLayoutCreate(&b_, p.operand, u(b_transposed ? p.depth : p.columns),
                                    u(b_transposed ? p.columns : p.depth), p.b_row));
    make(cublasLtMatrixLayoutCreate(&a_, p.operand, u(a_transposed ? p.rows : p.depth),
                                    u(a_transposed ? p.depth : p.rows), p.a_row));
    make(cublasLtMatrixLayoutCreate(&c_, p.output, u(p.columns), u(p.rows), p.c_row));
    set_layout(a_, p.batch, p.a_matrix);
    set_layout(b_, p.batch, p.b_matrix);
    set_layout(c_, p.batch, p.c_matrix);
    find(cuda, p);
  }
  VendorPlan(const VendorPlan&) = delete;
  VendorPlan& operator=(const VendorPlan&) = delete;
  ~VendorPlan() {
    if (description_) cublasLtMatmulDescDestroy(description_);
    for (auto layout : {a_, b_, c_})
      if (layout) cublasLtMatrixLayoutDestroy(layout);
  }

  void run(const Cuda& cuda, const VendorProduct& p) {
    const double one = 1, zero = 0;
    const float one_float = 1, zero_float = 0;
    const bool is_double = p.operand == CUDA_R_64F;
    const void* alpha = is_double ? static_cast<const void*>(&one) : &one_float;
    const void* beta = is_double ? static_cast<const void*>(p.add ? &one : &zero)
                                 : (p.add ? &one_float : &zero_float);
    check_cublas(
        cublasLtMatmul(cuda.lt(), description_, alpha, p.b, b_, p.a, a_, beta, p.c, c_, p.c, c_,
                       &algorithm_, cuda.vendor_workspace(),
                       static_cast<std::size_t>(Cuda::vendor_workspace_bytes), cuda.stream()),
        "gemm", "cublasLtMatmul", p.sizes());
  }

 private:
  void make(cublasStatus_t status) { check_cublas(status, "gemm", "cuBLASLt's descriptors"); }
  void set(cublasLtMatmulDescAttributes_t attribute, cublasOperation_t value) {
    make(cublasLtMatmulDescSetAttribute(description_, attribute, &value, sizeof value));
  }

  void find(const Cuda& cuda, const VendorProduct& p) {
    cublasLtMatmulPreference_t preference;
    make(cublasLtMatmulPreferenceCreate(&preference));
    const auto limit = static_cast<std::uint64_t>(Cuda::vendor_workspace_bytes);
    // Not in place: there partial sums are added in the order in which they come.
    const std::uint32_t reductions =
        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      make(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, limit);
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    const auto aligned = [](const void* at) {
      return static_cast<std::uint32_t>(alignment_of(at));
    };
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned(p.b));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned(p.a));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned(p.c));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned(p.c));
    cublasLtMatmulHeuristicResult_t found = {};
    int count = 0;
    const auto status = cublasLtMatmulAlgoGetHeuristic(cuda.lt(), description_, b_, a_, c_, c_,
                                                       preference, 1, &found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    check_cublas(
        count == 0 && status == CUBLAS_STATUS_SUCCESS ? CUBLAS_STATUS_NOT_SUPPORTED : status,
        "gemm", "cublasLtMatmulAlgoGetHeuristic", p.sizes());
    algorithm_ = found.algo;
  }

  cublasLtMatmulDesc_t description_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, c_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_ = {};
};

inline void vendor_product(Cuda& cuda, const VendorProduct& p) {
  const VendorPlans::Key key = {
      static_cast<Index>(p.product),
      p.operand,
      p.output,
      p.rows,
      p.columns,
      p.depth,
      p.batch,
      p.a_row,
      p.b_row,
      p.c_row,
      p.a_matrix,
      p.b_matrix,
      p.c_matrix,
      alignment_of(p.a) + (alignment_of(p.b) << 16) + (alignment_of(p.c) << 32)};
  auto& plan = cuda.plans().made[key];
  if (!plan) plan = std::make_shared<VendorPlan>(cuda, p);
  static_cast<VendorPlan*>(plan.get())->run(cuda, p);
}

template <Product p, class TA, class TB, class TC>
void vendor_gemm(Cuda& cuda, View<TA, 3> a, View<TB, 3> b, View<TC, 3> c, bool add) {
  vendor_product(
      cuda, {p, vendor_type<TA>, vendor_type<TC>, c.extent(1), c.extent(2),
             a.extent(p == Product::tn ? 1 : 2), c.extent(0), a.data, b.data, c.data, a.strides[1],
             b.strides[1], c.strides[1], a.strides[0], b.strides[0], c.strides[0], add});
}

/// One matrix as a batch of one.
template <class T>
View<T, 3> batch_of_one(const View<T, 2>& matrix) {
  View<T, 3> batch;
  batch.data = matrix.data;
  batch.extents[0] = 1;
  batch.strides[0] = 0;
  for (int d = 0; d < 2; ++d) {
    batch.extents[d + 1] = matrix.extents[d];
    batch.strides[d + 1] = matrix.strides[d];
  }
  return batch;
}

}  // namespace dsv3::detail
