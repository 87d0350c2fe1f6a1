// Products of codes by wgmma and TMA against a plain kernel, from one tile to whole layers.
#include <doctest/doctest.h>

#include "gpu/hopper_codes_case.cuh"

namespace hopper_test {

// Every form of the kernel, and turned stripes of one tile, of some, and of all.
template <Product p>
std::vector<Way> ways_of(Index rows, Index columns) {
  std::vector<Way> ways = {{{1, 128}}, {{2, 128}}};
  if constexpr (p == Product::nt) ways.push_back({{1, 64}});
  const Index a = detail::hopper_whole_tiles(rows), b = detail::hopper_whole_tiles(columns);
  if constexpr (p == Product::nn) {
    ways.push_back({{2, 128}, {0, 128}});
    ways.push_back({{1, 128}, {0, 256}});
    ways.push_back({{1, 64}, {0, b}});
  }
  if constexpr (p == Product::tn) {
    ways.push_back({{1, 128}, {128, 128}});
    ways.push_back({{2, 128}, {256, 128, true}});
    ways.push_back({{2, 128}, {a, b}});
    ways.push_back({{1, 128}, {128, 256}});
  }
  return ways;
}

// Null, with a message, where the kernels cannot run; one context for all tests.
Cuda* hopper() {
  static const std::unique_ptr<Cuda> cuda = []() -> std::unique_ptr<Cuda> {
    if (const auto reason = cuda_unavailable(); !reason.empty()) {
      std::printf("skipped: %s\n", reason.c_str());
      return nullptr;
    }
    auto made = std::make_unique<Cuda>();
    if (detail::hopper_kernels_run(*made)) return made;
    std::printf("skipped: compute capability %d, or no code for sm_90a\n", made->capability());
    return nullptr;
  }();
  return cuda.get();
}

struct Sizes {
  std::vector<Index> offsets;
  Index rows, columns, depth;
};

// NaN in all of it: nothing may read what it has not written.
void spoil_workspace(Cuda& cuda) {
  cudaMemsetAsync(cuda.workspace(), 0x7F, static_cast<std::size_t>(Cuda::workspace_bytes),
                  cuda.stream());
}

// Exact codes, every way: all elements equal, none touched besides.
template <Product p, class TC>
void check_exact(Cuda& cuda, const char* name, const Sizes& s, Index gap, bool add) {
  const Operands<p> x(cuda, s.offsets, s.rows, s.columns, s.depth, true);
  const auto wanted = x.reference(cuda);
  for (const auto& way : ways_of<p>(x.rows, x.columns)) {
    char what[200];
    std::snprintf(what, sizeof what, "%s %s, %td groups, %td x %td, depth %td, gap %td%s, %s",
                  p == Product::nt   ? "nt"
                  : p == Product::nn ? "nn"
                                     : "tn",
                  name, x.groups, x.rows, x.columns, x.depth, gap, add ? ", add" : "",
                  way.name().c_str());
    INFO(what);
    const Result<p, TC, true> r(cuda, x, gap);
    spoil_workspace(cuda);
    r.run(cuda, x, add ? Output::add : Output::overwrite, way);
    finish(cuda, what);
    CHECK(differences(what, x, wanted, r, add, 0) == 0);
  }
}

TEST_CASE("Hopper's nt of one tile and one step is exact") {
  if (!hopper()) return;
  check_exact<Product::nt, float>(*hopper(), "float", {{}, 128, 128, 128}, 0, false);
  check_exact<Product::nt, bf16>(*hopper(), "bf16", {{}, 128, 128, 128}, 0, false);
}
TEST_CASE("Hopper's nt of many steps and tiles is exact") {
  if (!hopper()) return;
  check_exact<Product::nt, float>(*hopper(), "steps", {{}, 256, 256, 128 * 11}, 0, false);
  check_exact<Product::nt, float>(*hopper(), "tiles", {{}, 3000, 3200, 384}, 0, false);
  check_exact<Product::nt, bf16>(*hopper(), "tiles", {{}, 1500, 1600, 640}, 0, true);
}
TEST_CASE("Hopper's nt of ragged sizes and rows apart is exact and touches nothing besides") {
  if (!hopper()) return;
  check_exact<Product::nt, float>(*hopper(), "ragged", {{}, 37, 40, 16}, 3, false);
  check_exact<Product::nt, bf16>(*hopper(), "ragged", {{}, 301, 333, 208}, 5, true);
  check_exact<Product::nt, bf16>(*hopper(), "ragged", {{}, 300, 328, 1040}, 8, true);
  check_exact<Product::nt, float>(*hopper(), "odd depth", {{}, 200, 140, 333}, 4, true);
}
const std::vector<Index> uneven = {0, 0, 5, 5, 133, 389, 390, 390, 1000};
TEST_CASE("Hopper's grouped nt is exact") {
  if (!hopper()) return;
  check_exact<Product::nt, float>(*hopper(), "grouped", {uneven, 1003, 328, 400}, 0, false);
  check_exact<Product::nt, bf16>(*hopper(), "grouped", {uneven, 1000, 256, 768}, 0, true);
  std::vector<Index> many = {0};
  for (int e = 0; e < 500; ++e) many.push_back(many.back() + (e * 7) % 5);
  check_exact<Product::nt, float>(*hopper(), "many", {many, many.back(), 128, 144}, 0, false);
}
TEST_CASE("Hopper's nn is exact") {
  if (!hopper()) return;
  check_exact<Product::nn, float>(*hopper(), "one tile", {{}, 128, 128, 128}, 0, false);
  check_exact<Product::nn, float>(*hopper(), "steps", {{}, 256, 384, 128 * 11}, 0, false);
  check_exact<Product::nn, bf16>(*hopper(), "ragged", {{}, 301, 333, 208}, 3, true);
  check_exact<Product::nn, bf16>(*hopper(), "grouped", {uneven, 1003, 328, 400}, 0, true);
}
TEST_CASE("Hopper's tn is exact") {
  if (!hopper()) return;
  check_exact<Product::tn, float>(*hopper(), "one tile", {{}, 128, 128, 128}, 0, false);
  check_exact<Product::tn, float>(*hopper(), "steps", {{}, 256, 384, 128 * 11}, 0, false);
  check_exact<Product::tn, float>(*hopper(), "ragged", {{}, 300, 332, 203}, 4, true);
  check_exact<Product::tn, float>(*hopper(), "grouped", {uneven, 300, 200, 1000}, 0, true);
  check_exact<Product::tn, float>(*hopper(), "grouped", {uneven, 256, 272, 1000}, 0, false);
}

// Any codes: near the reference, and the same bits however the product is cut or turned.
template <Product p>
void check_random(Cuda& cuda, const Sizes& s) {
  const Operands<p> x(cuda, s.offsets, s.rows, s.columns, s.depth, false);
  const auto wanted = x.reference(cuda);
  std::vector<float> first;
  for (const auto& way : ways_of<p>(x.rows, x.columns)) {
    const Result<p, float, true> r(cuda, x, 0);
    spoil_workspace(cuda);
    r.run(cuda, x, Output::overwrite, way);
    finish(cuda, "random codes");
    double worst = 0;
    // The accumulator keeps about 13 bits below its largest term.
    CHECK(differences("random codes", x, wanted, r, false, 1.0 / 1024, &worst) == 0);
    std::printf("random codes, product %d, %s: largest error %.3g of the terms' sum\n",
                static_cast<int>(p), way.name().c_str(), worst);
    auto bits = const_cast<Result<p, float, true>&>(r).memory.download();
    if (first.empty()) first = bits;
    CHECK(std::memcmp(first.data(), bits.data(), bits.size() * sizeof(float)) == 0);
  }
}
TEST_CASE("Hopper's products of any codes are near the reference and do not depend on the way") {
  if (!hopper()) return;
  check_random<Product::nt>(*hopper(), {uneven, 1000, 400, 1000});
  check_random<Product::nn>(*hopper(), {uneven, 1000, 400, 1000});
  check_random<Product::tn>(*hopper(), {uneven, 300, 400, 1000});
}

// The bits of the first rows, alone and among others.
TEST_CASE("An element of Hopper's products does not depend on the other rows") {
  if (!hopper()) return;
  Cuda& cuda = *hopper();
  const Operands<Product::nt> x(cuda, {}, 700, 400, 1000, false);
  const Result<Product::nt, float, false> all(cuda, x, 0), few(cuda, x, 0);
  all.run_chosen(cuda, x, Output::overwrite);
  const auto whole = const_cast<Result<Product::nt, float, false>&>(all).memory.download();
  for (Index rows : {1, 37, 128, 300}) {
    detail::hopper_codes_gemm(cuda, nt, x.a().rows(0, rows), x.b(), few.view(x).rows(0, rows),
                              Output::overwrite);
    const auto part = const_cast<Result<Product::nt, float, false>&>(few).memory.download();
    CHECK(std::memcmp(whole.data(), part.data(),
                      static_cast<std::size_t>(rows * x.columns) * sizeof(float)) == 0);
  }
}

TEST_CASE("hopper_codes_fit refuses what TMA cannot read") {
  if (!hopper()) return;
  Cuda& cuda = *hopper();
  const Operands<Product::nt> x(cuda, {}, 64, 64, 64, true);
  Device<float> out(cuda, 64 * 64);
  const View<float, 2> c(out.data, {64, 64});
  auto a = x.a();
  CHECK(detail::hopper_codes_fit(cuda, nt, a, x.b(), c));
  CHECK_FALSE(detail::hopper_codes_fit(cuda, tn, a, x.b(), c));  // groups run along the columns
  a.codes.strides[0] = 72;
  CHECK_FALSE(detail::hopper_codes_fit(cuda, nt, a, x.b(), c));
  a = x.a();
  a.codes.data += 8;
  CHECK_FALSE(detail::hopper_codes_fit(cuda, nt, a, x.b(), c));
  a = x.a();
  a.group_columns = 64;
  CHECK_FALSE(detail::hopper_codes_fit(cuda, nt, a, x.b(), c));
}

// Median of 20 times in microseconds.
template <class Work>
double median_time(Cuda& cuda, const Work& work) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int turn = 0; turn < 23; ++turn) {
    float ms = 0;
    cudaEventRecord(begin, cuda.stream());
    work();
    cudaEventRecord(end, cuda.stream());
    cudaEventSynchronize(end);
    cudaEventElapsedTime(&ms, begin, end);
    if (turn >= 3) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return 1e3 * double(times[10]);
}

