// Grouped products of bf16 matrices by wgmma, on GPUs of compute capability 9.0.
#pragma once

#include <dsv3/backend/cuda/hopper_bf16_kernel.cuh>
#include <dsv3/backend/cuda/hopper_codes.cuh>
#include <dsv3/backend/cuda/launch.cuh>

namespace dsv3::detail {

template <Product p, class TA, class TB, class TC>
inline constexpr bool hopper_bf16_types =
    std::is_same_v<std::remove_const_t<TA>, bf16>&& std::is_same_v<std::remove_const_t<TB>, bf16> &&
    (std::is_same_v<TC, float> || std::is_same_v<TC, bf16>);

// How a product is cut into tiles. The bits of the result do not depend on it.
struct HopperBf16Cut {
  int width;
  bool apart = false;
};

// The cut that is done first, by the steps that a multiprocessor makes. Where little is summed for
// many bytes of c, groups of warps work apart, so that storing costs nothing. rows: of a group, on
// average; depth: of its sum; bytes: that are read and written for an element of c.
constexpr HopperBf16Cut hopper_bf16_cut(Index groups, Index rows, Index columns, Index depth,
                                        int bytes, int multiprocessors) {
  const auto turns = [&](int width, int at_once) {
    const Index tiles = groups * ((rows + 127) / 128) * ((columns + width - 1) / width);
    return (tiles + at_once * multiprocessors - 1) / (at_once * multiprocessors);
  };
  // In clocks per turn, about: 1100 for 128 x 256 x 64; c at 25 bytes a clock.
  const Index steps = (depth + 63) / 64, half = steps * 640, store = Index{128} * 128 * bytes / 25;
  const Index wide = turns(256, 1) * (steps * 1100 + 2 * store + 600);
  const Index narrow = turns(128, 1) * (half + store + 600);
  const Index both = turns(128, 2) * (2 * half > 2 * store ? 2 * half : 2 * store) + store;
  if (wide <= narrow && wide <= both) return {256};
  return narrow <= both ? HopperBf16Cut{128} : HopperBf16Cut{128, true};
}

// TMA reads rows at multiples of 16 bytes.
template <class T, int rank>
bool tma_reads_bf16(const View<T, rank>& x) {
  bool fits = reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
  for (int d = 0; d < rank; ++d) {
    fits &= x.extent(d) > 0 && x.extent(d) < hopper_most;
    if (d + 1 < rank)
      fits &= x.strides[d] % 8 == 0 && x.strides[d] > 0 && x.strides[d] < (Index{1} << 38);
  }
  return fits && x.strides[rank - 1] == 1;
}

/// Whether hopper_bf16_grouped takes these operands: alignment and sizes; not the extents, which
/// the caller has checked.
template <Product p, class TA, class TB, class TC, int rank_b, int rank_c>
bool hopper_bf16_fit(const Cuda& cuda, ProductTag<p>, const View<TA, 2>& a,
                     const View<TB, rank_b>& b, const View<TC, rank_c>& c) {
  if constexpr (!hopper_bf16_types<p, TA, TB, TC>) {
    return false;
  } else {
    const Index groups = p == Product::tn ? c.extent(0) : b.extent(0);
    const Index rows = c.extent(rank_c - 2), columns = c.extent(rank_c - 1);
    const Index down = groups_of(rows, 128);
    const Index tiles = p == Product::tn ? down * groups : down + groups;
    return hopper_kernels_run(cuda) && tma_reads_bf16(a) && tma_reads_bf16(b) && groups > 0 &&
           groups <= hopper_most_groups && rows < hopper_most && columns < hopper_most &&
           tiles * groups_of(columns, 128) < hopper_most;
  }
}

// A matrix, or a stack of them; across: in panels of 64 x 64, else 64 elements of `down` rows.
template <class T, int rank>
TensorShape bf16_shape(const View<T, rank>& x, bool across, int down) {
  TensorShape shape{CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                    x.data,
                    rank,
                    {x.extent(rank - 1), x.extent(rank - 2), 1},
                    {2 * x.strides[rank - 2], 0},
                    {64, across ? hopper_bf16_step : down, 1},
                    true};
  if constexpr (rank == 3) {
    shape.extents[2] = x.extent(0);
    shape.stride_bytes[1] = 2 * x.strides[0];
  }
  return shape;
}

template <class Form, bool bounded, class TC, class TA, class TB>
void launch_hopper_bf16(Cuda& cuda, const View<TA, 2>& a, const View<TB, 3>& b,
                        HopperCodes<TC> work) {
  const char* caller = "grouped_gemm";
  constexpr auto kernel = hopper_bf16_kernel<Form, bounded, TC>;
  const std::string sizes = std::to_string(work.groups) + " groups, c of " +
                            std::to_string(work.rows) + " x " + std::to_string(work.columns) +
                            ", depth " + std::to_string(work.depth);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Form::bytes),
             caller, "cudaFuncSetAttribute", sizes);
  HopperBf16Maps maps;
  maps.a = tensor_map(caller, bf16_shape(a, Form::a_across, Form::height));
  maps.b = tensor_map(caller, bf16_shape(b, Form::b_across, Form::width));
  work.column_tiles = static_cast<int>(groups_of(work.columns, Form::width));
  const Index down = groups_of(work.rows, Form::height);
  const Index most = Form::product == Product::tn ? down * work.groups : down + work.groups - 1;
  const Index blocks = groups_of(most * work.column_tiles, Form::rings);
  const Index at_once = cuda.multiprocessors();
  detail::launch(cuda, kernel, static_cast<unsigned>(blocks < at_once ? blocks : at_once),
                 hopper_threads, Form::bytes, maps, work);
  check_cuda(cudaGetLastError(), caller, "launch", sizes);
}

