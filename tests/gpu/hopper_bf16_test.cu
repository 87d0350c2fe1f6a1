// Grouped products of bf16 by wgmma and TMA: against sums in double, by every form, with what lies
// around the rows of a group spoilt; and how fast they are.
#include <algorithm>
#include <dsv3/backend/cuda/hopper_bf16.cuh>
#include <string>

#include "gpu/product_reference.cuh"

namespace product_test {
namespace {

using detail::HopperBf16Cut;

// Null, with a message, where the kernels cannot run.
Cuda* hopper() {
  static Cuda* const cuda = [] {
    Cuda* made = device();
    if (!made || detail::hopper_kernels_run(*made)) return made;
    std::printf("skipped: compute capability %d, or no code for sm_90a\n", made->capability());
    return static_cast<Cuda*>(nullptr);
  }();
  return cuda;
}

const HopperBf16Cut cuts[] = {{256}, {128}, {128, true}};

std::string name_of_cut(const HopperBf16Cut& cut) {
  return std::to_string(cut.width) + (cut.apart ? " apart" : "");
}

// Waits; prints what a bounded wait noted, if it was that.
void finish(const std::string& what) {
  try {
    synchronize(*device());
  } catch (const std::exception& e) {
    const auto* f = device()->fault();
    std::printf(
        "%s: %s\n  fault: set %d, block %td, who %td (1: producer for empty, 3 + w: warp w for "
        "full), stage %td, parity %td\n",
        what.c_str(), e.what(), f->set, f->row, f->column, f->value, f->bound);
    std::fflush(stdout);
    throw;
  }
}

class DeviceOffsets {
 public:
  explicit DeviceOffsets(const std::vector<Index>& values)
      : count_(static_cast<Index>(values.size())) {
    memory_ = static_cast<Index*>(allocate(*device(), 8 * count_));
    copy_to_backend(*device(), memory_, values.data(), 8 * count_);
  }
  DeviceOffsets(const DeviceOffsets&) = delete;
  ~DeviceOffsets() { deallocate(*device(), memory_, 0); }
  View<const Index, 1> view() const { return {memory_, {count_}}; }

 private:
  Index count_;
  Index* memory_;
};

// Rows at multiples of 16 bytes, with something between them.
constexpr Gaps operand_gaps = {8, 8, 8};

// nt, nn: `rows` of a and c; tn: `rows` tokens, c of k x n. The rows that no group has stay as they
// are.
template <Product p, class TC>
struct Case {
  static constexpr bool by_rows = p != Product::tn;
  std::vector<Index> offsets;
  Index rows, n, k, experts;
  bool add;
  Random random;
  Tensor<bf16> a, b;
  Tensor<TC> c;

  Case(std::vector<Index> o, Index r, Index n_, Index k_, bool add_, bool integers,
       const Gaps& c_gaps)
      : offsets(std::move(o)),
        rows(r),
        n(n_),
        k(k_),
        experts(static_cast<Index>(offsets.size()) - 1),
        add(add_),
        random(static_cast<std::uint32_t>(r * 31 + n_)),
        a(1, rows, k, operand_gaps, random),
        b(by_rows ? experts : 1, by_rows ? (p == Product::nt ? n : k) : rows,
          p == Product::nt ? k : n, operand_gaps, random),
        c(by_rows ? 1 : experts, by_rows ? rows : k, n, c_gaps, random) {
    if (!integers) return;
    fill(a), fill(b), fill(c);
  }
  template <class T>
  void fill(Tensor<T>& x) {
    for (auto& value : x.host)
      if (!same_bits(value, poison<T>())) value = T(double(random.below(4)) - 1);
    x.upload();
  }
  Index first(Index e) const { return offsets[static_cast<std::size_t>(e)]; }
  Index count(Index e) const { return offsets[static_cast<std::size_t>(e) + 1] - first(e); }
  std::string name() const {
    return std::string(name_of<p>()) + (sizeof(TC) == 2 ? " bf16 " : " float ") +
           std::to_string(experts) + " experts, " + std::to_string(rows) + " rows, " +
           std::to_string(n) + " x " + std::to_string(k) + (add ? ", added" : "");
  }
  Output output() const { return add ? Output::add : Output::overwrite; }

