// One launch of the kernel of products of codes: its tensor maps, its view of c and of the scales.
#pragma once

#include <dsv3/backend/cuda/hopper_codes_kernel.cuh>
#include <dsv3/backend/cuda/hopper_turn.cuh>
#include <dsv3/backend/cuda/launch.cuh>
#include <dsv3/core/quantized.hpp>

namespace dsv3::detail {

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
TensorShape codes_shape(const View<C, 2>& codes, int down) {
  return {CU_TENSOR_MAP_DATA_TYPE_UINT8,
          codes.data,
          2,
          {codes.extent(1), codes.extent(0), 1},
          {codes.strides[0], 0},
          {hopper_tile, down, 1},
          true};
}
// Of the columns from `first` on.
template <class S>
TensorShape scales_shape(const Scales<S>& scales, Index first, int across) {
  return {CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
          scales.data + first,
          2,
          {scales.extents[1] - first, scales.extents[0], 1},
          {scales.strides[0] * 4, 0},
          {across, 1, 1},
          false};
}

// What the layout of the operands does not change. c_group: elements from one c of tn to the next.
template <class TC>
HopperCodes<TC> hopper_work(const Cuda& cuda, const View<TC, 2>& c, Index c_group, Index depth,
                            Index groups, const View<const Index, 1>& offsets, Output output) {
  HopperCodes<TC> work{};
  work.c = c.data;
  work.c_group = c_group;
  work.c_row = c.strides[0];
  work.rows = static_cast<int>(c.extent(0));
  work.columns = static_cast<int>(c.extent(1));
  work.depth = static_cast<int>(depth);
  work.groups = static_cast<int>(groups);
  work.offsets = offsets.extent(0) ? offsets.data : nullptr;
  work.add = output == Output::add;
  work.vector = stores_vectors(c.data, c_group, c.strides[0]);
  work.fault = cuda.fault();
  return work;
}

// The scales of nt and nn, of the columns of c from `first` on.
template <Product p, class CA, class CB, class TC>
void take_scales(HopperCodes<TC>& work, const Quantized<CA>& a, const QuantizedStack<CB>& b,
                 Index first) {
  const auto sa = operand_scales(a, true), sb = operand_scales(b[0], p == Product::nt);
  work.a_scales = sa.data;
  work.a_row = static_cast<int>(sa.i_stride);
  work.a_block = static_cast<int>(sa.k_stride);
  work.b_scales = sb.data + first / hopper_tile * sb.i_stride;
  work.b_group = static_cast<int>(groups_of(b.extent(1), b.group_rows) * b.scales.strides[0]);
  work.b_column = static_cast<int>(sb.i_stride);
  work.b_block = static_cast<int>(sb.k_stride);
}

template <class Form, bool bounded, class TC>
void launch_hopper_form(Cuda& cuda, const char* caller, const HopperMaps& maps,
                        HopperCodes<TC> work) {
  constexpr auto kernel = hopper_codes_kernel<Form, bounded, TC>;
  constexpr int bytes = HopperStages<Form>::bytes;
  const std::string sizes = std::to_string(work.groups) + " groups, c of " +
                            std::to_string(work.rows) + " x " + std::to_string(work.columns) +
                            ", depth " + std::to_string(work.depth);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             caller, "cudaFuncSetAttribute", sizes);
  work.column_tiles = static_cast<int>(groups_of(work.columns, Form::width));
  const Index down = groups_of(work.rows, Form::height);
  const Index most = Form::product == Product::tn ? down * work.groups : down + work.groups - 1;
  const Index blocks = most * work.column_tiles;
  const Index at_once = cuda.multiprocessors();
  detail::launch(cuda, kernel, static_cast<unsigned>(blocks < at_once ? blocks : at_once),
                 hopper_threads, bytes, maps, work);
  check_cuda(cudaGetLastError(), caller, "launch", sizes);
}

template <Product p, bool turned, bool bounded, class TC>
void launch_hopper_codes(Cuda& cuda, const char* caller, const HopperMaps& maps,
                         const HopperCodes<TC>& work, const HopperCut& cut) {
  if (cut.waves == 2)
    return launch_hopper_form<HopperForm<p, turned, 2, 128>, bounded>(cuda, caller, maps, work);
  if constexpr (p == Product::nt)
    if (cut.width == 64)
      return launch_hopper_form<HopperForm<p, turned, 1, 64>, bounded>(cuda, caller, maps, work);
  launch_hopper_form<HopperForm<p, turned, 1, 128>, bounded>(cuda, caller, maps, work);
}

// nt and nn, cut as it says. offsets: empty for a plain product.
template <Product p, bool bounded, class CA, class CB, class TC>
void run_hopper_codes(Cuda& cuda, const char* caller, const Quantized<CA>& a,
                      const QuantizedStack<CB>& b, const View<TC, 2>& c,
                      const View<const Index, 1>& offsets, Output output, const HopperCut& cut) {
  static_assert(p != Product::tn);
  auto work = hopper_work(cuda, c, 0, a.extent(1), b.extent(0), offsets, output);
  take_scales<p>(work, a, b, 0);
  HopperMaps maps;
  maps.a = tensor_map(caller, codes_shape(a.codes, cut.height()));
  maps.b = tensor_map(caller, codes_shape(b.codes, p == Product::nt ? cut.width : hopper_tile));
  maps.a_scales = maps.b_scales = maps.a;
  launch_hopper_codes<p, false, bounded>(cuda, caller, maps, work, cut);
}

// tn: one c for each group of tokens.
template <bool bounded, class CA, class CB, class TC>
void run_hopper_codes_tn(Cuda& cuda, const char* caller, const Quantized<CA>& a,
                         const Quantized<CB>& b, const View<TC, 2>& c, Index c_group, Index groups,
                         const View<const Index, 1>& offsets, Output output, const HopperCut& cut) {
  const auto work = hopper_work(cuda, c, c_group, a.extent(0), groups, offsets, output);
  HopperMaps maps;
  maps.a = tensor_map(caller, codes_shape(a.codes, hopper_tile));
  maps.b = tensor_map(caller, codes_shape(stack_of_one(b).codes, hopper_tile));
  maps.a_scales = tensor_map(caller, scales_shape(a.scales, 0, cut.height()));
  maps.b_scales = tensor_map(caller, scales_shape(b.scales, 0, hopper_tile));
  launch_hopper_codes<Product::tn, false, bounded>(cuda, caller, maps, work, cut);
}

}  // namespace dsv3::detail
