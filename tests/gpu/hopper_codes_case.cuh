// A product of codes on the device, its reference, and a report of where the two differ.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <dsv3/backend/cuda/hopper_codes.cuh>
#include <map>
#include <string>
#include <vector>

namespace hopper_test {

using namespace dsv3;

// Device memory for the length of a scope.
template <class T>
struct Device {
  Cuda& cuda;
  Index count;
  T* data;

  Device(Cuda& device, Index n) : cuda(device), count(n) {
    data = static_cast<T*>(allocate(cuda, n * static_cast<Index>(sizeof(T))));
  }
  Device(const Device&) = delete;
  ~Device() { deallocate(cuda, data, 0); }
  void upload(const std::vector<T>& values) {
    copy_to_backend(cuda, data, values.data(), count * static_cast<Index>(sizeof(T)));
  }
  std::vector<T> download() {
    std::vector<T> values(static_cast<std::size_t>(count));
    copy_to_host(cuda, values.data(), data, count * static_cast<Index>(sizeof(T)));
    return values;
  }
};

__host__ __device__ inline std::uint32_t hash(std::uint64_t at, std::uint32_t seed) {
  std::uint64_t x = at * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
  x ^= x >> 31;
  x *= 0xBF58476D1CE4E5B9ull;
  x ^= x >> 29;
  return static_cast<std::uint32_t>(x >> 16);
}

// Codes: of -1, 0, 1 and 2, whose sums are exact in every accumulator; or any but NaN. Scales: 1/2,
// 1 or 2; or between 1/2 and 1.
__global__ void fill_codes_kernel(e4m3* codes, Index n, std::uint32_t seed, bool exact) {
  for (Index i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
    const std::uint32_t h = hash(static_cast<std::uint64_t>(i), seed);
    const std::uint8_t small[4] = {0xB8, 0x00, 0x38, 0x40};
    const auto any = static_cast<std::uint8_t>((h & 0x7F) == 0x7F ? h ^ 1 : h);
    codes[i].code = exact ? small[h % 4] : any;
  }
}
__global__ void fill_scales_kernel(float* scales, Index n, std::uint32_t seed, bool exact) {
  for (Index i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
    const std::uint32_t h = hash(static_cast<std::uint64_t>(i), seed);
    scales[i] = exact ? (h % 3 == 0   ? 0.5f
                         : h % 3 == 1 ? 1.0f
                                      : 2.0f)
                      : 0.5f + static_cast<float>(h >> 8) * (0.5f / 16777216.0f);
  }
}
template <class T>
__global__ void fill_kernel(T* values, Index n, float value) {
  for (Index i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) values[i] = T(value);
}

// Element (i, j) of a product as gemm(EigenCpu&, ...) of codes defines it, and the sum of the
// absolute values of its terms.
template <Product p>
__device__ float2 reference_element(const Quantized<const e4m3>& a, const Quantized<const e4m3>& b,
                                    Index i, Index j) {
  constexpr bool left = p != Product::tn, right = p == Product::nt;
  const auto sa = detail::operand_scales(a, left), sb = detail::operand_scales(b, right);
  const Index depth = a.extent(left ? 1 : 0);
  float total = 0, magnitude = 0;
  for (Index k = 0; k < depth; k += 128) {
    double sum = 0, absolute = 0;
    for (Index n = k; n < k + 128 && n < depth; ++n) {
      const double term = double(float(left ? a.codes(i, n) : a.codes(n, i))) *
                          double(float(right ? b.codes(j, n) : b.codes(n, j)));
      sum += term;
      absolute += term < 0 ? -term : term;
    }
    const float scale = sa.at(i, k) * sb.at(j, k);
    total = dsv3::fma(static_cast<float>(sum), scale, total);
    magnitude += static_cast<float>(absolute) * scale;
  }
  return make_float2(total, magnitude);
}
template <Product p>
__global__ void reference_kernel(Quantized<const e4m3> a, Quantized<const e4m3> b,
                                 View<float2, 2> out) {
  for (Index at = blockIdx.x * 256 + threadIdx.x; at < out.size(); at += gridDim.x * 256) {
    const Index i = at / out.extent(1), j = at % out.extent(1);
    out(i, j) = reference_element<p>(a, b, i, j);
  }
}
// Some elements: found[s] = {wanted, magnitude, got}.
template <Product p, class TC>
__global__ void sample_kernel(Quantized<const e4m3> a, Quantized<const e4m3> b, View<const TC, 2> c,
                              float* found, int samples) {
  const int s = blockIdx.x * 256 + threadIdx.x;
  if (s >= samples) return;
  const Index i = hash(s, 77) % c.extent(0), j = hash(s, 78) % c.extent(1);
  const float2 wanted = reference_element<p>(a, b, i, j);
  found[3 * s] = wanted.x;
  found[3 * s + 1] = wanted.y;
  found[3 * s + 2] = float(c(i, j));
}

inline Index padded(Index n) { return (n + 15) / 16 * 16; }

// Operands of one product: rows x depth times columns, in groups. Rows of tn are those of each c,
// its depth all tokens.
template <Product p>
struct Operands {
  std::vector<Index> offsets;  // empty: a plain product
  Index rows, columns, depth, groups;
  Device<e4m3> a_codes, b_codes;
  Device<float> a_scales, b_scales;
  Device<Index> offsets_memory;

