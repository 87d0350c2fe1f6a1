// Products by cuBLASLt alone, as peers: bf16, and FP8 with one scale a tensor or with scales of
// blocks.
#pragma once

#include "harness.hpp"

namespace gpu_bench {

/// y = x w^T by the fastest of the algorithms that cuBLASLt proposes.
///
/// Shapes   x [rows, depth], w [columns, depth], y [rows, columns], dense; y in bf16 unless added
///          to. FP8: codes of e4m3; scales are its own and hold 1, in cuBLASLt's order.
/// Errors   std::runtime_error where cuBLASLt has no such product.
class VendorPeer {
 public:
  enum class Kind {
    bf16,
    bf16_add,      ///< added to y in float
    fp8_tensor,    ///< one scale for each matrix
    fp8_block,     ///< 1 x 128 of x, 128 x 128 of w
    fp8_block_add  ///< 1 x 128 of both; added to y in float
  };

  VendorPeer(Run& run, Kind kind, Index rows, Index columns, Index depth);
  VendorPeer(const VendorPeer&) = delete;
  VendorPeer& operator=(const VendorPeer&) = delete;
  ~VendorPeer();

  void operator()(const void* x, const void* w, void* y) const;

 private:
  void set(cublasLtMatmulDescAttributes_t attribute, const auto& value);
  const float* ones(Run& run, Index count);
  void find(Run& run);

  dsv3::Cuda& cuda_;
  Index rows_, columns_, depth_;
  bool fp8_, add_;
  cublasLtMatmulDesc_t description_ = nullptr;
  cublasLtMatrixLayout_t x_ = nullptr, w_ = nullptr, y_ = nullptr;
  std::vector<cublasLtMatmulAlgo_t> algorithms_;
  mutable std::size_t chosen_ = 0;
  mutable bool timed_ = false;
};

/// The rows of a table of peers: measures the product in turns over `sets` of operands.
void measure_vendor(Run& run, const std::string& name, double goal, VendorPeer::Kind kind,
                    Index rows, Index columns, Index depth, Index sets,
                    const std::function<const void*(Index)>& x,
                    const std::function<const void*(Index)>& w,
                    const std::function<void*(Index)>& y);

}  // namespace gpu_bench
