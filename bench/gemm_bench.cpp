// Matrix products at DeepSeek-V3's shapes and at those of a small model, as shares of what the
// machine's own instruction reaches with its operands in registers.
//
//     gemm_bench [--no-head] [--small] [--large] [--threads T]
#include <cstring>
#include <dsv3/backend/cpu.hpp>
#include <string>

#include "peak.hpp"
#include "table.hpp"

namespace {

using namespace dsv3;

struct Shape {
  Product product;
  Index m, n, k, groups;
  double goal_one, goal_many;  // on one thread, on more
};

constexpr Shape large[] = {
    {Product::nt, 128, 2112, 7168, 1, 0.70, 0.65},   {Product::nt, 128, 24576, 1536, 1, 0.70, 0.65},
    {Product::nt, 128, 32768, 512, 1, 0.70, 0.65},   {Product::nt, 128, 7168, 16384, 1, 0.70, 0.65},
    {Product::nt, 128, 4096, 7168, 1, 0.70, 0.65},   {Product::nt, 128, 7168, 2048, 1, 0.70, 0.65},
    {Product::nt, 128, 1536, 7168, 1, 0.70, 0.65},   {Product::nt, 1024, 2112, 7168, 1, 0.70, 0.65},
    {Product::nt, 1024, 24576, 1536, 1, 0.70, 0.65}, {Product::nt, 1024, 32768, 512, 1, 0.70, 0.65},
    {Product::nt, 1024, 7168, 16384, 1, 0.70, 0.65}, {Product::nt, 1024, 4096, 7168, 1, 0.70, 0.65},
    {Product::nt, 1024, 7168, 2048, 1, 0.70, 0.65},  {Product::nt, 1024, 1536, 7168, 1, 0.70, 0.65},
    {Product::nt, 16, 7168, 2048, 1, 0, 0},          {Product::nt, 1, 7168, 2048, 1, 0, 0},
};
constexpr Shape small[] = {
    {Product::nt, 2048, 256, 512, 1, 0, 0},  {Product::nt, 2048, 768, 256, 1, 0, 0},
    {Product::nt, 2048, 1024, 128, 1, 0, 0}, {Product::nt, 2048, 512, 512, 1, 0, 0},
    {Product::nt, 2048, 8192, 512, 1, 0, 0}, {Product::nt, 512, 256, 512, 16, 0, 0},
    {Product::nt, 512, 512, 256, 16, 0, 0},  {Product::nn, 2048, 512, 512, 1, 0, 0},
    {Product::nn, 2048, 512, 8192, 1, 0, 0}, {Product::nn, 512, 512, 256, 16, 0, 0},
    {Product::tn, 512, 512, 2048, 1, 0, 0},  {Product::tn, 768, 256, 2048, 1, 0, 0},
    {Product::tn, 8192, 512, 512, 1, 0, 0},  {Product::tn, 256, 512, 512, 16, 0, 0},
};

template <class T>
std::vector<T> numbers(Index n) {
  std::vector<T> x(static_cast<std::size_t>(n));
  std::uint32_t state = 1;
  for (T& value : x) {
    state = state * 1664525u + 1013904223u;
    value = T(static_cast<float>(state >> 8) * 0x1p-23f - 1.0f);
  }
  return x;
}

template <Product p, class T, class TC>
void multiply(Cpu& cpu, const Shape& s, const T* a, const T* b, TC* c, const Index* offsets) {
  constexpr bool left = p == Product::tn, right = p == Product::nt;
  const Index all = s.m * s.groups;
  if (s.groups == 1) {
    gemm(cpu, ProductTag<p>{}, View<const T, 2>(a, {left ? s.k : s.m, left ? s.m : s.k}),
         View<const T, 2>(b, {right ? s.n : s.k, right ? s.k : s.n}), View<TC, 2>(c, {s.m, s.n}),
         Output::overwrite);
  } else if constexpr (left) {
    grouped_gemm(cpu, ProductTag<p>{}, View<const T, 2>(a, {s.k * s.groups, s.m}),
                 View<const T, 2>(b, {s.k * s.groups, s.n}), View<TC, 3>(c, {s.groups, s.m, s.n}),
                 View<const Index, 1>(offsets, {s.groups + 1}), Output::overwrite);
  } else {
    grouped_gemm(cpu, ProductTag<p>{}, View<const T, 2>(a, {all, s.k}),
                 View<const T, 3>(b, {s.groups, right ? s.n : s.k, right ? s.k : s.n}),
                 View<TC, 2>(c, {all, s.n}), View<const Index, 1>(offsets, {s.groups + 1}),
                 Output::overwrite);
  }
}

template <class T, class TC>
void measure(bench::Table& table, int threads, const Shape& s, const char* type) {
  Cpu cpu(threads);
  using Kernel = detail::KernelFor<T, T, TC>;
  const std::vector<T> a = numbers<T>(s.m * s.k * s.groups), b = numbers<T>(s.n * s.k * s.groups);
  std::vector<TC> c(static_cast<std::size_t>(s.m * s.n * s.groups));
  std::vector<Index> offsets;
  for (Index g = 0; g <= s.groups; ++g)
    offsets.push_back(g * (s.product == Product::tn ? s.k : s.m));
  auto once = [&] {
    const double begin = bench::seconds();
    if (s.product == Product::nt)
      multiply<Product::nt>(cpu, s, a.data(), b.data(), c.data(), offsets.data());
    if (s.product == Product::nn)
      multiply<Product::nn>(cpu, s, a.data(), b.data(), c.data(), offsets.data());
    if (s.product == Product::tn)
      multiply<Product::tn>(cpu, s, a.data(), b.data(), c.data(), offsets.data());
    return bench::seconds() - begin;
  };
  const double operations = 2e-9 * static_cast<double>(s.m * s.n * s.k * s.groups);
  std::vector<double> reached, peak;
  once();
  const int repeats = operations < 2 ? 7 : 5;
  for (int i = 0; i < repeats; ++i) {
    peak.push_back(bench::arithmetic_peak<Kernel>(threads));
    reached.push_back(operations / once());
  }
  const char* names[] = {"nt", "nn", "tn"};
  const std::string what = std::string("gemm ") + type + " " + names[static_cast<int>(s.product)] +
                           " " + (s.groups > 1 ? std::to_string(s.groups) + " x " : "") +
                           std::to_string(s.m) + " x " + std::to_string(s.n) + " x " +
                           std::to_string(s.k) + ", T = " + std::to_string(threads);
  table.at_least(what, bench::median(reached), "GFLOP/s", std::string("peak ") + detail::Isa::name,
                 *std::max_element(peak.begin(), peak.end()),
                 threads == 1 ? s.goal_one : s.goal_many);
}

}  // namespace

int main(int argc, char** argv) {
  bool head = true, only_small = false, only_large = false;
  int only_threads = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--no-head") == 0) head = false;
    if (std::strcmp(argv[i], "--small") == 0) only_small = true;
    if (std::strcmp(argv[i], "--large") == 0) only_large = true;
    if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc) only_threads = std::stoi(argv[++i]);
  }
  bench::Table table(head);
  for (int threads : {1, 2}) {
    if (only_threads != 0 && threads != only_threads) continue;
    if (!only_small)
      for (const Shape& s : large) {
        measure<float, float>(table, threads, s, "fp32");
        measure<bf16, bf16>(table, threads, s, "bf16");
      }
    if (!only_large)
      for (const Shape& s : small) {
        measure<float, float>(table, threads, s, "fp32");
        if (s.product == Product::tn)
          measure<bf16, float>(table, threads, s, "bf16");
        else
          measure<bf16, bf16>(table, threads, s, "bf16");
      }
  }
  return table.status();
}