  static constexpr bool is_tn = p == Product::tn;
  static Index groups_in(const std::vector<Index>& offsets) {
    return offsets.empty() ? 1 : static_cast<Index>(offsets.size()) - 1;
  }
  Index a_rows() const { return is_tn ? depth : rows; }
  Index a_columns() const { return is_tn ? rows : depth; }
  Index b_rows() const { return p == Product::nt ? columns : depth; }
  Index b_columns() const { return p == Product::nt ? depth : columns; }
  Index a_scale_rows() const { return is_tn ? depth / 128 + groups : rows; }
  Index a_scale_columns() const { return is_tn ? rows : groups_of(depth, 128); }
  Index b_scale_rows() const { return is_tn ? depth / 128 + groups : groups_of(b_rows(), 128); }
  Index b_scale_columns() const { return is_tn ? columns : groups_of(b_columns(), 128); }
  Index scale_stride(Index n) const { return is_tn ? (n + 3) / 4 * 4 : n; }

  Operands(Cuda& cuda, std::vector<Index> o, Index m, Index n, Index k, bool exact)
      : offsets(std::move(o)),
        rows(m),
        columns(n),
        depth(k),
        groups(groups_in(offsets)),
        a_codes(cuda, a_rows() * padded(a_columns())),
        b_codes(cuda, (is_tn ? 1 : groups) * b_rows() * padded(b_columns())),
        a_scales(cuda, a_scale_rows() * scale_stride(a_scale_columns())),
        b_scales(cuda, (is_tn ? 1 : groups) * b_scale_rows() * scale_stride(b_scale_columns())),
        offsets_memory(cuda, static_cast<Index>(offsets.size())) {
    fill_codes_kernel<<<1024, 256, 0, cuda.stream()>>>(a_codes.data, a_codes.count, 1, exact);
    fill_codes_kernel<<<1024, 256, 0, cuda.stream()>>>(b_codes.data, b_codes.count, 2, exact);
    fill_scales_kernel<<<256, 256, 0, cuda.stream()>>>(a_scales.data, a_scales.count, 3, exact);
    fill_scales_kernel<<<256, 256, 0, cuda.stream()>>>(b_scales.data, b_scales.count, 4, exact);
    if (!offsets.empty()) offsets_memory.upload(offsets);
  }

