// How fast the GPU's own products are: one line for each shape.
#include <algorithm>

#include "product_reference.cuh"

// Not by a using directive: what nvcc appends to the file would see its names.
namespace product_test {
namespace {

template <class T>
__global__ void fill_kernel(T* data, Index count) {
  const Index i = blockIdx.x * Index{blockDim.x} + threadIdx.x;
  if (i >= count) return;
  auto x = static_cast<std::uint32_t>(i) * 2654435761u;
  x = (x ^ (x >> 15)) * 2246822519u;
  data[i] = T(static_cast<accum_t<T>>((x >> 8) / 8388608.0f - 1.0f));
}

template <class T>
class Filled {
 public:
  explicit Filled(Index count) : count_(count) {
    data = static_cast<T*>(allocate(*device(), count * static_cast<Index>(sizeof(T))));
    fill_kernel<<<static_cast<unsigned>(groups_of(count, 256)), 256, 0, device()->stream()>>>(
        data, count);
  }
  Filled(const Filled&) = delete;
  ~Filled() { deallocate(*device(), data, count_); }
  T* data;

 private:
  Index count_;
};

// Median of 20 calls, in seconds.
template <class F>
double seconds(F&& call) {
  cudaEvent_t start, stop;
  cudaEventCreate(&start);
  cudaEventCreate(&stop);
  std::vector<float> times;
  for (int i = 0; i < 23; ++i) {
    cudaEventRecord(start, device()->stream());
    call();
    cudaEventRecord(stop, device()->stream());
    cudaEventSynchronize(stop);
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, start, stop);
    if (i >= 3) times.push_back(milliseconds);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e-3;
}

void report(const char* what, Index m, Index n, Index k, double time) {
  std::printf("%-34s %6td x %5td x %5td  %9.1f us  %7.1f TFLOP/s\n", what, m, n, k, time * 1e6,
              2.0 * double(m) * double(n) * double(k) / time * 1e-12);
  std::fflush(stdout);
}

template <Product p, class T, class TC>
void time_gemm(const std::string& what, Index m, Index n, Index k, bool each_tile) {
  Filled<T> a(m * k), b(n * k);
  Filled<TC> c(m * n);
  constexpr bool left = p != Product::tn, right = p == Product::nt;
  const View<const T, 2> x(a.data, {left ? m : k, left ? k : m});
  const View<const T, 2> y(b.data, {right ? n : k, right ? k : n});
  const View<TC, 2> z(c.data, {m, n});
  const std::string name = what + " " + name_of<p>();
  report(name.c_str(), m, n, k, seconds([&] { detail::cuda_gemm<p>(*device(), x, y, z, false); }));
  if constexpr (std::is_same_v<T, bf16>) {
    if (!each_tile) return;
    const detail::MatrixProblem<p, T, T, TC> problem{
        detail::stack_of_one(x), detail::stack_of_one(y), detail::stack_of_one(z), {}, false};
    report((name + " 128 x 256").c_str(), m, n, k, seconds([&] {
             detail::launch_matrices<detail::LargeTile, true>(*device(), "", problem);
           }));
    report((name + " 128 x 128").c_str(), m, n, k, seconds([&] {
             detail::launch_matrices<detail::MediumTile, true>(*device(), "", problem);
           }));
    report((name + " 64 x 64").c_str(), m, n, k, seconds([&] {
             detail::launch_matrices<detail::SmallTile, true>(*device(), "", problem);
           }));
  }
}

// 8 experts of 1024 rows: nt and nn [rows, k] by [n, k], tn to [n, k] for each expert.
struct Experts {
  static constexpr Index count = 8, rows = 8192, n = 4096, k = 7168;
  Index* data = static_cast<Index*>(allocate(*device(), (count + 1) * 8));
  Experts() {
    Index ends[count + 1];
    for (Index e = 0; e <= count; ++e) ends[e] = e * rows / count;
    copy_to_backend(*device(), data, ends, sizeof ends);
  }
  Experts(const Experts&) = delete;
  ~Experts() { deallocate(*device(), data, 0); }
  View<const Index, 1> offsets() const { return {data, {count + 1}}; }
};

}  // namespace

TEST_CASE("How fast products of matrices are") {
  if (!device()) return;
  time_gemm<Product::nt, bf16, bf16>("bf16", 4096, 7168, 2048, true);
  time_gemm<Product::nn, bf16, bf16>("bf16", 4096, 7168, 2048, true);
  time_gemm<Product::tn, bf16, float>("bf16", 4096, 7168, 2048, true);
  time_gemm<Product::nt, bf16, bf16>("bf16", 8192, 8192, 8192, false);
  time_gemm<Product::nt, bf16, bf16>("bf16", 4096, 2112, 7168, true);
  for (const Index m : {16, 64, 128, 256})
    time_gemm<Product::nt, bf16, bf16>("bf16", m, 7168, 7168, true);
  time_gemm<Product::nt, float, float>("float", 4096, 4096, 4096, false);
  time_gemm<Product::tn, float, float>("float", 4096, 4096, 4096, false);
  time_gemm<Product::nt, double, double>("double", 2048, 2048, 2048, false);
}

TEST_CASE("How fast grouped products are") {
  if (!device()) return;
  using E = Experts;
  const E experts;
  {
    Filled<bf16> a(E::rows * E::k), b(E::count * E::n * E::k), c(E::rows * E::n);
    const View<const bf16, 2> x(a.data, {E::rows, E::k}), d(c.data, {E::rows, E::n});
    const View<const bf16, 3> y(b.data, {E::count, E::n, E::k});
    const View<bf16, 2> z(c.data, {E::rows, E::n}), dx(a.data, {E::rows, E::k});
    report("8 experts, bf16 nt", E::rows, E::n, E::k, seconds([&] {
             detail::cuda_grouped_gemm<Product::nt>(*device(), x, y, z, experts.offsets(), false);
           }));
    report("8 experts, bf16 nn", E::rows, E::k, E::n, seconds([&] {
             detail::cuda_grouped_gemm<Product::nn>(*device(), d, y, dx, experts.offsets(), false);
           }));
    Filled<float> w(E::count * E::n * E::k);
    const View<float, 3> dw(w.data, {E::count, E::n, E::k});
    report("8 experts, bf16 tn", E::n, E::k, E::rows, seconds([&] {
             detail::cuda_grouped_gemm<Product::tn>(*device(), d, x, dw, experts.offsets(), true);
           }));
  }
  Filled<e4m3> a(E::rows * E::k), b(E::count * E::n * E::k), d(E::rows * E::n);
  Filled<float> scales(E::rows * E::k / 128 + E::count * E::k);
  const View<const e4m3, 2> ac(a.data, {E::rows, E::k}), dc(d.data, {E::rows, E::n});
  const QuantizedStack<const e4m3> y(View<const e4m3, 3>(b.data, {E::count, E::n, E::k}),
                                     {scales.data, E::count * E::n / 128, E::k / 128}, 128, 128);
  {
    Filled<bf16> c(E::rows * E::k);
    report("8 experts, codes nt", E::rows, E::n, E::k, seconds([&] {
             detail::cuda_grouped_gemm<Product::nt>(
                 *device(), Quantized<const e4m3>(ac, {scales.data, E::rows, E::k / 128}, 1, 128),
                 y, View<bf16, 2>(c.data, {E::rows, E::n}), experts.offsets(), false);
           }));
    report("8 experts, codes nn", E::rows, E::k, E::n, seconds([&] {
             detail::cuda_grouped_gemm<Product::nn>(
                 *device(), Quantized<const e4m3>(dc, {scales.data, E::rows, E::n / 128}, 1, 128),
                 y, View<bf16, 2>(c.data, {E::rows, E::k}), experts.offsets(), false);
           }));
  }
  Filled<float> w(E::count * E::n * E::k);
  const Index groups = E::rows / 128 + E::count;
  report("8 experts, codes tn", E::n, E::k, E::rows, seconds([&] {
           detail::cuda_grouped_gemm<Product::tn>(
               *device(), Quantized<const e4m3>(dc, {scales.data, groups, E::n}, 128, 1),
               Quantized<const e4m3>(ac, {scales.data, groups, E::k}, 128, 1),
               View<float, 3>(w.data, {E::count, E::n, E::k}), experts.offsets(), true);
         }));
}

}  // namespace product_test
