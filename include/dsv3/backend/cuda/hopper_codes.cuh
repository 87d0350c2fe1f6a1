// Products of matrices of e4m3 codes by wgmma, on GPUs of compute capability 9.0.
#pragma once

#include <dsv3/backend/cuda/hopper_codes_turned.cuh>

namespace dsv3::detail {

// Has static shared memory where the program has code for sm_90a; never started.
template <int words>
__global__ void hopper_probe_kernel(int* out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ int memory[words];
  memory[threadIdx.x % words] = out[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = memory[(threadIdx.x + 1) % words];
#else
  out[threadIdx.x] = 0;
#endif
}

// Whether kernels with wgmma and TMA can run: the device, the options, and what was compiled.
inline bool hopper_kernels_run(const Cuda& cuda) {
  if (cuda.capability() != 90 || !cuda.options().hopper_kernels) return false;
  static const bool compiled = [] {
    cudaFuncAttributes attributes{};
    check_cuda(cudaFuncGetAttributes(&attributes, hopper_probe_kernel<2048>), "hopper_kernels_run",
               "cudaFuncGetAttributes");
    return attributes.sharedSizeBytes >= 2048 * sizeof(int);
  }();
  return compiled;
}

template <class CA, class CB, class TC>
inline constexpr bool hopper_codes_types =
    std::is_same_v<std::remove_const_t<CA>, e4m3>&& std::is_same_v<std::remove_const_t<CB>, e4m3> &&
    (std::is_same_v<TC, float> || std::is_same_v<TC, bf16>);

constexpr Index hopper_most = Index{1} << 30;  // of every extent and offset of scales: ints suffice

// TMA reads rows at multiples of 16 bytes.
template <class C, int rank>
bool tma_reads(const View<C, rank>& codes) {
  bool fits = reinterpret_cast<std::uintptr_t>(codes.data) % 16 == 0;
  for (int d = 0; d < rank; ++d) {
    fits &= codes.extent(d) > 0 && codes.extent(d) < hopper_most;
    if (d + 1 < rank) fits &= codes.strides[d] % 16 == 0 && codes.strides[d] > 0;
  }
  if constexpr (rank == 3) fits = fits && codes.strides[0] % codes.strides[1] == 0;
  return fits;
}
template <class S>
bool scales_fit(const Scales<S>& scales) {
  const Index last =
      (scales.extents[0] - 1) * scales.strides[0] + (scales.extents[1] - 1) * scales.strides[1];
  return scales.strides[0] >= 0 && scales.strides[1] >= 0 && last < hopper_most;
}
// Scales of 128 x 1, which TMA reads too.
template <class C>
bool columns_fit(const Quantized<C>& q) {
  return q.group_rows == hopper_tile && q.group_columns == 1 && scales_fit(q.scales) &&
         q.scales.strides[1] == 1 && q.scales.strides[0] % 4 == 0 && q.scales.strides[0] > 0 &&
         reinterpret_cast<std::uintptr_t>(q.scales.data) % 16 == 0;
}
template <class C>
bool rows_fit(const Quantized<C>& q) {
  return q.group_rows == 1 && q.group_columns == hopper_tile && scales_fit(q.scales);
}

/// Whether hopper_codes_grouped, or hopper_codes_gemm, takes these operands. Types, groups of
/// scales, alignment and sizes; not the extents, which the caller has checked.
template <Product p, class CA, class CB, class TC>
bool hopper_codes_fit(const Cuda& cuda, ProductTag<p>, const Quantized<CA>& a,
                      const QuantizedStack<CB>& b, const View<TC, 2>& c) {
  if constexpr (p == Product::tn || !hopper_codes_types<CA, CB, TC>) {
    return false;
  } else {
    const Index tiles = groups_of(c.extent(0), hopper_tile) + b.extent(0);
    return hopper_kernels_run(cuda) && tma_reads(a.codes) && tma_reads(b.codes) && rows_fit(a) &&
           b.group_rows == hopper_tile && b.group_columns == hopper_tile && scales_fit(b.scales) &&
           b.extent(0) <= hopper_most_groups && c.extent(0) < hopper_most &&
           c.extent(1) < hopper_most && tiles * groups_of(c.extent(1), hopper_tile) < hopper_most;
  }
}
/// The same of the weight gradients of groups.
template <class CA, class CB, class TC>
bool hopper_codes_fit(const Cuda& cuda, ProductTag<Product::tn>, const Quantized<CA>& a,
                      const Quantized<CB>& b, const View<TC, 3>& c) {
  if constexpr (!hopper_codes_types<CA, CB, TC>) {
    return false;
  } else {
    const Index tiles = groups_of(c.extent(1), hopper_tile) * groups_of(c.extent(2), hopper_tile);
    return hopper_kernels_run(cuda) && tma_reads(a.codes) && tma_reads(b.codes) && columns_fit(a) &&
           columns_fit(b) && c.extent(0) <= hopper_most_groups && c.extent(0) > 0 &&
           c.extent(1) < hopper_most && c.extent(2) < hopper_most &&
           tiles * c.extent(0) < hopper_most;
  }
}

/// The same of a product of two matrices.
template <Product p, class CA, class CB, class TC>
bool hopper_codes_fit(const Cuda& cuda, ProductTag<p> tag, const Quantized<CA>& a,
                      const Quantized<CB>& b, const View<TC, 2>& c) {
  if constexpr (!hopper_codes_types<CA, CB, TC>) {
    return false;
  } else if constexpr (p != Product::tn) {
    return hopper_codes_fit(cuda, tag, a, stack_of_one(b), c);
  } else {
    return hopper_codes_fit(cuda, tag, a, b, View<TC, 3>(c.data, {1, c.extent(0), c.extent(1)}));
  }
}
// nt and nn by the form that is done first.
template <Product p, class CA, class CB, class TC>
void choose_hopper_codes(Cuda& cuda, const char* caller, const Quantized<CA>& a,
                         const QuantizedStack<CB>& b, const View<TC, 2>& c,
                         const View<const Index, 1>& offsets, Output output) {
  const Index groups = b.extent(0), rows = groups_of(c.extent(0), groups);
  if constexpr (p == Product::nn) {
    const Index stripe = hopper_stripe(groups, c.extent(1), a.extent(1), Cuda::workspace_bytes);
    if (hopper_nn_turns(groups, c.extent(0), c.extent(1), a.extent(1), stripe))
      return run_turned_nn<false>(
          cuda, caller, a, b, c, offsets, output,
          hopper_cut(Product::nt, groups, rows, stripe, cuda.multiprocessors()), stripe);
  }
  run_hopper_codes<p, false>(cuda, caller, a, b, c, offsets, output,
                             hopper_cut(p, groups, rows, c.extent(1), cuda.multiprocessors()));
}
template <class CA, class CB, class TC>
void choose_hopper_codes_tn(Cuda& cuda, const char* caller, const Quantized<CA>& a,
                            const Quantized<CB>& b, const View<TC, 2>& c, Index c_group,
                            Index groups, const View<const Index, 1>& offsets, Output output) {
  const auto turns =
      hopper_turns(groups, c.extent(0), c.extent(1), a.extent(0), Cuda::workspace_bytes);
  if (hopper_tn_turns(c.extent(0), c.extent(1), a.extent(0), turns))
    return run_turned_tn<false>(cuda, caller, a, b, c, c_group, groups, offsets, output,
                                hopper_cut(Product::tn, groups, least_of(turns.a, c.extent(0)),
                                           least_of(turns.b, c.extent(1)), cuda.multiprocessors()),
                                turns);
  run_hopper_codes_tn<false>(
      cuda, caller, a, b, c, c_group, groups, offsets, output,
      hopper_cut(Product::tn, groups, c.extent(0), c.extent(1), cuda.multiprocessors()));
}

/// The product of matrices of codes, for operands that hopper_codes_fit accepts. The sum of 128
/// products is the tensor core's own, of about 14 bits; then as gemm(EigenCpu&, ...) of codes. The
/// bits of an element depend neither on the other rows nor on how the product is cut or turned.
/// Writes to the context's workspace.
template <Product p, class CA, class CB, class TC>
void hopper_codes_gemm(Cuda& cuda, ProductTag<p>, const Quantized<CA>& a, const Quantized<CB>& b,
                       const View<TC, 2>& c, Output output) {
  if constexpr (p == Product::tn)
    choose_hopper_codes_tn(cuda, "gemm", a, b, c, 0, 1, {}, output);
  else
    choose_hopper_codes<p>(cuda, "gemm", a, stack_of_one(b), c, {}, output);
}

/// The same over ragged groups of rows, at offsets [groups + 1] in device memory: nt and nn.
template <Product p, class CA, class CB, class TC>
void hopper_codes_grouped(Cuda& cuda, ProductTag<p>, const Quantized<CA>& a,
                          const QuantizedStack<CB>& b, const View<TC, 2>& c,
                          const View<const Index, 1>& offsets, Output output) {
  choose_hopper_codes<p>(cuda, "grouped_gemm", a, b, c, offsets, output);
}
/// The same: tn.
template <class CA, class CB, class TC>
void hopper_codes_grouped(Cuda& cuda, ProductTag<Product::tn>, const Quantized<CA>& a,
                          const Quantized<CB>& b, const View<TC, 3>& c,
                          const View<const Index, 1>& offsets, Output output) {
  choose_hopper_codes_tn(cuda, "grouped_gemm", a, b, c[0], c.strides[0], c.extent(0), offsets,
                         output);
}

}  // namespace dsv3::detail
