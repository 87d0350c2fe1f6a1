// Fused forms of row kernels on a GPU, against the row kernels there: every bit.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <dsv3/backend/cuda/fused_columns.cuh>
#include <dsv3/backend/cuda/team.cuh>
#include <dsv3/core/philox.hpp>
#include <dsv3/nn/experts.hpp>
#include <memory>
#include <string>
#include <vector>

namespace {

using dsv3::bf16;
using dsv3::Cuda;
using dsv3::e4m3;
using dsv3::e5m2;
using dsv3::Index;
using dsv3::Quantized;
using dsv3::ScaleRule;
using dsv3::View;
using dsv3::detail::QuantizeColumnsBlock;

// The GPU, or null and a message.
std::unique_ptr<Cuda> gpu() {
  const auto reason = dsv3::cuda_unavailable();
  if (reason.empty()) return std::make_unique<Cuda>();
  std::printf("skipped: %s\n", reason.c_str());
  return nullptr;
}

// Memory of the device that frees itself.
class Memory {
 public:
  explicit Memory(Cuda& cuda) : cuda_(cuda) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    for (const auto& [data, bytes] : taken_) deallocate(cuda_, data, bytes);
  }
  // Rows `stride` apart; every byte is `fill` before.
  template <class T>
  View<T, 2> take(Index rows, Index columns, Index stride, int fill = 0x5A) {
    const Index bytes = rows * stride * Index{sizeof(T)};
    void* const data = allocate(cuda_, bytes);
    taken_.emplace_back(data, bytes);
    const std::vector<unsigned char> host(static_cast<std::size_t>(bytes),
                                          static_cast<unsigned char>(fill));
    copy_to_backend(cuda_, data, host.data(), bytes);
    View<T, 2> view(static_cast<T*>(data), {rows, columns});
    view.strides[0] = stride;
    return view;
  }
  template <class T>
  View<T, 2> copy(const std::vector<T>& values, Index rows, Index columns, Index stride) {
    const auto view = take<T>(rows, columns, stride);
    copy_to_backend(cuda_, view.data, values.data(), static_cast<Index>(values.size() * sizeof(T)));
    return view;
  }

 private:
  Cuda& cuda_;
  std::vector<std::pair<void*, Index>> taken_;
};

// All bytes of both, gaps between rows included, which nobody may write.
template <class T>
void check_same(Cuda& cuda, const std::string& what, const View<T, 2>& ours,
                const View<T, 2>& theirs) {
  const Index stride = ours.strides[0], count = ours.extent(0) * stride;
  REQUIRE(stride == theirs.strides[0]);
  if (count == 0) return;
  std::vector<T> a(static_cast<std::size_t>(count)), b(a.size());
  copy_to_host(cuda, a.data(), ours.data, count * Index{sizeof(T)});
  copy_to_host(cuda, b.data(), theirs.data, count * Index{sizeof(T)});
  Index wrong = 0, first = 0, last = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) {
      if (wrong++ == 0) first = static_cast<Index>(i);
      last = static_cast<Index>(i);
    }
  if (wrong == 0) {
    CHECK(wrong == 0);
    return;
  }
  const auto bits = [](const std::vector<T>& v, Index i) {
    std::uint64_t word = 0;
    std::memcpy(&word, &v[static_cast<std::size_t>(i)], sizeof(T));
    return word;
  };
  FAIL_CHECK(what << ": " << wrong << " of " << count << " differ, from (" << first / stride << ", "
                  << first % stride << ") bits " << bits(a, first) << ", must be " << bits(b, first)
                  << ", to (" << last / stride << ", " << last % stride << ") bits "
                  << bits(a, last) << ", must be " << bits(b, last));
}

// Normal values of many sizes; zeros of both signs; column 5 all zeros.
std::vector<float> values(std::size_t rows, std::size_t stride, std::uint32_t seed, float size) {
  std::vector<float> x(rows * stride);
  const dsv3::Philox philox(seed, 0);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto column = i % stride;
    float v = size * static_cast<float>(normal(philox, i));
    if (i % 7 == 3) v *= 1e-3f;
    if (i % 11 == 5) v *= 1e-7f;
    if (i % 13 == 7) v = i % 2 ? -0.0f : 0.0f;
    if (column == 5) v = 0;
    x[i] = v;
  }
  return x;
}

template <class T>
std::vector<T> as(const std::vector<float>& x) {
  std::vector<T> y;
  y.reserve(x.size());
  for (const float v : x) y.push_back(T(v));
  return y;
}

