// Products of experts over ragged segments at the sizes of DeepSeek-V3: forward, dX and dW. The
// peer is cuBLASLt's dense product of as many FLOP: one expert with all the rows.
#include "data.cuh"
#include "vendor.hpp"

namespace gpu_bench {
namespace {

using dsv3::View;

// `rows` for each of `experts` on average; y [rows, out] of x [rows, in].
struct Shape {
  Index experts, rows, out, in;
  bool ragged;

  Index all() const { return experts * rows; }
  double flop() const {
    return 2.0 * static_cast<double>(all()) * static_cast<double>(out) * static_cast<double>(in);
  }
  std::string name() const {
    return std::to_string(experts) + " x " + std::to_string(rows) + (ragged ? " ragged" : "") +
           " x " + std::to_string(out) + " x " + std::to_string(in);
  }
  // Segments of equal length, or of lengths that spread as routing spreads them.
  std::vector<Index> offsets() const {
    std::vector<Index> result = {0};
    for (Index e = 0; e < experts; ++e) result.push_back((e + 1) * rows);
    if (ragged)
      for (Index e = 1; e < experts; ++e)
        result[static_cast<std::size_t>(e)] +=
            static_cast<Index>(mixed(7, static_cast<std::uint64_t>(e)) %
                               static_cast<std::uint32_t>(rows / 2)) -
            rows / 4;
    return result;
  }
};

constexpr Shape shapes[] = {{8, 1024, 2048, 7168, false},
                            {8, 1024, 7168, 2048, false},
                            {32, 512, 2048, 7168, false},
                            {32, 512, 7168, 2048, false},
                            {32, 512, 2048, 7168, true}};

// Experts whose products are checked: the first, one in the middle, the last.
std::vector<Index> checked_experts(const Shape& s) { return {0, s.experts / 2 + 1, s.experts - 1}; }

void measure_dense(Run& run, const Shape& s, double goal, VendorPeer::Kind kind, Index rows,
                   Index columns, Index depth, const void* x, const void* w, void* y) {
  measure_vendor(
      run, "dense cuBLASLt", goal, kind, rows, columns, depth, 1, [=](Index) { return x; },
      [=](Index) { return w; }, [=](Index) { return y; });
  if (run.record.torch.empty())
    run.torch("grouped_mm " + std::to_string(s.experts) + " " + std::to_string(s.rows) + " " +
                  std::to_string(s.out) + " " + std::to_string(s.in),
              kind == VendorPeer::Kind::bf16 ? 0.9 : 1.3);
}

Quantized<e4m3> rows_of_codes(Run& run, Index rows, Index columns, std::uint32_t seed) {
  const auto q = run.arena_for(
      [&](dsv3::Arena& arena) { return dsv3::take_quantized<e4m3>(arena, rows, columns, 1, 128); });
  randomize(run, q, seed, 1e-2f);
  return q;
}
Quantized<e4m3> segments_of_codes(Run& run, const Shape& s, Index columns, std::uint32_t seed) {
  const auto q = run.arena_for([&](dsv3::Arena& arena) {
    return dsv3::take_segments<e4m3>(arena, s.all(), columns, s.experts, 128);
  });
  randomize(run, q, seed, 1e-2f);
  return q;
}
QuantizedStack<e4m3> weights_of_codes(Run& run, const Shape& s, std::uint32_t seed) {
  const auto q = run.arena_for([&](dsv3::Arena& arena) {
    return dsv3::take_quantized_stack<e4m3>(arena, s.experts, s.out, s.in, 128, 128);
  });
  randomize(run, q, seed, 1e-2f);
  return q;
}

// nt or nn: x [rows, depth] and the experts' weights [out, in] to y [rows, columns].
template <Product p, class X, class W>
void product_of_rows(Run& run, const Shape& s, const X& x, const W& w, Index columns) {
  const auto starts = s.offsets();
  const auto offsets = run.upload(starts);
  const auto y = run.take<bf16>({s.all(), columns});
  const auto product = [&](Index) {
    grouped_gemm(run.cuda, dsv3::ProductTag<p>{}, as_const(x), as_const(w), y, as_const(offsets),
                 Output::overwrite);
  };
  product(0);
  for (const Index e : checked_experts(s)) {
    const Index first = starts[static_cast<std::size_t>(e)];
    const Index count = starts[static_cast<std::size_t>(e) + 1] - first;
    check_product<p>(run, ("expert " + std::to_string(e)).c_str(), as_const(x.rows(first, count)),
                     as_const(w[e]), y.rows(first, count));
  }
  run.measure(product);
}

void forward_fp8(Run& run, const Shape& s) {
  run.work(s.flop(), "TFLOP/s");
  const auto x = rows_of_codes(run, s.all(), s.in, 1);
  const auto w = weights_of_codes(run, s, 3);
  product_of_rows<Product::nt>(run, s, x, w, s.out);
  measure_dense(run, s, 0.7, VendorPeer::Kind::fp8_block, s.all(), s.out, s.in, x.codes.data,
                w.codes.data, run.take<bf16>({s.all(), s.out}).data);
}

void backward_input_fp8(Run& run, const Shape& s) {
  run.work(s.flop(), "TFLOP/s");
  const auto dy = rows_of_codes(run, s.all(), s.out, 1);
  const auto w = weights_of_codes(run, s, 3);
  product_of_rows<Product::nn>(run, s, dy, w, s.in);
  measure_dense(run, s, 0.7, VendorPeer::Kind::fp8_block, s.all(), s.in, s.out, dy.codes.data,
                w.codes.data, run.take<bf16>({s.all(), s.in}).data);
}

void forward_bf16(Run& run, const Shape& s) {
  run.work(s.flop(), "TFLOP/s");
  const auto x = random<bf16>(run, {s.all(), s.in}, 1);
  const auto w = random<bf16>(run, {s.experts, s.out, s.in}, 2);
  product_of_rows<Product::nt>(run, s, x, w, s.out);
  measure_dense(run, s, 0.7, VendorPeer::Kind::bf16, s.all(), s.out, s.in, x.data, w.data,
                run.take<bf16>({s.all(), s.out}).data);
}

void backward_input_bf16(Run& run, const Shape& s) {
  run.work(s.flop(), "TFLOP/s");
  const auto dy = random<bf16>(run, {s.all(), s.out}, 1);
  const auto w = random<bf16>(run, {s.experts, s.out, s.in}, 2);
  product_of_rows<Product::nn>(run, s, dy, w, s.in);
  measure_dense(run, s, 0.7, VendorPeer::Kind::bf16, s.all(), s.in, s.out, dy.data, w.data,
                run.take<bf16>({s.all(), s.in}).data);
}

// dw[e] += dy^T x over the rows of e. The dense peer sums over the rows of one expert and has as
// many rows as all experts' outputs together.
template <class DY, class X>
void weight_gradient(Run& run, const Shape& s, const DY& dy, const X& x, auto segment) {
  const auto starts = s.offsets();
  const auto offsets = run.upload(starts);
  const auto dw = run.take<float>({s.experts, s.out, s.in});
  fill_zero(run.cuda, dw.data, dw.size() * Index{sizeof(float)});
  const auto product = [&](Index) {
    grouped_gemm(run.cuda, dsv3::tn, as_const(dy), as_const(x), dw, as_const(offsets), Output::add);
  };
  product(0);
  for (const Index e : checked_experts(s)) {
    const Index first = starts[static_cast<std::size_t>(e)];
    const Index count = starts[static_cast<std::size_t>(e) + 1] - first;
    check_product<Product::tn>(run, ("expert " + std::to_string(e)).c_str(),
                               as_const(segment(dy, e, first, count)),
                               as_const(segment(x, e, first, count)), dw[e]);
  }
  run.measure(product);
}

void backward_weight_fp8(Run& run, const Shape& s) {
  run.work(s.flop(), "TFLOP/s");
  const auto dy = segments_of_codes(run, s, s.out, 1);
  const auto x = segments_of_codes(run, s, s.in, 3);
  weight_gradient(run, s, dy, x, [](const auto& q, Index e, Index first, Index count) {
    return q.segment(e, first, count);
  });
}

void backward_weight_bf16(Run& run, const Shape& s) {
  run.work(s.flop(), "TFLOP/s");
  const auto dy = random<bf16>(run, {s.all(), s.out}, 1);
  const auto x = random<bf16>(run, {s.all(), s.in}, 2);
  weight_gradient(run, s, dy, x, [](const auto& view, Index, Index first, Index count) {
    return view.rows(first, count);
  });
}

// The dense product of as many FLOP and as many bytes of output: one matrix of all experts' rows.
void dense_weight_gradient(Run& run, const Shape& s, VendorPeer::Kind kind) {
  const Index size = kind == VendorPeer::Kind::bf16_add ? 2 : 1;
  const auto a = random<bf16>(run, {s.experts * s.out * s.rows * size / 2}, 1);
  const auto b = random<bf16>(run, {s.in * s.rows * size / 2}, 2);
  const auto c = run.take<float>({s.experts * s.out, s.in});
  if (size == 1) {
    randomize(run, View<e4m3, 1>(reinterpret_cast<e4m3*>(a.data), {2 * a.size()}), 1, 130);
    randomize(run, View<e4m3, 1>(reinterpret_cast<e4m3*>(b.data), {2 * b.size()}), 2, 130);
  }
  measure_vendor(
      run, "dense cuBLASLt", 0.7, kind, s.experts * s.out, s.in, s.rows, 1,
      [&](Index) { return a.data; }, [&](Index) { return b.data; }, [&](Index) { return c.data; });
}

}  // namespace

void grouped_cases(Cases& cases) {
  for (const Shape& s : shapes) {
    const std::string name = s.name();
    cases.push_back({"grouped fp8 " + name, [=](Run& run) { forward_fp8(run, s); }});
    cases.push_back({"grouped fp8 dX " + name, [=](Run& run) { backward_input_fp8(run, s); }});
    cases.push_back({"grouped fp8 dW " + name, [=](Run& run) {
                       backward_weight_fp8(run, s);
                       dense_weight_gradient(run, s, VendorPeer::Kind::fp8_block_add);
                     }});
    if (s.ragged) continue;
    cases.push_back({"grouped bf16 " + name, [=](Run& run) { forward_bf16(run, s); }});
    cases.push_back({"grouped bf16 dX " + name, [=](Run& run) { backward_input_bf16(run, s); }});
    cases.push_back({"grouped bf16 dW " + name, [=](Run& run) {
                       backward_weight_bf16(run, s);
                       dense_weight_gradient(run, s, VendorPeer::Kind::bf16_add);
                     }});
  }
}

}  // namespace gpu_bench