// TFLOP/s by the library's own form of the kernel, in each way that it might choose and in the one
// that it chooses; some elements checked.
template <Product p, class TC>
void time_product(Cuda& cuda, const char* name, const Sizes& s, Output output) {
  const Operands<p> x(cuda, s.offsets, s.rows, s.columns, s.depth, false);
  const Result<p, TC, false> r(cuda, x, 0);
  std::vector<Way> ways = {{{1, 128}}, {{2, 128}}};
  if constexpr (p == Product::nt)
    if (x.rows / x.groups <= 256) ways.push_back({{1, 64}});
  detail::HopperTurns turns{};
  if constexpr (p == Product::nn)
    turns.b = detail::hopper_stripe(x.groups, x.columns, x.depth, Cuda::workspace_bytes);
  if constexpr (p == Product::tn)
    turns = detail::hopper_turns(x.groups, x.rows, x.columns, x.depth, Cuda::workspace_bytes);
  if (turns.b > 0)
    for (const auto& cut : {ways[0].cut, ways[1].cut}) ways.push_back({cut, turns});
  std::printf("%s %-28s", p == Product::nt ? "nt" : p == Product::nn ? "nn" : "tn", name);
  const auto print = [&](const std::string& way, double us) {
    std::printf("  %s: %.1f us %.0f TFLOP/s;", way.c_str(), us, x.flops() / (1e6 * us));
    std::fflush(stdout);
  };
  for (const auto& way : ways)
    print(way.name(), median_time(cuda, [&] { r.run(cuda, x, output, way); }));
  print("chosen", median_time(cuda, [&] { r.run_chosen(cuda, x, output); }));
  std::printf("\n");
  if (output == Output::overwrite) {
    constexpr int samples = 1024;
    Device<float> found(cuda, 3 * samples);
    int wrong = 0;
    for (Index e : {Index{0}, x.groups - 1}) {
      const View<const TC, 2> c = r.view(x);
      const auto part =
          p == Product::tn ? c.rows(e * x.rows, x.rows) : c.rows(x.first(e), x.count(e));
      sample_kernel<p, TC><<<samples / 256, 256, 0, cuda.stream()>>>(x.group_a(e), x.group_b(e),
                                                                     part, found.data, samples);
      const auto values = found.download();
      for (int i = 0; i < samples; ++i)
        wrong += !(std::abs(values[3 * i + 2] - values[3 * i]) <=
                   values[3 * i + 1] / 1024 + std::abs(values[3 * i]) / 128);
    }
    CHECK(wrong == 0);
  }
}