  template <bool bounded = true>
  void run(const View<const Index, 1>& ends, const HopperBf16Cut& cut) {
    if constexpr (by_rows)
      detail::run_hopper_bf16<p, bounded>(*device(), a.matrix(), b.stack(), c.matrix(), ends,
                                          output(), cut);
    else
      detail::run_hopper_bf16<p, bounded>(*device(), a.matrix(), b.matrix(), c.stack(), ends,
                                          output(), cut);
  }
  bool fits() {
    if constexpr (by_rows)
      return detail::hopper_bf16_fit(*device(), ProductTag<p>{}, a.matrix(), b.stack(), c.matrix());
    else
      return detail::hopper_bf16_fit(*device(), ProductTag<p>{}, a.matrix(), b.matrix(), c.stack());
  }
  // As grouped_gemm does it.
  void run_chosen(const View<const Index, 1>& ends) {
    if constexpr (by_rows)
      detail::hopper_bf16_grouped(*device(), ProductTag<p>{}, a.matrix(), b.stack(), c.matrix(),
                                  ends, output());
    else
      detail::hopper_bf16_grouped(*device(), ProductTag<p>{}, a.matrix(), b.matrix(), c.stack(),
                                  ends, output());
  }
  // Wanted sums of all of c.
  std::vector<Exact> exact() {
    ExactSums sums(c.stack().size());
    for (Index e = 0; e < experts; ++e) {
      const auto left = as_const(a.matrix().rows(first(e), count(e)));
      if constexpr (by_rows)
        sums.add<p>(first(e) * n, left, as_const(b.stack()[e]), c.matrix().rows(first(e), count(e)),
                    add);
      else
        sums.add<p>(e * k * n, left, as_const(b.matrix().rows(first(e), count(e))), c.stack()[e],
                    add);
    }
    auto wanted = sums.download();
    if constexpr (by_rows) {  // rows of no group
      const auto old = c.on_host();
      for (Index i = 0; i < rows; ++i)
        if (i < offsets.front() || i >= offsets.back())
          for (Index j = 0; j < n; ++j)
            wanted[static_cast<std::size_t>(i * n + j)] = {Element::of(old(0, i, j)), 0};
    }
    return wanted;
  }
};

// Every form: near the sums in double, equal to them where they are of small integers, nothing
// around c touched, and the same bits.
template <Product p, class TC>
void check(std::vector<Index> offsets, Index rows, Index n, Index k, bool add, bool integers,
           const Gaps& c_gaps = {}) {
  Case<p, TC> x(std::move(offsets), rows, n, k, add, integers, c_gaps);
  const DeviceOffsets ends(x.offsets);
  REQUIRE(x.fits());
  const auto wanted = x.exact();
  std::vector<Index> depths = {k};
  if (!x.by_rows) {
    depths.clear();
    for (Index e = 0; e < x.experts; ++e) depths.push_back(x.count(e));
  }
  std::vector<TC> bits;
  for (int form = 0; form < 4; ++form) {
    const std::string what =
        x.name() + ", " + (form < 3 ? name_of_cut(cuts[form]) : std::string("chosen"));
    INFO(what);
    x.c.upload();
    if (form < 3)
      x.run(ends.view(), cuts[form]);
    else
      x.run_chosen(ends.view());
    finish(what);
    const auto got = x.c.download();
    CHECK(agrees(what, x.c, got, wanted, depths));
    if (bits.empty()) bits = got;
    Index other = 0, first_other = -1;
    for (std::size_t i = 0; i < got.size(); ++i)
      if (!same_bits(got[i], bits[i]) && !other++) first_other = static_cast<Index>(i);
    if (other) std::printf("%s: %td other bits, first at %td\n", what.c_str(), other, first_other);
    CHECK(other == 0);
    if (!integers) continue;
    Index wrong = 0, at = 0;
    const auto view = x.c.on_host();
    for (Index e = 0; e < view.extent(0); ++e)
      for (Index i = 0; i < view.extent(1); ++i)
        for (Index j = 0; j < view.extent(2); ++j, ++at) {
          const TC value = got[static_cast<std::size_t>(&view(e, i, j) - x.c.host.data())];
          const auto exact = TC(float(wanted[static_cast<std::size_t>(at)].value));
          if (float(value) != float(exact) && wrong++ < 6)
            std::printf("%s: [%td, %td, %td] is %g, must be %g\n", what.c_str(), e, i, j,
                        double(float(value)), double(float(exact)));
        }
    CHECK(wrong == 0);
  }
}

const std::vector<Index> uneven = {0, 0, 5, 5, 133, 389, 390, 390, 513, 770, 834, 1000};

template <Product p>
void check_all() {
  check<p, float>({0, 128}, 128, 256, 64, false, true);
  check<p, float>({0, 128}, 128, 128, 128, false, true);
  check<p, float>({0, 300}, 300, 520, 1000, false, true);
  check<p, bf16>({0, 256, 512}, 512, 512, 512, true, true);
  check<p, float>(uneven, 1000, 328, 400, false, true);
  check<p, float>(uneven, 1003, 300, 200, true, false, {1, 1, 3});
  check<p, bf16>(uneven, 1003, 264, 72, false, false, {8, 8, 8});
  check<p, bf16>(uneven, 1000, 40, 1032, true, false, {3, 1, 1});
  check<p, float>({0, 1, 3, 6}, 6, 37, 40, false, false);
}

TEST_CASE("Hopper's grouped nt of bf16 agrees with sums in double") {
  if (hopper()) check_all<Product::nt>();
}
TEST_CASE("Hopper's grouped nn of bf16 agrees with sums in double") {
  if (hopper()) check_all<Product::nn>();
}
TEST_CASE("Hopper's grouped tn of bf16 agrees with sums in double") {
  if (hopper()) check_all<Product::tn>();
}
TEST_CASE("Many small groups of Hopper's products of bf16") {
  if (!hopper()) return;
  std::vector<Index> many = {0};
  for (Index e = 0; e < 300; ++e) many.push_back(many.back() + e * 7 % 5);
  check<Product::nt, bf16>(many, many.back(), 136, 72, false, false);
  check<Product::nn, float>(many, many.back(), 72, 136, false, false);
  check<Product::tn, float>(many, many.back(), 72, 40, true, false);
}

// One group alone, all other rows of the operands NaN: the bits that it has among others.
template <Product p>
void check_alone() {
  Case<p, float> x(uneven, 1000, 328, 264, false, false, {});
  const DeviceOffsets ends(x.offsets);
  for (const auto& cut : cuts) {
    x.c.upload();
    x.run(ends.view(), cut);
    finish(x.name());
    const auto whole = x.c.download();
    for (const Index e : {1, 3, 5, 7, 10}) {
      Case<p, float> alone({x.first(e), x.first(e) + x.count(e)}, x.rows, x.n, x.k, false, false,
                           {});
      const auto copy = [&](auto& to, auto& from, bool by_group) {
        const auto out = to.on_host(), in = from.on_host();
        for (Index i = 0; i < out.extent(1); ++i)
          for (Index j = 0; j < out.extent(2); ++j)
            out(0, i, j) = by_group                                         ? in(e, i, j)
                           : i >= x.first(e) && i < x.first(e) + x.count(e) ? in(0, i, j)
                                                                            : poison<bf16>();
        to.upload();
      };
      copy(alone.a, x.a, false);
      copy(alone.b, x.b, x.by_rows);
      const DeviceOffsets own(alone.offsets);
      alone.run(own.view(), cut);
      finish(x.name() + ", alone");
      const auto part = alone.c.download();
      const auto all = x.c.on_host(), one = alone.c.on_host();
      Index other = 0;
      for (Index i = 0; i < one.extent(1); ++i)
        for (Index j = 0; j < x.n; ++j) {
          if (x.by_rows && (i < x.first(e) || i >= x.first(e) + x.count(e))) continue;
          const auto& want =
              whole[static_cast<std::size_t>(&all(x.by_rows ? 0 : e, i, j) - x.c.host.data())];
          const auto& got = part[static_cast<std::size_t>(&one(0, i, j) - alone.c.host.data())];
          if (!same_bits(want, got) && other++ < 4)
            std::printf("%s, %s: group %td alone has other bits at [%td, %td]: %g, not %g\n",
                        x.name().c_str(), name_of_cut(cut).c_str(), e, i, j, double(got),
                        double(want));
        }
      CHECK(other == 0);
    }
  }
}
TEST_CASE("A group of Hopper's products of bf16 has the same bits alone") {
  if (!hopper()) return;
  check_alone<Product::nt>();
  check_alone<Product::nn>();
  check_alone<Product::tn>();
}

// Memory too large for the host, uniform between -1 and 1.
template <class T>
__global__ void fill_uniform(T* values, Index count, std::uint32_t seed) {
  for (Index i = blockIdx.x * Index{256} + threadIdx.x; i < count; i += gridDim.x * Index{256}) {
    std::uint32_t h = static_cast<std::uint32_t>(i) * 2654435761u + seed;
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    values[i] = T(float(h ^ h >> 15) * 0x1p-31f - 1);
  }
}
template <class T>
struct Large {
  Index count;
  T* data;

