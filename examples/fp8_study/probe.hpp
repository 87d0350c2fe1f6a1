// A backend that looks into products of codes.
#pragma once

#include <dsv3/backend/cpu.hpp>
#include <dsv3/core/weights.hpp>
#include <dsv3/nn/transformer.hpp>

#include "measurements.hpp"

namespace example {

/// A Cpu that, between start() and finish(), compares every product of codes with the product in
/// double of the values that the codes stood for before they were quantised, and counts the codes.
/// What it computes is what Cpu computes, bit for bit.
///
/// An error is that of the product before it is rounded to the type of its output.
class Probe : public dsv3::Cpu {
 public:
  explicit Probe(int threads) : Cpu(threads) {}

  /// Begins to measure the products of a model with these weights, their codes, and gradients.
  template <class P>
  void start(const dsv3::ModelTensors<P, typename P::master>& weights,
             const dsv3::ModelTensors<P, dsv3::operand_t<P>>& operands,
             const dsv3::ModelTensors<P, typename P::master>& gradients) {
    recording_ = true;
    dsv3::for_each_tensor<P>(
        [&](const std::string& name, auto weight, auto operand, auto gradient) {
          if constexpr (requires { operand.codes; }) know(name, weight, operand, gradient);
        },
        weights, operands, gradients);
  }

  /// The same for one weight.
  template <class M, class C>
  void know(const std::string& name, const View<M, 2>& weight, const dsv3::Quantized<C>& codes,
            const View<M, 2>& gradient) {
    recording_ = true;
    auto matrix = plain(known_, weight);
    matrix->weight = name;
    measured_.products(Place::of(name));
    measured_.kind(Kind::weights).add(as_const(codes.codes), *matrix);
    known_.put(codes.codes, std::move(matrix));
    gradients_[gradient.data] = name;
  }

  /// Ends the measurement.
  Measurements finish() {
    recording_ = false;
    known_.clear();
    gradients_.clear();
    return std::exchange(measured_, {});
  }

  dsv3::Cpu& cpu() { return *this; }
  bool recording() const { return recording_; }
  PlainValues& known() { return known_; }

  /// The name of the weight whose gradient is written to `data`; empty for anything else.
  std::string gradient_at(const void* data) const {
    const auto found = gradients_.find(data);
    return found == gradients_.end() ? std::string() : found->second;
  }

  /// One product of a linear layer: a and b before quantising, c as computed.
  template <dsv3::Product p>
  void compare(dsv3::ProductTag<p> tag, const std::string& weight, Role role,
               View<const double, 2> a, View<const double, 2> b, View<const float, 2> c) {
    std::vector<double> exact(static_cast<std::size_t>(c.size()));
    const View<double, 2> reference(exact.data(), {c.extent(0), c.extent(1)});
    gemm(cpu(), tag, a, b, reference, dsv3::Output::overwrite);
    measured_.products(Place::of(weight))[static_cast<std::size_t>(role)].add(c, reference);
  }

  /// The operands of one product of a linear layer.
  template <class CA, class CB>
  void count(const std::string& weight, Role role, View<CA, 2> a, const PlainMatrix& plain_a,
             View<CB, 2> b, const PlainMatrix& plain_b) {
    if (role == Role::y) measured_.kind(Place::of(weight).input()).add(as_const(a), plain_a);
    if (role == Role::dx) measured_.kind(Kind::gradients_along_features).add(as_const(a), plain_a);
    if (role == Role::dw) {
      measured_.kind(Kind::gradients_along_tokens).add(as_const(a), plain_a);
      measured_.kind(Kind::inputs_along_tokens).add(as_const(b), plain_b);
    }
  }

  /// A product whose operands are not known.
  void miss() { ++measured_.unknown; }

 private:
  PlainValues known_;
  std::map<const void*, std::string> gradients_;
  Measurements measured_;
  bool recording_ = false;
};

namespace detail {

// A product as it is computed, in memory of its own and in float.
template <int Rank>
struct Fresh {
  std::vector<float> storage;
  View<float, Rank> view;

