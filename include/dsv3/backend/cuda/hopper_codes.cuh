// Products of matrices of e4m3 codes by wgmma, on GPUs of compute capability 9.0.
#pragma once

#include <dsv3/backend/cuda/hopper_codes_kernel.cuh>
#include <dsv3/backend/cuda/hopper_tensor_map.hpp>
#include <dsv3/core/quantized.hpp>

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

// A matrix is a stack of one.
template <class C>
QuantizedStack<C> stack_of_one(const Quantized<C>& q) {
  QuantizedStack<C> stack;
  stack.codes.data = q.codes.data;
  stack.codes.extents[0] = 1;
  stack.codes.strides[0] = q.codes.extent(0) * q.codes.strides[0];
  for (int d = 0; d < 2; ++d) {
    stack.codes.extents[d + 1] = q.codes.extents[d];
    stack.codes.strides[d + 1] = q.codes.strides[d];
  }
  stack.scales = q.scales;
  stack.group_rows = q.group_rows;
  stack.group_columns = q.group_columns;
  return stack;
}

template <class TC>
bool stores_vectors(const TC* c, Index group, Index row) {
  constexpr Index elements = 16 / static_cast<Index>(sizeof(TC));
  return reinterpret_cast<std::uintptr_t>(c) % 16 == 0 && group % elements == 0 &&
         row % elements == 0;
}

template <class C>
TensorShape codes_shape(const View<C, 2>& codes, int across, int down) {
  return {
      CU_TENSOR_MAP_DATA_TYPE_UINT8, codes.data,        2,   {codes.extent(1), codes.extent(0), 1},
      {codes.strides[0], 0},         {across, down, 1}, true};
}
template <class C>
TensorShape codes_shape(const View<C, 3>& codes) {
  return {CU_TENSOR_MAP_DATA_TYPE_UINT8,
          codes.data,
          3,
          {codes.extent(2), codes.extent(1), codes.extent(0)},
          {codes.strides[1], codes.strides[0]},
          {hopper_tile, hopper_tile, 1},
          true};
}
template <class S>
TensorShape scales_shape(const Scales<S>& scales, int across) {
  return {CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
          scales.data,
          2,
          {scales.extents[1], scales.extents[0], 1},
          {scales.strides[0] * 4, 0},
          {across, 1, 1},
          false};
}

template <Product p, int waves, bool bounded, class TC>
void launch_hopper_codes(Cuda& cuda, const char* caller, const HopperMaps& maps,
                         HopperCodes<TC> work, Index units) {
  constexpr auto kernel = hopper_codes_kernel<p, waves, bounded, TC>;
  constexpr int bytes = HopperStages<p, waves>::bytes;
  const std::string sizes = std::to_string(work.groups) + " groups, c of " +
                            std::to_string(work.rows) + " x " + std::to_string(work.columns) +
                            ", depth " + std::to_string(work.depth);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             caller, "cudaFuncSetAttribute", sizes);
  const Index at_once = cuda.multiprocessors() / work.cluster;
  work.clusters = static_cast<int>(units < at_once ? units : (at_once > 0 ? at_once : 1));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(work.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(work.clusters * work.cluster));
  config.blockDim = dim3(hopper_threads);
  config.dynamicSmemBytes = bytes;
  config.stream = cuda.stream();
  config.attrs = &attribute;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, maps, work), caller, "launch", sizes);
}

// nt and nn, cut as it says. offsets: empty for a plain product.
template <Product p, bool bounded, class CA, class CB, class TC>
void run_hopper_codes(Cuda& cuda, const char* caller, const Quantized<CA>& a,
                      const QuantizedStack<CB>& b, const View<TC, 2>& c,
                      const View<const Index, 1>& offsets, Output output, const HopperCut& cut) {
  static_assert(p != Product::tn && hopper_codes_types<CA, CB, TC>);
  const auto sa = operand_scales(a, true), sb = operand_scales(b[0], p == Product::nt);
  const Index tiles = groups_of(c.extent(1), hopper_tile), units = groups_of(tiles, cut.cluster);
  HopperCodes<TC> work{};
  work.c = c.data;
  work.c_row = c.strides[0];
  work.rows = static_cast<int>(c.extent(0));
  work.columns = static_cast<int>(c.extent(1));
  work.depth = static_cast<int>(a.extent(1));
  work.groups = static_cast<int>(b.extent(0));
  work.offsets = offsets.extent(0) ? offsets.data : nullptr;
  work.a_scales = sa.data;
  work.a_row = static_cast<int>(sa.i_stride);
  work.a_block = static_cast<int>(sa.k_stride);
  work.b_scales = sb.data;
  work.b_group = static_cast<int>(groups_of(b.extent(1), b.group_rows) * b.scales.strides[0]);
  work.b_column = static_cast<int>(sb.i_stride);
  work.b_block = static_cast<int>(sb.k_stride);
  work.column_units = static_cast<int>(units);
  work.cluster = cut.cluster;
  work.add = output == Output::add;
  work.vector = stores_vectors(c.data, 0, c.strides[0]);
  work.fault = cuda.fault();
  HopperMaps maps;
  maps.a =
      tensor_map(caller, codes_shape(a.codes, hopper_tile, hopper_tile * cut.waves / cut.cluster));
  maps.b = tensor_map(caller, codes_shape(b.codes));
  maps.a_scales = maps.b_scales = maps.a;
  const Index down = groups_of(c.extent(0), hopper_tile * cut.waves) + work.groups - 1;
  if (cut.waves == 2)
    launch_hopper_codes<p, 2, bounded>(cuda, caller, maps, work, down * units);
  else
    launch_hopper_codes<p, 1, bounded>(cuda, caller, maps, work, down * units);
}