  static View<const e4m3, 2> matrix(const Device<e4m3>& codes, Index first, Index m, Index n) {
    View<const e4m3, 2> view(codes.data + first, {m, n});
    view.strides[0] = padded(n);
    return view;
  }
  Quantized<const e4m3> a() const {
    Scales<const float> s(a_scales.data, a_scale_rows(), a_scale_columns());
    s.strides[0] = scale_stride(a_scale_columns());
    return {matrix(a_codes, 0, a_rows(), a_columns()), s, is_tn ? 128 : 1, is_tn ? 1 : 128};
  }
  Quantized<const e4m3> b() const {
    Scales<const float> s(b_scales.data, b_scale_rows(), b_scale_columns());
    s.strides[0] = scale_stride(b_scale_columns());
    return {matrix(b_codes, 0, b_rows(), b_columns()), s, 128, is_tn ? 1 : 128};
  }
  QuantizedStack<const e4m3> stack() const {
    auto all = detail::stack_of_one(b());
    all.codes.extents[0] = groups;
    all.scales.extents[0] *= groups;
    return all;
  }
  View<const Index, 1> offsets_view() const {
    if (offsets.empty()) return {};
    return {offsets_memory.data, {static_cast<Index>(offsets.size())}};
  }
  // Group e of a and of b, and its rows of c [all rows of c].
  Index first(Index e) const { return offsets.empty() ? 0 : offsets[static_cast<std::size_t>(e)]; }
  Index count(Index e) const {
    if (offsets.empty()) return is_tn ? depth : rows;
    return offsets[static_cast<std::size_t>(e) + 1] - first(e);
  }
  Quantized<const e4m3> group_a(Index e) const {
    return is_tn ? a().segment(e, first(e), count(e)) : a().rows(first(e), count(e));
  }
  Quantized<const e4m3> group_b(Index e) const {
    return is_tn ? b().segment(e, first(e), count(e)) : stack()[e];
  }
  Index c_rows() const { return is_tn ? groups * rows : rows; }
  View<float2, 2> group_of(View<float2, 2> out, Index e) const {
    return is_tn ? out.rows(e * rows, rows) : out.rows(first(e), count(e));
  }
  double flops() const { return 2.0 * double(rows) * double(columns) * double(depth); }

  // Wanted values and magnitudes of all of c; rows of no group have magnitude -1.
  std::vector<float2> reference(Cuda& cuda) const {
    Device<float2> out(cuda, c_rows() * columns);
    std::vector<float2> nothing(static_cast<std::size_t>(out.count), make_float2(0, -1));
    out.upload(nothing);
    const View<float2, 2> all(out.data, {c_rows(), columns});
    for (Index e = 0; e < groups; ++e) {
      const auto part = group_of(all, e);
      if (part.size() == 0) continue;
      reference_kernel<p><<<512, 256, 0, cuda.stream()>>>(group_a(e), group_b(e), part);
      detail::check_cuda(cudaGetLastError(), "reference", "launch");
    }
    return out.download();
  }
};

// How a product is done: inside one kernel, or from turned stripes where turns.a (tn) or turns.b
// (nn: its columns) is not 0.
struct Way {
  detail::HopperCut cut;
  detail::HopperTurns turns{};

  bool turned() const { return turns.b > 0; }
  std::string name() const {
    std::string text = "cut " + std::to_string(cut.waves) + " " + std::to_string(cut.width);
    if (turned()) text += " stripes " + std::to_string(turns.a) + " " + std::to_string(turns.b);
    return turns.a_inside ? text + " a inside" : text;
  }
};

// c of an operation, with `gap` elements between its rows and a sentinel everywhere.
constexpr float sentinel = 3;
template <Product p, class TC, bool bounded>
struct Result {
  Index stride;
  Device<TC> memory;