std::vector<Index> even(Index groups, Index rows) {
  std::vector<Index> offsets;
  for (Index e = 0; e <= groups; ++e) offsets.push_back(e * rows);
  return offsets;
}

TEST_CASE("Turned copies of codes, timed") {
  if (!hopper()) return;
  Cuda& cuda = *hopper();
  const auto print = [](const char* name, double bytes, double us) {
    std::printf("%s: %.1f us, %.0f GB/s read and written\n", name, us, 2e-3 * bytes / us);
  };
  const Operands<Product::nn> w(cuda, even(8, 128), 1024, 7168, 2048, false);
  const auto to = detail::turned_stripe(cuda.workspace(), 8, 7168, 2048);
  print("8 weights of 2048 x 7168", 8.0 * 2048 * 7168,
        median_time(cuda, [&] { detail::turn_codes(cuda, "test", w.stack().codes, 0, to); }));
  const Operands<Product::tn> x(cuda, even(8, 4096), 2048, 128, 32768, false);
  const Index tokens = detail::hopper_turned_tokens(32768, 8);
  const auto segments = detail::turned_stripe(cuda.workspace(), 1, 2048, tokens);
  print("8 segments of 4096 x 2048", 32768.0 * 2048, median_time(cuda, [&] {
          detail::turn_segments(cuda, "test", detail::stack_of_one(x.a()).codes, 0, segments, 8,
                                x.offsets_view());
        }));
}

