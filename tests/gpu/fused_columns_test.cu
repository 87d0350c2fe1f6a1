// Fused forms of row kernels on a GPU, against the row kernels there: every bit.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <dsv3/backend/cuda/fused_columns.cuh>
#include <dsv3/backend/cuda/fused_columns_adamw.cuh>
#include <dsv3/backend/cuda/fused_columns_experts.cuh>
#include <dsv3/backend/cuda/team.cuh>
#include <dsv3/core/philox.hpp>
#include <dsv3/nn/moe.hpp>
#include <dsv3/train/adamw.hpp>
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

template <class Moment, class C>
void compare_adamw(Cuda& cuda) {
  struct Shape {
    Index rows, columns, gap;
  };
  std::uint32_t seed = 100;
  for (const Shape shape : {Shape{128, 128, 0}, Shape{300, 264, 0}, Shape{5, 4, 4},
                            Shape{129, 37, 0}, Shape{40, 640, 8}})
    for (const int special : {0, 1, 2})  // plain; NaN, infinity and tiny weights; a skipped step
      for (const bool power : {false, true}) {
        Memory memory(cuda);
        const Index m = shape.rows, n = shape.columns, stride = n + shape.gap;
        const auto random = [&](float size) {
          return values(static_cast<std::size_t>(m), static_cast<std::size_t>(stride), seed++,
                        size);
        };
        auto weights = random(0.02f), gradients = random(1e-3f);
        if (special == 1) {
          for (std::size_t i = 0; i < weights.size(); ++i)
            if (i / static_cast<std::size_t>(stride) < 128) weights[i] = gradients[i] = 1e-35f;
          gradients.back() = std::nanf("");
          weights[weights.size() / 2] = -INFINITY;
        }
        const auto first = random(1e-3f);
        auto second = random(1e-6f);
        for (float& v : second) v = std::fabs(v);
        const std::vector<double> norm = {1.0, special == 2 ? 0.0 : 0.7};
        const auto gradient = memory.copy(gradients, m, n, stride);
        const View<const double, 1> clip(memory.copy(norm, 1, 2, 2).data, {2});
        dsv3::AdamW rule{.correction1 = 0.19, .correction2 = 0.0975};
        if (special == 1) rule.lr = 1e-36;
        const auto rules = memory.copy(std::vector<dsv3::AdamW>{rule}, 1, 1, 1);
        const Index down = dsv3::groups_of(m, 128), across = dsv3::groups_of(n, 128);
        struct State {
          View<float, 2> weight;
          View<Moment, 2> m, v;
          View<C, 2> codes;
          View<float, 2> scales;
        };
        const auto make = [&] {
          return State{memory.copy(weights, m, n, stride),
                       memory.copy(as<Moment>(first), m, n, stride),
                       memory.copy(as<Moment>(second), m, n, stride), memory.take<C>(m, n, stride),
                       memory.take<float>(down, across, across)};
        };
        const State ours = make(), theirs = make();
        const auto block = [&](const State& s) {
          return dsv3::detail::AdamWBlock<float, Moment, C>{
              {rules.data, {1}},
              clip,
              s.weight,
              as_const(gradient),
              s.m,
              s.v,
              Quantized<C>{s.codes, {s.scales.data, down, across}, 128, 128},
              ScaleRule{0, power}};
        };
        fused_rows(cuda, down * across, block(ours));
        for_each_row(cuda, down * across, block(theirs));
        const std::string name = "AdamW " + std::to_string(m) + " x " + std::to_string(n) +
                                 (special == 1   ? " special"
                                  : special == 2 ? " skipped"
                                                 : "") +
                                 (power ? " powers of two" : "");
        check_same(cuda, name + ": weights", ours.weight, theirs.weight);
        check_same(cuda, name + ": m", ours.m, theirs.m);
        check_same(cuda, name + ": v", ours.v, theirs.v);
        check_same(cuda, name + ": scales", ours.scales, theirs.scales);
        check_same(cuda, name + ": codes", ours.codes, theirs.codes);
      }
}

TEST_CASE("AdamW with codes writes the row kernel's bits") {
  const auto cuda = gpu();
  if (!cuda) return;
  compare_adamw<bf16, e4m3>(*cuda);
  compare_adamw<float, e5m2>(*cuda);
}