struct Segments {
  std::vector<Index> offsets;  // or empty: one segment
  Index rows;
};

// Codes and scales of x along the columns by both ways.
template <class C, class Source>
void compare_columns(Cuda& cuda, Memory& memory, const std::string& what, const Source& x,
                     const Segments& segments, Index tile, const ScaleRule& rule, Index gap) {
  const Index rows = x.extent(0), n = x.extent(1);
  const Index count =
      segments.offsets.empty() ? 1 : static_cast<Index>(segments.offsets.size()) - 1;
  View<const Index, 1> offsets;
  if (!segments.offsets.empty())
    offsets = {memory.copy(segments.offsets, 1, count + 1, count + 1).data, {count + 1}};
  const auto make = [&] {
    const auto codes = memory.take<C>(rows, n, n + gap);
    const auto scales = memory.take<float>(rows / tile + count, n, n);
    return Quantized<C>{codes, {scales.data, scales.extent(0), n}, tile, 1};
  };
  const auto ours = make(), theirs = make();
  using Block = QuantizeColumnsBlock<Source, C, dsv3::RoundNearest>;
  const Index blocks = ours.scales.extents[0] * dsv3::groups_of(n, Block::strip);
  const auto block = [&](const Quantized<C>& q) {
    return Block{x, {offsets, rows, tile}, q, rule, {}};
  };
  fused_rows(cuda, blocks, block(ours));
  for_each_row(cuda, blocks, block(theirs));
  const auto scales = [&](const Quantized<C>& q) {
    return View<float, 2>(q.scales.data, {q.scales.extents[0], n});
  };
  const std::string name = what + " " + std::to_string(rows) + " x " + std::to_string(n) + ", " +
                           std::to_string(count) + " segments, tile " + std::to_string(tile);
  check_same(cuda, name + ": scales", scales(ours), scales(theirs));
  check_same(cuda, name + ": codes", ours.codes, theirs.codes);
}

std::vector<Segments> all_segments() {
  std::vector<Segments> all = {{{}, 1},
                               {{}, 127},
                               {{}, 128},
                               {{}, 300},
                               {{0, 0, 5, 5, 133, 261, 262, 300, 300}, 300},
                               {{0, 128, 256, 256, 256, 383}, 383},
                               {{0, 0, 0}, 0}};
  Segments many;  // more segments than a block has threads
  Index at = 0;
  for (Index e = 0; e <= 300; ++e) {
    many.offsets.push_back(at);
    at += e * 37 % 5 == 0 ? 0 : e * 53 % 41;
  }
  many.rows = many.offsets.back();
  all.push_back(many);
  return all;
}

template <class C>
void compare_plain(Cuda& cuda) {
  std::uint32_t seed = 1;
  for (const auto& segments : all_segments())
    for (const Index n : {8, 40, 37, 64, 136, 520})
      for (const bool power : {false, true}) {
        Memory memory(cuda);
        const Index gap = n == 64 ? 16 : 0, stride = n + gap;
        const auto rows = static_cast<std::size_t>(segments.rows);
        const auto x = memory.copy(
            as<bf16>(values(rows, static_cast<std::size_t>(stride), seed++, power ? 3.0f : 1e-4f)),
            segments.rows, n, stride);
        compare_columns<C>(cuda, memory, "from bf16", as_const(x), segments,
                           seed % 3 == 0 ? 32 : 128, {power ? 0 : 1e-4, power}, gap);
      }
}

TEST_CASE("quantising along the tokens reads a strip once and writes the row kernel's bits") {
  const auto cuda = gpu();
  if (!cuda) return;
  compare_plain<e4m3>(*cuda);
  compare_plain<e5m2>(*cuda);
}

TEST_CASE("NaN, infinity and scales of extreme size pass through the fused kernel") {
  const auto cuda = gpu();
  if (!cuda) return;
  const Index rows = 200, n = 72;
  auto x = values(200, 72, 7, 1.0f);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto column = i % 72;
    if (column >= 16 && column < 24) x[i] *= 1e-37f;
    if (column >= 24 && column < 32) x[i] *= 1e-24f;
    if (column >= 32 && column < 40) x[i] *= 1e37f;
    if (column >= 40 && column < 48) x[i] *= 1e27f;
    if (column >= 48 && column < 56) x[i] *= 1e-40f;
  }
  x[3 * 72 + 1] = std::nanf("");
  x[4 * 72 + 9] = -INFINITY;
  x[150 * 72 + 2] = INFINITY;
  x[151 * 72 + 2] = -std::nanf("");
  x[180 * 72 + 71] = -std::nanf("");
  for (const bool power : {false, true}) {
    Memory memory(*cuda);
    const auto on_gpu = memory.copy(as<bf16>(x), rows, n, n);
    compare_columns<e4m3>(*cuda, memory, "extreme e4m3", as_const(on_gpu), {{}, rows}, 128,
                          {0, power}, 0);
    compare_columns<e5m2>(*cuda, memory, "extreme e5m2", as_const(on_gpu), {{}, rows}, 128,
                          {0, power}, 0);
  }
}