  template <class T>
  explicit Fresh(const View<T, Rank>& c) : storage(static_cast<std::size_t>(c.size())) {
    view.data = storage.data();
    Index stride = 1;
    for (int d = Rank - 1; d >= 0; --d) {
      view.extents[d] = c.extent(d);
      view.strides[d] = stride;
      stride *= c.extent(d);
    }
  }
};

constexpr Role role_of(dsv3::Product p) {
  return p == dsv3::Product::nt ? Role::y : p == dsv3::Product::nn ? Role::dx : Role::dw;
}

}  // namespace detail

template <class T, class C>
requires requires(dsv3::Cpu& cpu, View<const T, 2> x, dsv3::Quantized<C> q, dsv3::ScaleRule rule) {
  quantize_rows(cpu, x, q, rule);
}
void quantize_rows(Probe& probe, View<const T, 2> x, dsv3::Quantized<C> q, dsv3::ScaleRule rule) {
  quantize_rows(probe.cpu(), x, q, rule);
  if (probe.recording()) probe.known().put(q.codes, plain(probe.known(), x));
}

template <dsv3::Product p, class CA, class CB, class TC>
void gemm(Probe& probe, dsv3::ProductTag<p> tag, dsv3::Quantized<CA> a, dsv3::Quantized<CB> b,
          View<TC, 2> c, dsv3::Output output) {
  gemm(probe.cpu(), tag, a, b, c, output);
  if (!probe.recording()) return;
  const detail::Fresh<2> fresh(c);
  gemm(probe.cpu(), tag, a, b, fresh.view, dsv3::Output::overwrite);
  constexpr Role role = detail::role_of(p);
  const PlainMatrix *plain_a = probe.known().find(a.codes), *plain_b = probe.known().find(b.codes);
  if (!plain_a || !plain_b) return probe.miss();
  const std::string weight = role == Role::dw ? probe.gradient_at(c.data) : plain_b->weight;
  if (weight.empty()) return probe.miss();
  probe.count(weight, role, a.codes, *plain_a, b.codes, *plain_b);
  probe.compare(tag, weight, role, plain_a->view(), plain_b->view(), fresh.view);
}

template <dsv3::Product p, class CA, class CB, class TC>
requires(p != dsv3::Product::tn) void grouped_gemm(Probe& probe, dsv3::ProductTag<p> tag,
                                                   dsv3::Quantized<CA> a,
                                                   dsv3::QuantizedStack<CB> b, View<TC, 2> c,
                                                   View<const Index, 1> offsets,
                                                   dsv3::Output output) {
  grouped_gemm(probe.cpu(), tag, a, b, c, offsets, output);
  if (!probe.recording()) return;
  const detail::Fresh<2> fresh(c);
  grouped_gemm(probe.cpu(), tag, a, b, fresh.view, offsets, dsv3::Output::overwrite);
  constexpr Role role = detail::role_of(p);
  const PlainMatrix *plain_a = probe.known().find(a.codes), *first = probe.known().find(b[0].codes);
  if (!plain_a || !first) return probe.miss();
  probe.count(first->weight, role, a.codes, *plain_a, b[0].codes, *first);
  for (Index e = 0; e < b.extent(0); ++e) {
    const Index from = offsets(e), rows = offsets(e + 1) - from;
    const PlainMatrix* plain_b = probe.known().find(b[e].codes);
    if (rows > 0)
      probe.compare(tag, plain_b->weight, role, plain_a->view().rows(from, rows), plain_b->view(),
                    fresh.view.rows(from, rows));
  }
}

template <class CA, class CB, class TC>
void grouped_gemm(Probe& probe, dsv3::ProductTag<dsv3::Product::tn> tag, dsv3::Quantized<CA> a,
                  dsv3::Quantized<CB> b, View<TC, 3> c, View<const Index, 1> offsets,
                  dsv3::Output output) {
  grouped_gemm(probe.cpu(), tag, a, b, c, offsets, output);
  if (!probe.recording()) return;
  const detail::Fresh<3> fresh(c);
  grouped_gemm(probe.cpu(), tag, a, b, fresh.view, offsets, dsv3::Output::overwrite);
  const PlainMatrix *plain_a = probe.known().find(a.codes), *plain_b = probe.known().find(b.codes);
  const std::string weight = probe.gradient_at(c.data);
  if (!plain_a || !plain_b || weight.empty()) return probe.miss();
  probe.count(weight, Role::dw, a.codes, *plain_a, b.codes, *plain_b);
  for (Index e = 0; e < c.extent(0); ++e) {
    const Index from = offsets(e), rows = offsets(e + 1) - from;
    if (rows > 0)
      probe.compare(tag, weight, Role::dw, plain_a->view().rows(from, rows),
                    plain_b->view().rows(from, rows), fresh.view[e]);
  }
}

namespace detail {

// The products of emulated tensor cores are row kernels, whose operands both lie along K.
template <class CA, class CB, class TC>
void observe(Probe& probe, const dsv3::detail::EmulatedRow<CA, CB, TC>& k) {
  const Fresh<2> fresh(k.c);
  for_each_row(
      probe.cpu(), k.c.extent(0),
      dsv3::detail::EmulatedRow<CA, CB, float>{k.a, k.b, k.a_scale, k.b_scale, k.b_scale_matrix,
                                               k.offsets, k.by_segment, fresh.view, false, k.rule});
  const Index segments = k.offsets.extent(0) ? k.offsets.extent(0) - 1 : 1;
  const Index columns = k.c.extent(1), depth = k.b.extent(1);
  const PlainMatrix* plain_a = probe.known().find(k.a);
  const std::string gradient = probe.gradient_at(k.c.data);
  bool counted = false;
  for (Index e = 0; e < segments; ++e) {
    const auto matrix = k.by_segment ? k.b : k.b.rows(e * columns, columns);
    const PlainMatrix* plain_b = probe.known().find(matrix);
    if (!plain_a || !plain_b) return probe.miss();
    const std::string weight = gradient.empty() ? plain_b->weight : gradient;
    if (weight.empty()) return probe.miss();
    const Role role = !gradient.empty() ? Role::dw : plain_b->transposed ? Role::dx : Role::y;
    if (!counted) probe.count(weight, role, k.a, *plain_a, matrix, *plain_b);
    counted = true;
    const Index all = k.by_segment ? depth : k.c.extent(0);
    const Index from = k.offsets.extent(0) ? k.offsets(e) : 0;
    const Index count = (k.offsets.extent(0) ? k.offsets(e + 1) : all) - from;
    if (count == 0) continue;
    if (k.by_segment)
      probe.compare(dsv3::nt, weight, role, plain_a->view().cols(from, count),
                    plain_b->view().cols(from, count),
                    fresh.view.rows(e * k.a.extent(0), k.a.extent(0)));
    else
      probe.compare(dsv3::nt, weight, role, plain_a->view().rows(from, count), plain_b->view(),
                    fresh.view.rows(from, count));
  }
}

}  // namespace detail

template <class Body>
void for_each_row(Probe& probe, Index rows, const Body& body) {
  for_each_row(probe.cpu(), rows, body);
  if (!probe.recording()) return;
  if constexpr (requires { remember(probe.known(), body); }) remember(probe.known(), body);
  if constexpr (requires { detail::observe(probe, body); }) detail::observe(probe, body);
}

}  // namespace example