// b of tn as a stack of one.
template <class T>
View<T, 3> bf16_stack(const View<T, 3>& b) {
  return b;
}
template <class T>
View<T, 3> bf16_stack(const View<T, 2>& b) {
  View<T, 3> stack(b.data, {1, b.extent(0), b.extent(1)});
  stack.strides[0] = b.extent(0) * b.strides[0];
  stack.strides[1] = b.strides[0];
  return stack;
}

// Cut as it says.
template <Product p, bool bounded, class TA, class TB, class TC, int rank_b, int rank_c>
void run_hopper_bf16(Cuda& cuda, const View<TA, 2>& a, const View<TB, rank_b>& b,
                     const View<TC, rank_c>& c, const View<const Index, 1>& offsets, Output output,
                     const HopperBf16Cut& cut) {
  const auto stack = bf16_stack(b);
  const auto launch = [&](const HopperCodes<TC>& work) {
    if (cut.apart)
      launch_hopper_bf16<HopperBf16Form<p, 128, true>, bounded>(cuda, a, stack, work);
    else if (cut.width == 256)
      launch_hopper_bf16<HopperBf16Form<p, 256, false>, bounded>(cuda, a, stack, work);
    else
      launch_hopper_bf16<HopperBf16Form<p, 128, false>, bounded>(cuda, a, stack, work);
  };
  if constexpr (p == Product::tn)
    launch(hopper_work(cuda, c[0], c.strides[0], a.extent(0), c.extent(0), offsets, output));
  else
    launch(hopper_work(cuda, c, 0, a.extent(1), b.extent(0), offsets, output));
}

/// Products of bf16 over ragged groups of rows, at offsets [groups + 1] in device memory, as
/// grouped_gemm(EigenCpu&, ...), for operands that hopper_bf16_fit accepts. Sums are of float. The
/// bits of an element depend neither on the other rows nor on how the product is cut.
template <Product p, class TA, class TB, class TC, int rank_b, int rank_c>
void hopper_bf16_grouped(Cuda& cuda, ProductTag<p>, const View<TA, 2>& a, const View<TB, rank_b>& b,
                         const View<TC, rank_c>& c, const View<const Index, 1>& offsets,
                         Output output) {
  constexpr bool tn = p == Product::tn;
  const Index groups = tn ? c.extent(0) : b.extent(0);
  const Index rows = c.extent(rank_c - 2), columns = c.extent(rank_c - 1);
  const int bytes = static_cast<int>(sizeof(TC)) * (output == Output::add ? 2 : 1);
  run_hopper_bf16<p, false>(cuda, a, b, c, offsets, output,
                            hopper_bf16_cut(groups, tn ? rows : groups_of(rows, groups), columns,
                                            tn ? groups_of(a.extent(0), groups) : a.extent(1),
                                            bytes, cuda.multiprocessors()));
}

}  // namespace dsv3::detail
