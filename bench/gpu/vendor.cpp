// Products by cuBLASLt alone, and the ceilings of the machine.
#include "vendor.hpp"

#include <cstring>

namespace gpu_bench {
namespace {

using dsv3::detail::check_cublas;
using dsv3::detail::check_cuda;

void checked(cublasStatus_t status, const char* call) { check_cublas(status, "VendorPeer", call); }

// Values for ceilings, where no kernel of ours is at hand: random, because zeros draw less power.
void upload_random(Run& run, View<std::uint8_t, 1> memory, bool fp8) {
  std::vector<std::uint32_t> words(1 << 20);
  std::uint32_t state = 1;
  for (auto& word : words) {
    state = state * 1664525u + 1013904223u;
    const std::uint32_t noise = state ^ state >> 15;
    // FP8: exponents 6 ... 9 of codes; bf16: exponents of values between 1/4 and 1.
    word = fp8 ? (noise & 0x9F9F9F9Fu) | 0x30303030u : (noise & 0x80FF80FFu) | 0x3E003E00u;
  }
  const auto piece = static_cast<Index>(words.size() * sizeof(std::uint32_t));
  for (Index at = 0; at < memory.extent(0); at += piece)
    copy_to_backend(run.cuda, memory.data + at, words.data(),
                    std::min(piece, memory.extent(0) - at));
  synchronize(run.cuda);
}

void product_case(Run& run, VendorPeer::Kind kind) {
  const Index n = 8192, size = kind == VendorPeer::Kind::bf16 ? 2 : 1;
  run.work(2.0 * 8192 * 8192 * 8192, "TFLOP/s");
  if (kind == VendorPeer::Kind::bf16) run.torch("mm 8192 8192 8192", 0);
  const auto x = run.take<std::uint8_t>({n * n * size}), w = run.take<std::uint8_t>({n * n * size});
  const auto y = run.take<std::uint8_t>({n * n * 2});
  upload_random(run, x, size == 1);
  upload_random(run, w, size == 1);
  const VendorPeer product(run, kind, n, n, n);
  run.measure([&](Index) { product(x.data, w.data, y.data); });
}

}  // namespace

VendorPeer::VendorPeer(Run& run, Kind kind, Index rows, Index columns, Index depth)
    : cuda_(run.cuda),
      rows_(rows),
      columns_(columns),
      depth_(depth),
      fp8_(kind != Kind::bf16 && kind != Kind::bf16_add),
      add_(kind == Kind::bf16_add || kind == Kind::fp8_block_add) {
  const cudaDataType_t in = fp8_ ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
  const cudaDataType_t out = add_ ? CUDA_R_32F : CUDA_R_16BF;
  const auto u = [](Index n) { return static_cast<std::uint64_t>(n); };
  checked(cublasLtMatmulDescCreate(&description_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "cublasLtMatmulDescCreate");
  // Row-major y = x w^T is column-major y^T = w x^T: w is cuBLASLt's A, read transposed.
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  checked(cublasLtMatrixLayoutCreate(&w_, in, u(depth), u(columns), depth), "a layout");
  checked(cublasLtMatrixLayoutCreate(&x_, in, u(depth), u(rows), depth), "a layout");
  checked(cublasLtMatrixLayoutCreate(&y_, out, u(columns), u(rows), columns), "a layout");
  if (fp8_) {
    const Index groups = dsv3::groups_of(depth, 128);
    const bool tensor = kind == Kind::fp8_tensor, square = kind == Kind::fp8_block;
    const std::int32_t x_mode =
        tensor ? CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F : CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    const std::int32_t w_mode = square ? CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F : x_mode;
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, w_mode);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, x_mode);
    // Groups of 1 x 128 in columns padded to 4, blocks of 128 x 128 in rows padded to 4.
    const auto columns_of_scales = [&](Index n) { return groups * ((n + 3) / 4 * 4); };
    const float* w_scale =
        ones(run, tensor   ? 1
                  : square ? dsv3::groups_of(columns, 128) * ((groups + 3) / 4 * 4)
                           : columns_of_scales(columns));
    const float* x_scale = ones(run, tensor ? 1 : columns_of_scales(rows));
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scale);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scale);
    // What trainers use: sums that are promoted. With block scales they are in any case.
    const std::int8_t fast = 0;
    set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast);
  }
  find(run);
}