  Result(Cuda& cuda, const Operands<p>& x, Index gap)
      : stride(x.columns + gap), memory(cuda, x.c_rows() * stride) {
    fill_kernel<<<512, 256, 0, cuda.stream()>>>(memory.data, memory.count, sentinel);
  }
  View<TC, 2> view(const Operands<p>& x) const {
    View<TC, 2> c(memory.data, {x.c_rows(), x.columns});
    c.strides[0] = stride;
    return c;
  }
  void run(Cuda& cuda, const Operands<p>& x, Output output, const Way& way) const {
    const auto c = view(x);
    const auto offsets = x.offsets_view();
    if constexpr (p == Product::tn) {
      if (way.turned())
        detail::run_turned_tn<bounded>(cuda, "test", x.a(), x.b(), c.rows(0, x.rows),
                                       x.rows * stride, x.groups, offsets, output, way.cut,
                                       way.turns);
      else
        detail::run_hopper_codes_tn<bounded>(cuda, "test", x.a(), x.b(), c.rows(0, x.rows),
                                             x.rows * stride, x.groups, offsets, output, way.cut);
      return;
    }
    if constexpr (p == Product::nn)
      if (way.turned())
        return detail::run_turned_nn<bounded>(cuda, "test", x.a(), x.stack(), c, offsets, output,
                                              way.cut, way.turns.b);
    if constexpr (p != Product::tn)
      detail::run_hopper_codes<p, bounded>(cuda, "test", x.a(), x.stack(), c, offsets, output,
                                           way.cut);
  }
  // In the way that the library chooses.
  void run_chosen(Cuda& cuda, const Operands<p>& x, Output output) const {
    if constexpr (p == Product::tn)
      detail::choose_hopper_codes_tn(cuda, "test", x.a(), x.b(), view(x).rows(0, x.rows),
                                     x.rows * stride, x.groups, x.offsets_view(), output);
    else
      detail::choose_hopper_codes<p>(cuda, "test", x.a(), x.stack(), view(x), x.offsets_view(),
                                     output);
  }
};

// Waits; prints what a bounded wait noted, if it was that.
inline void finish(Cuda& cuda, const char* what) {
  try {
    synchronize(cuda);
  } catch (const std::exception& e) {
    const auto* f = cuda.fault();
    std::printf(
        "%s: %s\n  fault: set %d, block %td, who %td (1 producer waits for empty, 2 "
        "transposer for full, 3 + w consumer w for full, 11 + w for ready), stage %td, "
        "parity %td\n",
        what, e.what(), f->set, f->row, f->column, f->value, f->bound);
    std::fflush(stdout);
    throw;
  }
}

// Compares c with what is wanted and prints where it differs: the number of wrong elements (and of
// the ones that should not have been touched).
template <Product p, class TC, bool bounded>
Index differences(const char* what, const Operands<p>& x, const std::vector<float2>& wanted,
                  const Result<p, TC, bounded>& r, bool add, double tolerance,
                  double* worst = nullptr) {
  const auto got = const_cast<Result<p, TC, bounded>&>(r).memory.download();
  Index wrong = 0, touched = 0, printed = 0;
  std::map<Index, Index> by_tile_row, by_tile_column, by_row_in_tile, by_column_in_8;
  for (Index i = 0; i < x.c_rows(); ++i)
    for (Index j = 0; j < r.stride; ++j) {
      const float value = float(got[static_cast<std::size_t>(i * r.stride + j)]);
      const float2 w =
          j < x.columns ? wanted[static_cast<std::size_t>(i * x.columns + j)] : make_float2(0, -1);
      if (w.y < 0) {
        touched += !(value == sentinel);
        continue;
      }
      const float exact = float(TC(add ? sentinel + w.x : w.x));
      const double error = std::abs(double(value) - double(exact));
      const double rounding = std::is_same_v<TC, bf16> ? std::abs(double(exact)) / 128 : 0;
      if (worst && w.y > 0)
        *worst = std::max(*worst, std::max(0.0, error - rounding) / double(w.y));
      if (tolerance > 0 ? error <= tolerance * double(w.y) + rounding : value == exact) continue;
      ++wrong;
      // In tn the rows of tiles begin with each c, in the others with each group.
      Index first = 0;
      if (p == Product::tn) first = i / x.rows * x.rows;
      for (Index e = 0; p != Product::tn && e < x.groups; ++e)
        if (x.first(e) <= i && x.count(e) > 0) first = x.first(e);
      ++by_tile_row[(i - first) / 128];
      ++by_tile_column[j / 128];
      ++by_row_in_tile[(i - first) % 128 / 16];
      ++by_column_in_8[j % 8];
      if (printed++ < 6)
        std::printf("  %s: (%td, %td), row %td of its group: got %g, wanted %g\n", what, i, j,
                    i - first, double(value), double(exact));
    }
  const auto print = [](const char* name, const std::map<Index, Index>& counts) {
    std::printf("    by %s:", name);
    Index shown = 0;
    for (const auto& [key, n] : counts)
      if (shown++ < 12) std::printf(" %td: %td", key, n);
    std::printf("\n");
  };
  if (wrong || touched) {
    std::printf("  %s: %td of %td wrong, %td touched that are not ours\n", what, wrong,
                x.c_rows() * x.columns, touched);
    print("128 rows", by_tile_row);
    print("128 columns", by_tile_column);
    print("16 rows in the tile (warp)", by_row_in_tile);
    print("column modulo 8", by_column_in_8);
    std::fflush(stdout);
  }
  return wrong + touched;
}

}  // namespace hopper_test