TEST_CASE("rows go to experts and come back with the row kernel's bits") {
  const auto cuda = gpu();
  if (!cuda) return;
  std::uint32_t seed = 200;
  for (const Index tokens : {0, 1, 37})
    for (const Index chosen : {1, 3, 8, 11})
      for (const Index n : {16, 40, 37, 1040, 7168}) {
        Memory memory(*cuda);
        const Index pairs = tokens * chosen, groups = dsv3::groups_of(n, 128);
        const auto random = [&](Index rows) {
          auto x =
              values(static_cast<std::size_t>(rows), static_cast<std::size_t>(n), seed++, 1.0f);
          if (rows > 2) {
            x[static_cast<std::size_t>(n) + 2] = std::nanf("");
            x[static_cast<std::size_t>(n) + 3] = -INFINITY;
          }
          return x;
        };
        const std::string name = std::to_string(tokens) + " tokens, " + std::to_string(chosen) +
                                 " chosen, " + std::to_string(n) + " columns: ";
        std::vector<std::int32_t> pair_of_slot(static_cast<std::size_t>(pairs)),
            slot_of_pair(pair_of_slot.size());
        for (Index s = 0; s < pairs; ++s) {
          const Index pair = s % 2 == 0 ? s / 2 : pairs - 1 - s / 2;
          pair_of_slot[static_cast<std::size_t>(s)] = static_cast<std::int32_t>(pair);
          slot_of_pair[static_cast<std::size_t>(pair)] = static_cast<std::int32_t>(s);
        }
        const View<const std::int32_t, 1> pairs_view(
            memory.copy(pair_of_slot, 1, pairs, pairs).data, {pairs});
        const auto slots_view = memory.copy(slot_of_pair, tokens, chosen, chosen);
        const auto x = memory.copy(as<bf16>(random(tokens)), tokens, n, n);
        {
          const auto ours = memory.take<bf16>(pairs, n, n), theirs = memory.take<bf16>(pairs, n, n);
          using Row = dsv3::detail::DispatchRow<bf16>;
          fused_rows(*cuda, pairs, Row{as_const(x), pairs_view, chosen, ours});
          for_each_row(*cuda, pairs, Row{as_const(x), pairs_view, chosen, theirs});
          check_same(*cuda, name + "rows", ours, theirs);
        }
        for (const bool one_scale : {false, true}) {
          const auto codes = memory.copy(as<e4m3>(random(tokens)), tokens, n, n);
          const auto scales = memory.copy(values(static_cast<std::size_t>(tokens),
                                                 static_cast<std::size_t>(groups), seed++, 1.0f),
                                          tokens, groups, groups);
          const Quantized<const e4m3> q{codes, {scales.data, tokens, groups}, 1, 128};
          const auto a = memory.take<e4m3>(pairs, n, n), b = memory.take<e4m3>(pairs, n, n);
          const auto c = memory.take<float>(pairs, groups, groups),
                     d = memory.take<float>(pairs, groups, groups);
          using Row = dsv3::detail::DispatchCodesRow<e4m3>;
          const auto row = [&](const View<e4m3, 2>& to, const View<float, 2>& to_scales) {
            float* const data = one_scale ? scales.data : to_scales.data;
            return Row{q, pairs_view, chosen, Quantized<e4m3>{to, {data, pairs, groups}, 1, 128}};
          };
          fused_rows(*cuda, pairs, row(a, c));
          for_each_row(*cuda, pairs, row(b, d));
          check_same(*cuda, name + "codes", a, b);
          check_same(*cuda, name + "scales", c, d);
        }
        const auto slots = memory.copy(as<bf16>(random(pairs)), pairs, n, n);
        const auto weights = memory.copy(values(static_cast<std::size_t>(tokens),
                                                static_cast<std::size_t>(chosen), seed++, 0.3f),
                                         tokens, chosen, chosen);
        const auto gate = memory.copy(random(tokens), tokens, n, n);
        for (const bool with_shared : {false, true}) {
          const View<const bf16, 2> shared = with_shared ? as_const(x) : View<const bf16, 2>();
          const auto a = memory.take<bf16>(tokens, n, n), b = memory.take<bf16>(tokens, n, n);
          using Row = dsv3::detail::CombineRow<bf16>;
          const auto row = [&](const View<bf16, 2>& to) {
            return Row{as_const(slots), as_const(slots_view), as_const(weights), shared, to};
          };
          fused_rows(*cuda, tokens, row(a));
          for_each_row(*cuda, tokens, row(b));
          check_same(*cuda, name + "combination", a, b);
          const auto c = memory.take<bf16>(tokens, n, n), d = memory.take<bf16>(tokens, n, n);
          using Backward = dsv3::detail::CombineBackwardRow<bf16>;
          const auto backward = [&](const View<bf16, 2>& to) {
            return Backward{as_const(slots), as_const(slots_view), shared, as_const(gate), to};
          };
          fused_rows(*cuda, tokens, backward(c));
          for_each_row(*cuda, tokens, backward(d));
          check_same(*cuda, name + "combination backward", c, d);
        }
      }
}

}  // namespace