  Large(Index n, std::uint32_t seed) : count(n) {
    data = static_cast<T*>(allocate(*device(), n * static_cast<Index>(sizeof(T))));
    fill_uniform<<<1024, 256, 0, device()->stream()>>>(data, n, seed);
  }
  Large(const Large&) = delete;
  ~Large() { deallocate(*device(), data, 0); }
};

// counts[0]: elements of other bits; counts[1]: those that are far apart.
template <class T>
__global__ void compare_kernel(const T* x, const T* y, Index count, unsigned long long* counts) {
  unsigned long long bits = 0, far = 0;
  for (Index i = blockIdx.x * Index{256} + threadIdx.x; i < count; i += gridDim.x * Index{256}) {
    const float a = float(x[i]), b = float(y[i]);
    bits += !(a == b);
    far += !(fabsf(a - b) <= 0.02f + 0.01f * fabsf(b));
  }
  if (bits) atomicAdd(counts, bits);
  if (far) atomicAdd(counts + 1, far);
}

// The least of some times in microseconds.
template <class Work>
double least_time(const Work& work) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int turn = 0; turn < 9; ++turn) {
    float ms = 0;
    cudaEventRecord(begin, device()->stream());
    work();
    cudaEventRecord(end, device()->stream());
    cudaEventSynchronize(end);
    cudaEventElapsedTime(&ms, begin, end);
    if (turn >= 2) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return 1e3 * double(times[times.size() / 2]);
}

// Experts of equally many rows; as in Case.
template <Product p, class TC>
void time_grouped(Index experts, Index each, Index n, Index k, Output output) {
  constexpr bool by_rows = p != Product::tn;
  const Index rows = experts * each, out_rows = by_rows ? rows : experts * k;
  const Large<bf16> a(rows * k, 1), b(by_rows ? experts * n * k : rows * n, 2);
  const Large<TC> c(out_rows * n, 3), other(out_rows * n, 4);
  const Large<float> numbers(4, 5);
  auto* counts = reinterpret_cast<unsigned long long*>(numbers.data);
  std::vector<Index> offsets;
  for (Index e = 0; e <= experts; ++e) offsets.push_back(e * each);
  const DeviceOffsets ends(offsets);
  const View<const bf16, 2> x(a.data, {rows, k});
  const auto with = [&](TC* out, const auto& work) {
    if constexpr (by_rows)
      work(View<const bf16, 3>(b.data,
                               {experts, p == Product::nt ? n : k, p == Product::nt ? k : n}),
           View<TC, 2>(out, {rows, n}));
    else
      work(View<const bf16, 2>(b.data, {rows, n}), View<TC, 3>(out, {experts, k, n}));
  };
  const auto portable = [&](TC* out, Output how) {
    with(out, [&](const auto& y, const auto& z) {
      detail::cuda_grouped_gemm<p>(*device(), x, y, z, ends.view(), how == Output::add);
    });
  };
  const auto by_cut = [&](TC* out, Output how, const HopperBf16Cut* cut) {
    with(out, [&](const auto& y, const auto& z) {
      if (cut)
        detail::run_hopper_bf16<p, false>(*device(), x, y, z, ends.view(), how, *cut);
      else
        detail::hopper_bf16_grouped(*device(), ProductTag<p>{}, x, y, z, ends.view(), how);
    });
  };
  const double flops = 2.0 * double(rows) * double(n) * double(k);
  std::printf("%s %s %2td x %4td rows, %td x %td%s:", name_of<p>(),
              sizeof(TC) == 2 ? "bf16 " : "float", experts, each, n, k,
              output == Output::add ? ", added" : "");
  const auto print = [&](const std::string& name, double us) {
    std::printf("  %s %.0f us %.0f TFLOP/s", name.c_str(), us, flops / (1e6 * us));
    std::fflush(stdout);
  };
  portable(other.data, Output::overwrite);
  for (const auto& cut : cuts) {
    fill_zero(*device(), counts, 16);
    by_cut(c.data, Output::overwrite, &cut);
    compare_kernel<<<512, 256, 0, device()->stream()>>>(c.data, other.data, c.count, counts);
    unsigned long long found[2];
    copy_to_host(*device(), found, counts, 16);
    if (found[1])
      std::printf("\n  cut %s: %llu of %td far from the portable kernel's (%llu other bits)\n",
                  name_of_cut(cut).c_str(), found[1], c.count, found[0]);
    CHECK(found[1] == 0);
  }
  for (const auto& cut : cuts)
    print(name_of_cut(cut), least_time([&] { by_cut(c.data, output, &cut); }));
  print("chosen", least_time([&] { by_cut(c.data, output, nullptr); }));
  print("portable", least_time([&] { portable(c.data, output); }));
  std::printf("\n");
  synchronize(*device());
}

TEST_CASE("How fast Hopper's grouped products of bf16 are") {
  if (!hopper()) return;
  for (const Index experts : {8, 32})
    for (const Index n : {2048, 7168}) {
      const Index each = experts == 8 ? 1024 : 512, k = n == 2048 ? 7168 : 2048;
      time_grouped<Product::nt, bf16>(experts, each, n, k, Output::overwrite);
      time_grouped<Product::nn, bf16>(experts, each, n, k, Output::overwrite);
      time_grouped<Product::tn, float>(experts, each, n, k, Output::overwrite);
      time_grouped<Product::tn, float>(experts, each, n, k, Output::add);
    }
}

}  // namespace
}  // namespace product_test