VendorPeer::~VendorPeer() {
  if (description_) cublasLtMatmulDescDestroy(description_);
  for (auto layout : {x_, w_, y_})
    if (layout) cublasLtMatrixLayoutDestroy(layout);
}

void VendorPeer::set(cublasLtMatmulDescAttributes_t attribute, const auto& value) {
  checked(cublasLtMatmulDescSetAttribute(description_, attribute, &value, sizeof value),
          "cublasLtMatmulDescSetAttribute");
}

const float* VendorPeer::ones(Run& run, Index count) {
  return run.upload(std::vector<float>(static_cast<std::size_t>(count), 1.0f)).data;
}

void VendorPeer::find(Run& run) {
  cublasLtMatmulPreference_t preference;
  checked(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  const auto limit = static_cast<std::uint64_t>(dsv3::Cuda::vendor_workspace_bytes);
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &limit,
                                       sizeof limit);
  cublasLtMatmulHeuristicResult_t found[4] = {};
  int count = 0;
  const auto status = cublasLtMatmulAlgoGetHeuristic(run.cuda.lt(), description_, w_, x_, y_, y_,
                                                     preference, 4, found, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  checked(status == CUBLAS_STATUS_SUCCESS && count == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : status,
          "cublasLtMatmulAlgoGetHeuristic");
  for (int i = 0; i < count; ++i)
    if (found[i].state == CUBLAS_STATUS_SUCCESS) algorithms_.push_back(found[i].algo);
  if (algorithms_.empty()) checked(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoGetHeuristic");
}

void VendorPeer::operator()(const void* x, const void* w, void* y) const {
  const float one = 1, beta = add_ ? 1.0f : 0.0f;
  const auto run = [&](std::size_t i) {
    return cublasLtMatmul(cuda_.lt(), description_, &one, w, w_, x, x_, &beta, y, y_, y, y_,
                          &algorithms_[i], cuda_.vendor_workspace(),
                          static_cast<std::size_t>(dsv3::Cuda::vendor_workspace_bytes),
                          cuda_.stream());
  };
  if (!timed_) {  // the first call, which nobody times
    timed_ = true;
    double best = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < algorithms_.size(); ++i) {
      if (run(i) != CUBLAS_STATUS_SUCCESS) continue;
      cudaEvent_t start, stop;
      cudaEventCreate(&start);
      cudaEventCreate(&stop);
      cudaEventRecord(start, cuda_.stream());
      for (int repeat = 0; repeat < 3; ++repeat) run(i);
      cudaEventRecord(stop, cuda_.stream());
      cudaEventSynchronize(stop);
      float ms = 0;
      if (cudaEventElapsedTime(&ms, start, stop) == cudaSuccess && double(ms) < best) {
        best = double(ms);
        chosen_ = i;
      }
      cudaEventDestroy(start);
      cudaEventDestroy(stop);
    }
  }
  checked(run(chosen_), "cublasLtMatmul");
}

void measure_vendor(Run& run, const std::string& name, double goal, VendorPeer::Kind kind,
                    Index rows, Index columns, Index depth, Index sets,
                    const std::function<const void*(Index)>& x,
                    const std::function<const void*(Index)>& w,
                    const std::function<void*(Index)>& y) {
  run.record.peer = name;
  run.record.goal = goal;
  try {
    const VendorPeer product(run, kind, rows, columns, depth);
    run.measure_peer(name, goal, sets, [&](Index i) { product(x(i), w(i), y(i)); });
  } catch (const std::exception& error) {
    run.record.note += std::string(run.record.note.empty() ? "" : "; ") + error.what();
  }
}

void ceiling_cases(Cases& cases) {
  cases.push_back({"copy", copy_case});
  cases.push_back({"cuBLASLt bf16 8192 x 8192 x 8192",
                   [](Run& run) { product_case(run, VendorPeer::Kind::bf16); }});
  cases.push_back({"cuBLASLt fp8, a scale a tensor, 8192^3",
                   [](Run& run) { product_case(run, VendorPeer::Kind::fp8_tensor); }});
  cases.push_back({"cuBLASLt fp8, block scales, 8192^3",
                   [](Run& run) { product_case(run, VendorPeer::Kind::fp8_block); }});
}

}  // namespace gpu_bench
