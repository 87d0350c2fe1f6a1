// Our own kernels of the products on a GPU: which one serves which types, and which tiles.
//
// Every element's bits depend on its row of a, its column of b and the length of the sum alone:
// not on other rows, on the tiles or on the number of experts.
#pragma once

#include <dsv3/backend/cuda/launch.cuh>
#include <dsv3/backend/cuda/tile_codes.cuh>
#include <dsv3/backend/cuda/tile_plain.cuh>

namespace dsv3::detail {

// bf16. The large tiles read the fewest bytes for each product, the small ones leave the fewest
// multiprocessors without work.
using LargeTile = TileShape<2, 4, 64, 64, 3, 1>;   // 128 x 256
using MediumTile = TileShape<2, 2, 64, 64, 3, 2>;  // 128 x 128
using SmallTile = TileShape<2, 2, 32, 32, 4, 3>;   // 64 x 64
// Codes: sums and totals take twice the registers.
using LargeCodeTile = TileShape<2, 4, 64, 32, 4, 1>;  // 128 x 128
using SmallCodeTile = TileShape<2, 2, 32, 32, 3, 3>;  // 64 x 64

// Whether every chunk of 16 bytes of rows begins at a multiple of 16.
template <class T>
bool whole_chunks(const View<T, 3>& x) {
  constexpr Index elements = 16 / sizeof(T);
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.strides[1] % elements == 0 &&
         (x.extent(0) <= 1 || x.strides[0] % elements == 0);
}

// A matrix as a stack of one.
template <class T>
View<T, 3> stack_of_one(const View<T, 2>& x) {
  View<T, 3> stack;
  stack.data = x.data;
  stack.extents[0] = 1;
  for (int d = 0; d < 2; ++d) {
    stack.extents[d + 1] = x.extents[d];
    stack.strides[d + 1] = x.strides[d];
  }
  return stack;
}

template <class Problem>
void launch_tiles(Cuda& cuda, const char* caller, void (*kernel)(Problem, TileGrid),
                  const Problem& problem, int rows, int columns, int threads, int bytes) {
  const TileGrid grid = tile_grid(problem, rows, columns);
  const Index blocks = problem.c.extent(0) * grid.row_tiles * grid.column_tiles;
  if (blocks == 0) return;
  const auto check = [&](cudaError_t error, const char* call) {
    if (error == cudaSuccess) return;
    check_cuda(error, caller, call,
               "output [" + std::to_string(problem.c.extent(0)) + ", " +
                   std::to_string(problem.c.extent(1)) + ", " +
                   std::to_string(problem.c.extent(2)) + "], " + std::to_string(blocks) +
                   " blocks, " + std::to_string(bytes) + " bytes of shared memory");
  };
  if (bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "cudaFuncSetAttribute");
  detail::launch(cuda, kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                 static_cast<std::size_t>(bytes), problem, grid);
  check(cudaGetLastError(), "launch");
}

template <class Shape, bool aligned, class Problem>
void launch_matrices(Cuda& cuda, const char* caller, const Problem& problem) {
  launch_tiles(cuda, caller, tile_kernel<Shape, aligned, Problem>, problem, Shape::rows,
               Shape::columns, Shape::threads, tile_bytes<Shape>());
}
template <class Shape, bool aligned, Product p, class CA, class CB, class TC>
void launch_codes(Cuda& cuda, const char* caller, const CodeProblem<p, CA, CB, TC>& problem) {
  launch_tiles(cuda, caller, code_kernel<Shape, aligned, CA, CB, CodeProblem<p, CA, CB, TC>>,
               problem, Shape::rows, Shape::columns, Shape::threads, CodeMemory<Shape>::bytes);
}
template <bool scaled, class A, class TA, class TB, class Problem>
void launch_plain(Cuda& cuda, const char* caller, const Problem& problem) {
  launch_tiles(cuda, caller, plain_kernel<scaled, A, TA, TB, Problem>, problem, PlainShape::rows,
               PlainShape::columns, PlainShape::threads, 0);
}

// The cost of such tiles, the experts' rows taken as equally many.
template <class Shape, class Problem>
double cost_of(const Cuda& cuda, const Problem& problem, double rate) {
  Index entries = problem.c.extent(0), rows = problem.c.extent(1);
  if (problem.offsets.extent(0) && !sums_over_rows<Problem>) {
    entries = problem.offsets.extent(0) - 1;
    rows = groups_of(rows, entries);
  }
  return tiles_cost({Shape::rows, Shape::columns, Shape::blocks, rate}, entries, rows,
                    problem.c.extent(2), cuda.multiprocessors());
}

// What the tensor cores' kernels write.
template <class TC>
inline constexpr bool narrow_output = std::is_same_v<TC, bf16> || std::is_same_v<TC, float>;

template <Product p, class TA, class TB, class TC>
void multiply_matrices(Cuda& cuda, const char* caller,
                       const MatrixProblem<p, TA, TB, TC>& problem) {
  constexpr bool tensor_cores =
      std::is_same_v<TA, bf16> && std::is_same_v<TB, bf16> && narrow_output<TC>;
  if constexpr (tensor_cores) {
    if (!whole_chunks(problem.a) || !whole_chunks(problem.b))
      return launch_matrices<SmallTile, false>(cuda, caller, problem);
    const double small = cost_of<SmallTile>(cuda, problem, 0.5);
    const double medium = cost_of<MediumTile>(cuda, problem, 0.9);
    const double large = cost_of<LargeTile>(cuda, problem, 1);
    const auto fits = [&](int bytes) { return bytes <= cuda.shared_bytes(); };
    if (large <= medium && large <= small && fits(tile_bytes<LargeTile>()))
      launch_matrices<LargeTile, true>(cuda, caller, problem);
    else if (medium <= small && fits(tile_bytes<MediumTile>()))
      launch_matrices<MediumTile, true>(cuda, caller, problem);
    else
      launch_matrices<SmallTile, true>(cuda, caller, problem);
  } else {
    launch_plain<false, accum_t<TC>, TA, TB>(cuda, caller, problem);
  }
}

template <Product p, class CA, class CB, class TC>
void multiply_codes(Cuda& cuda, const char* caller, const CodeProblem<p, CA, CB, TC>& problem) {
  if constexpr (is_fp8<CA> && is_fp8<CB> && narrow_output<TC>) {
    const SegmentMap segments(operand_scales(problem.a, p != Product::tn),
                              operand_scales(problem.only_b(), p == Product::nt));
    if (segments.of_whole_steps()) {
      if (!whole_chunks(stack_of_one(problem.a.codes)) || !whole_chunks(problem.b.codes))
        launch_codes<SmallCodeTile, false>(cuda, caller, problem);
      else if (CodeMemory<LargeCodeTile>::bytes <= cuda.shared_bytes() &&
               cost_of<LargeCodeTile>(cuda, problem, 1) <=
                   cost_of<SmallCodeTile>(cuda, problem, 0.6))
        launch_codes<LargeCodeTile, true>(cuda, caller, problem);
      else
        launch_codes<SmallCodeTile, true>(cuda, caller, problem);
      return;
    }
  }
  launch_plain<true, accum_t<CA>, CA, CB>(cuda, caller, problem);
}

// gemm, batched_gemm and grouped_gemm as in eigen.hpp, whose callers have checked the extents.
template <Product p, class TA, class TB, class TC>
void cuda_gemm(Cuda& cuda, View<TA, 2> a, View<TB, 2> b, View<TC, 2> c, bool add) {
  using Problem = MatrixProblem<p, std::remove_const_t<TA>, std::remove_const_t<TB>, TC>;
  multiply_matrices(
      cuda, "gemm",
      Problem{stack_of_one(as_const(a)), stack_of_one(as_const(b)), stack_of_one(c), {}, add});
}

template <Product p, class TA, class TB, class TC>
void cuda_batched_gemm(Cuda& cuda, View<TA, 3> a, View<TB, 3> b, View<TC, 3> c, bool add) {
  using Problem = MatrixProblem<p, std::remove_const_t<TA>, std::remove_const_t<TB>, TC>;
  multiply_matrices(cuda, "batched_gemm", Problem{as_const(a), as_const(b), c, {}, add});
}

// offsets are read on the device alone.
template <Product p, class TA, class TB, class TC, int RankB, int RankC>
void cuda_grouped_gemm(Cuda& cuda, View<TA, 2> a, View<TB, RankB> b, View<TC, RankC> c,
                       View<const Index, 1> offsets, bool add) {
  static_assert(p == Product::tn ? (RankB == 2 && RankC == 3) : (RankB == 3 && RankC == 2),
                "grouped_gemm: the tensor with one matrix for each expert has rank 3");
  using Problem = MatrixProblem<p, std::remove_const_t<TA>, std::remove_const_t<TB>, TC>;
  if (offsets.extent(0) < 2) return;
  if constexpr (p == Product::tn)
    multiply_matrices(
        cuda, "grouped_gemm",
        Problem{stack_of_one(as_const(a)), stack_of_one(as_const(b)), c, offsets, add});
  else
    multiply_matrices(
        cuda, "grouped_gemm",
        Problem{stack_of_one(as_const(a)), as_const(b), stack_of_one(c), offsets, add});
}

template <Product p, class CA, class CB, class TC>
void cuda_gemm(Cuda& cuda, Quantized<CA> a, Quantized<CB> b, View<TC, 2> c, bool add) {
  using Problem = CodeProblem<p, std::remove_const_t<CA>, std::remove_const_t<CB>, TC>;
  const auto q = as_const(b);
  multiply_codes(cuda, "gemm",
                 Problem{as_const(a),
                         {stack_of_one(q.codes), q.scales, q.group_rows, q.group_columns},
                         stack_of_one(c),
                         {},
                         add});
}

template <Product p, class CA, class CB, class TC>
requires(p != Product::tn) void cuda_grouped_gemm(Cuda& cuda, Quantized<CA> a, QuantizedStack<CB> b,
                                                  View<TC, 2> c, View<const Index, 1> offsets,
                                                  bool add) {
  using Problem = CodeProblem<p, std::remove_const_t<CA>, std::remove_const_t<CB>, TC>;
  if (offsets.extent(0) < 2) return;
  multiply_codes(cuda, "grouped_gemm",
                 Problem{as_const(a), as_const(b), stack_of_one(c), offsets, add});
}

template <Product p, class CA, class CB, class TC>
requires(p == Product::tn) void cuda_grouped_gemm(Cuda& cuda, Quantized<CA> a, Quantized<CB> b,
                                                  View<TC, 3> c, View<const Index, 1> offsets,
                                                  bool add) {
  using Problem = CodeProblem<p, std::remove_const_t<CA>, std::remove_const_t<CB>, TC>;
  if (offsets.extent(0) < 2) return;
  const auto q = as_const(b);
  multiply_codes(cuda, "grouped_gemm",
                 Problem{as_const(a),
                         {stack_of_one(q.codes), q.scales, q.group_rows, q.group_columns},
                         c,
                         offsets,
                         add});
}

}  // namespace dsv3::detail