TEST_CASE("Hopper's products at the sizes of DeepSeek-V3, timed") {
  if (!hopper()) return;
  Cuda& cuda = *hopper();
  const Index T = 4096;
  constexpr auto set = Output::overwrite, add = Output::add;
  time_product<Product::nt, bf16>(cuda, "4096 x (4096 x 7168)", {{}, T, 4096, 7168}, set);
  time_product<Product::nt, bf16>(cuda, "4096 x (7168 x 2048)", {{}, T, 7168, 2048}, set);
  time_product<Product::nt, bf16>(cuda, "4096 x (7168 x 16384)", {{}, T, 7168, 16384}, set);
  time_product<Product::nt, bf16>(cuda, "4096 x (24576 x 1536)", {{}, T, 24576, 1536}, set);
  time_product<Product::nt, bf16>(cuda, "128 x (7168 x 16384)", {{}, 128, 7168, 16384}, set);
  for (Index rows : {1, 16, 64})
    time_product<Product::nt, bf16>(cuda, "few x (7168 x 16384)", {{}, rows, 7168, 16384}, set);
  time_product<Product::nt, bf16>(cuda, "128 x (24576 x 1536)", {{}, 128, 24576, 1536}, set);
  time_product<Product::nn, bf16>(cuda, "4096 x (4096 x 7168)", {{}, T, 7168, 4096}, set);
  time_product<Product::nn, bf16>(cuda, "4096 x (7168 x 16384)", {{}, T, 16384, 7168}, set);
  time_product<Product::tn, float>(cuda, "4096 x 7168 over 4096", {{}, 4096, 7168, T}, set);
  time_product<Product::tn, float>(cuda, "7168 x 16384 over 4096, add", {{}, 7168, 16384, T}, add);
  time_product<Product::nn, bf16>(cuda, "512 x (4096 x 7168)", {{}, 512, 7168, 4096}, set);
  time_product<Product::nn, bf16>(cuda, "1024 x (4096 x 7168)", {{}, 1024, 7168, 4096}, set);
  time_product<Product::tn, float>(cuda, "512 x 7168 over 4096", {{}, 512, 7168, T}, set);
  for (Index experts : {8, 32}) {
    const auto offsets = even(experts, 32768 / experts);
    std::printf("%td experts of %td rows\n", experts, 32768 / experts);
    time_product<Product::nt, bf16>(cuda, "grouped 4096 x 7168", {offsets, 32768, 4096, 7168}, set);
    time_product<Product::nt, bf16>(cuda, "grouped 7168 x 2048", {offsets, 32768, 7168, 2048}, set);
    time_product<Product::nn, bf16>(cuda, "grouped 2048 x 7168", {offsets, 32768, 7168, 2048}, set);
    time_product<Product::nn, bf16>(cuda, "grouped 7168 x 2048", {offsets, 32768, 2048, 7168}, set);
    time_product<Product::tn, float>(cuda, "grouped 2048 x 7168, add", {offsets, 2048, 7168, 32768},
                                     add);
    time_product<Product::tn, float>(cuda, "grouped 4096 x 7168", {offsets, 4096, 7168, 32768},
                                     set);
  }
}

}  // namespace hopper_test