// tn: one c for each group of tokens. c_group: elements from one c to the next.
template <bool bounded, class CA, class CB, class TC>
void run_hopper_codes_tn(Cuda& cuda, const char* caller, const Quantized<CA>& a,
                         const Quantized<CB>& b, const View<TC, 2>& c, Index c_group, Index groups,
                         const View<const Index, 1>& offsets, Output output, const HopperCut& cut) {
  static_assert(hopper_codes_types<CA, CB, TC>);
  const Index tiles = groups_of(c.extent(1), hopper_tile), units = groups_of(tiles, cut.cluster);
  HopperCodes<TC> work{};
  work.c = c.data;
  work.c_group = c_group;
  work.c_row = c.strides[0];
  work.rows = static_cast<int>(c.extent(0));
  work.columns = static_cast<int>(c.extent(1));
  work.depth = static_cast<int>(a.extent(0));
  work.groups = static_cast<int>(groups);
  work.offsets = offsets.extent(0) ? offsets.data : nullptr;
  work.column_units = static_cast<int>(units);
  work.cluster = cut.cluster;
  work.add = output == Output::add;
  work.vector = stores_vectors(c.data, c_group, c.strides[0]);
  work.fault = cuda.fault();
  const bool halves = cut.waves == 1 && cut.cluster > 1;  // of the box, for the cluster's blocks
  HopperMaps maps;
  maps.a =
      tensor_map(caller, codes_shape(a.codes, hopper_tile, halves ? hopper_tile / 2 : hopper_tile));
  maps.b = tensor_map(caller, codes_shape(stack_of_one(b).codes));
  maps.a_scales = tensor_map(caller, scales_shape(a.scales, cut.waves * hopper_tile));
  maps.b_scales = tensor_map(caller, scales_shape(b.scales, hopper_tile));
  const Index down = groups_of(c.extent(0), hopper_tile * cut.waves) * groups;
  if (cut.waves == 2)
    launch_hopper_codes<Product::tn, 2, bounded>(cuda, caller, maps, work, down * units);
  else
    launch_hopper_codes<Product::tn, 1, bounded>(cuda, caller, maps, work, down * units);
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
/// The product of matrices of codes, for operands that hopper_codes_fit accepts. The sum of 128
/// products is the tensor core's own, of about 14 bits; then as gemm(EigenCpu&, ...) of codes. The
/// bits of an element depend neither on the other rows nor on how the product is cut.
template <Product p, class CA, class CB, class TC>
void hopper_codes_gemm(Cuda& cuda, ProductTag<p>, const Quantized<CA>& a, const Quantized<CB>& b,
                       const View<TC, 2>& c, Output output) {
  const auto cut = hopper_cut(1, c.extent(0), c.extent(1), cuda.multiprocessors());
  if constexpr (p == Product::tn)
    run_hopper_codes_tn<false>(cuda, "gemm", a, b, c, 0, 1, {}, output, cut);
  else
    run_hopper_codes<p, false>(cuda, "gemm", a, stack_of_one(b), c, {}, output, cut);
}

/// The same over ragged groups of rows, at offsets [groups + 1] in device memory: nt and nn.
template <Product p, class CA, class CB, class TC>
void hopper_codes_grouped(Cuda& cuda, ProductTag<p>, const Quantized<CA>& a,
                          const QuantizedStack<CB>& b, const View<TC, 2>& c,
                          const View<const Index, 1>& offsets, Output output) {
  const auto cut = hopper_cut(b.extent(0), groups_of(c.extent(0), b.extent(0)), c.extent(1),
                              cuda.multiprocessors());
  run_hopper_codes<p, false>(cuda, "grouped_gemm", a, b, c, offsets, output, cut);
}
/// The same: tn.
template <class CA, class CB, class TC>
void hopper_codes_grouped(Cuda& cuda, ProductTag<Product::tn>, const Quantized<CA>& a,
                          const Quantized<CB>& b, const View<TC, 3>& c,
                          const View<const Index, 1>& offsets, Output output) {
  const auto cut = hopper_cut(c.extent(0), c.extent(1), c.extent(2), cuda.multiprocessors());
  run_hopper_codes_tn<false>(cuda, "grouped_gemm", a, b, c[0], c.strides[0], c.extent(0), offsets,
                             output, cut);
}

}  // namespace dsv3::detail
