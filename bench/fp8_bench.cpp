// FP8 beside our own BF16, in one run: block-scaled products at DeepSeek-V3's shapes, products of
// one row whose weights come out of memory, and quantising beside a copy of the same bytes.
//
//     fp8_bench [--no-head] [--threads T]
#include <cstring>
#include <dsv3/backend/cpu.hpp>
#include <string>

#include "peak.hpp"
#include "table.hpp"

namespace {

using namespace dsv3;

struct Shape {
  Product product;
  Index m, n, k;
  double goal;
};

constexpr Shape shapes[] = {
    {Product::nt, 128, 2112, 7168, 0.88},  {Product::nt, 128, 24576, 1536, 0.88},
    {Product::nt, 128, 32768, 512, 0.88},  {Product::nt, 128, 7168, 16384, 0.88},
    {Product::nt, 128, 4096, 7168, 0.88},  {Product::nt, 128, 7168, 2048, 0.88},
    {Product::nt, 1024, 2112, 7168, 0.88}, {Product::nt, 1024, 24576, 1536, 0.88},
    {Product::nt, 1024, 7168, 2048, 0.88}, {Product::nn, 1024, 7168, 2112, 0.88},
    {Product::tn, 2112, 7168, 1024, 0.88}, {Product::nt, 16, 7168, 2048, 0},
};

std::uint32_t next(std::uint32_t& state) { return state = state * 1664525u + 1013904223u; }

std::vector<bf16> values(Index n) {
  std::vector<bf16> x(static_cast<std::size_t>(n));
  std::uint32_t state = 1;
  for (bf16& value : x) value = bf16(static_cast<float>(next(state) >> 8) * 0x1p-23f - 1.0f);
  return x;
}

// A quantised matrix with memory of its own; finite codes, scales of 1.
struct Matrix {
  std::vector<e4m3> codes;
  std::vector<float> scales;
  Quantized<const e4m3> q;