// Codes in groups of 1 x 128, every code among them, and slots in another order with weights.
template <class CX, class C>
void compare_codes(Cuda& cuda) {
  std::uint32_t seed = 40;
  for (const auto& segments : all_segments())
    for (const Index n : {40, 37, 128, 392})
      for (const bool power : {false, true}) {
        Memory memory(cuda);
        const Index rows = segments.rows, groups = dsv3::groups_of(n, 128);
        std::vector<CX> codes(static_cast<std::size_t>(rows * n));
        const dsv3::Philox philox(seed, 1);
        for (std::size_t i = 0; i < codes.size(); ++i) {
          codes[i] = CX(static_cast<float>(100 * normal(philox, i)));
          if (seed % 4 == 0 && i % 97 == 5) codes[i].code = static_cast<std::uint8_t>(i / 97);
        }
        auto scales =
            values(static_cast<std::size_t>(rows), static_cast<std::size_t>(groups), seed, 1e-3f);
        for (float& scale : scales) {
          scale = std::fabs(scale) + 1e-9f;
          if (power) scale = float(dsv3::ue8m0(scale));
        }
        const auto on_codes = memory.copy(codes, rows, n, n);
        const auto on_scales = memory.copy(scales, rows, groups, groups);
        const Quantized<const CX> x{on_codes, {on_scales.data, rows, groups}, 1, 128};
        compare_columns<C>(cuda, memory, "from codes", x, segments, 128, {0, power}, 0);
        std::vector<std::int32_t> pairs(static_cast<std::size_t>(rows));
        for (Index s = 0; s < rows; ++s)
          pairs[static_cast<std::size_t>(s)] = static_cast<std::int32_t>(rows - 1 - s);
        const auto on_pairs = memory.copy(pairs, 1, rows, rows);
        const Index tokens = dsv3::groups_of(rows, 3);
        const auto weights =
            memory.copy(values(static_cast<std::size_t>(tokens), 3, seed, 0.5f), tokens, 3, 3);
        const dsv3::detail::WeightedSlots<CX> slots{x, {on_pairs.data, {rows}}, as_const(weights)};
        compare_columns<C>(cuda, memory, "from weighted slots", slots, segments, 128, {0, power},
                           0);
        ++seed;
      }
}

TEST_CASE("requantising codes along the tokens writes the row kernel's bits") {
  const auto cuda = gpu();
  if (!cuda) return;
  compare_codes<e4m3, e4m3>(*cuda);
  compare_codes<e5m2, e5m2>(*cuda);
}

TEST_CASE("a quotient by one division and two corrections is the quotient as division rounds it") {
  const dsv3::Philox philox(3, 0);
  std::size_t wrong = 0;
  for (std::uint32_t i = 0; i < 2000000; ++i) {
    const auto random = philox(i);
    const float mantissa = __builtin_bit_cast(float, (random.word[0] & 0x7FFFFFu) | 0x3F800000u);
    const float scale = std::ldexp(mantissa, static_cast<int>(random.word[1] % 160) - 80);
    const float ratio = __builtin_bit_cast(float, (random.word[2] & 0x7FFFFFu) | 0x3F800000u);
    float value = std::ldexp(ratio, static_cast<int>(random.word[3] % 34) - 18) * scale;
    if (i % 4 == 1)  // near a tie of the codes
      value = std::round(ratio * 16) / 16 * scale;
    if (i % 2) value = -value;
    const dsv3::detail::CodeDivisor divisor(scale);
    if (divisor.inverse != 0 && divisor.quotient(value) != value / scale) ++wrong;
  }
  CHECK(wrong == 0);
  const dsv3::detail::CodeDivisor third(3.0f);
  CHECK(std::signbit(third.quotient(-0.0f)));
  CHECK(e4m3(third.quotient(-1e-40f)).code == 0x80);
}

}  // namespace