  Matrix(Index rows, Index columns, Index down, Index across)
      : codes(static_cast<std::size_t>(rows * columns)),
        scales(static_cast<std::size_t>(groups_of(rows, down) * groups_of(columns, across)), 1.0f) {
    std::uint32_t state = 7;
    for (e4m3& c : codes) c = e4m3(static_cast<float>(next(state) >> 8) * 0x1p-15f - 256.0f);
    q = {{codes.data(), {rows, columns}},
         {scales.data(), groups_of(rows, down), groups_of(columns, across)},
         down,
         across};
  }
};

template <Product p>
double seconds_of(Cpu& cpu, const Shape& s, const std::vector<bf16>& a, const std::vector<bf16>& b,
                  const Matrix& qa, const Matrix& qb, std::vector<bf16>& c, bool fp8) {
  constexpr bool left = p == Product::tn, right = p == Product::nt;
  const View<bf16, 2> out(c.data(), {s.m, s.n});
  const double begin = bench::seconds();
  if (fp8)
    gemm(cpu, ProductTag<p>{}, qa.q, qb.q, out, Output::overwrite);
  else
    gemm(cpu, ProductTag<p>{}, View<const bf16, 2>(a.data(), {left ? s.k : s.m, left ? s.m : s.k}),
         View<const bf16, 2>(b.data(), {right ? s.n : s.k, right ? s.k : s.n}), out,
         Output::overwrite);
  return bench::seconds() - begin;
}

template <Product p>
void product(bench::Table& table, int threads, const Shape& s) {
  constexpr bool left = p == Product::tn, right = p == Product::nt;
  Cpu cpu(threads);
  const auto a = values(s.m * s.k), b = values(s.n * s.k);
  const Matrix qa(left ? s.k : s.m, left ? s.m : s.k, left ? 128 : 1, left ? 1 : 128);
  const Index down = 128, across = p == Product::tn ? 1 : 128;
  const Matrix qb(right ? s.n : s.k, right ? s.k : s.n, down, across);
  std::vector<bf16> c(static_cast<std::size_t>(s.m * s.n));
  std::vector<double> fp8, bf;
  for (int i = 0; i < 7; ++i) {
    bf.push_back(seconds_of<p>(cpu, s, a, b, qa, qb, c, false));
    fp8.push_back(seconds_of<p>(cpu, s, a, b, qa, qb, c, true));
  }
  const char* names[] = {"nt", "nn", "tn"};
  const double operations = 2e-9 * static_cast<double>(s.m * s.n * s.k);
  table.at_least(std::string("gemm fp8 ") + names[static_cast<int>(p)] + " " + std::to_string(s.m) +
                     " x " + std::to_string(s.n) + " x " + std::to_string(s.k) +
                     ", T = " + std::to_string(threads),
                 operations / bench::median(fp8), "GFLOP/s", "own bf16",
                 operations / bench::median(bf), s.goal);
}

// One row against a matrix far larger than the caches.
void vector_product(bench::Table& table, int threads) {
  Cpu cpu(threads);
  const Index n = 7168, k = 16384;
  const auto a = values(k), b = values(n * k);
  const Matrix qa(1, k, 1, 128), qb(n, k, 128, 128);
  std::vector<bf16> c(static_cast<std::size_t>(n));
  const Shape s{Product::nt, 1, n, k, 0};
  std::vector<double> fp8, bf;
  for (int i = 0; i < 7; ++i) {
    bf.push_back(seconds_of<Product::nt>(cpu, s, a, b, qa, qb, c, false));
    fp8.push_back(seconds_of<Product::nt>(cpu, s, a, b, qa, qb, c, true));
  }
  const double weights = 1e-9 * static_cast<double>(n * k);
  table.at_least("fp8 1 x 7168 x 16384, T = " + std::to_string(threads),
                 weights / bench::median(fp8), "Gweight/s", "own bf16", weights / bench::median(bf),
                 1.7);
}

// bf16 to codes in groups of 1 x 128, beside a copy that reads and writes as many bytes.
void quantize(bench::Table& table, int threads) {
  Cpu cpu(threads);
  const Index rows = 16384, columns = 7168, groups = groups_of(columns, 128);
  const auto x = values(rows * columns);
  std::vector<e4m3> codes(static_cast<std::size_t>(rows * columns));
  std::vector<float> scales(static_cast<std::size_t>(rows * groups));
  const View<const bf16, 2> from(x.data(), {rows, columns});
  const Quantized<e4m3> to({codes.data(), {rows, columns}}, {scales.data(), rows, groups}, 1, 128);
  const Index touched = 3 * rows * columns + 4 * rows * groups;
  std::vector<char> source(static_cast<std::size_t>(touched / 2), 1), target(source);
  std::vector<double> ours, copy;
  for (int i = 0; i < 7; ++i) {
    double begin = bench::seconds();
    quantize_rows(cpu, from, to, ScaleRule{});
    ours.push_back(bench::seconds() - begin);
    begin = bench::seconds();
    const Index chunk = Index{1} << 20, all = static_cast<Index>(source.size());
    cpu.parallel(groups_of(all, chunk), 1, [&](Index first, Index last, int) {
      for (Index c = first; c < last; ++c)
        std::memcpy(target.data() + c * chunk, source.data() + c * chunk,
                    static_cast<std::size_t>(std::min(chunk, all - c * chunk)));
    });
    copy.push_back(bench::seconds() - begin);
  }
  const double bytes = 1e-9 * static_cast<double>(touched);
  table.at_least("quantise bf16 1 x 128, T = " + std::to_string(threads),
                 bytes / bench::median(ours), "GB/s", "copy", bytes / bench::median(copy), 0.5);
}

}  // namespace

int main(int argc, char** argv) {
  bool head = true;
  int only_threads = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--no-head") == 0) head = false;
    if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc) only_threads = std::stoi(argv[++i]);
  }
  bench::Table table(head);
  for (int threads : {1, 2}) {
    if (only_threads != 0 && threads != only_threads) continue;
    for (const Shape& s : shapes) {
      if (s.product == Product::nt) product<Product::nt>(table, threads, s);
      if (s.product == Product::nn) product<Product::nn>(table, threads, s);
      if (s.product == Product::tn) product<Product::tn>(table, threads, s);
    }
    vector_product(table, threads);
    quantize(table, threads);
  }
  return table.status();
}
