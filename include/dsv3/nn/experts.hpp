// The routed experts over ragged segments of sorted slots, forward and backward.
#pragma once

#include <dsv3/nn/projection.hpp>

namespace dsv3 {

/// The routing of a batch: saved, never computed twice. Slot s belongs to the expert in whose
/// segment it lies, and to pair p = t K + k: the k-th choice of token t.
template <class A>
struct Routing {
  View<std::int32_t, 2> topk_idx;      // [T, K] ascending by expert
  View<A, 2> topk_weights;             // [T, K]
  View<Index, 1> offsets;              // [E + 1] segments of the sorted slots
  View<std::int32_t, 1> pair_of_slot;  // [T K]
  View<std::int32_t, 2> slot_of_pair;  // [T, K]
};

namespace detail {

// Slot s of the experts' input: the row of the token whose pair was sorted there.
template <class T>
struct DispatchRow {
  View<const T, 2> x;
  View<const std::int32_t, 1> pair_of_slot;
  Index pairs_per_token;
  View<T, 2> slots;

  DSV3_HD void operator()(auto team, Index slot) const {
    const Index t = pair_of_slot(slot) / pairs_per_token;
    team.each(x.extent(1), [&](Index j) { slots(slot, j) = x(t, j); });
  }
};

// The same of a matrix of codes, with the scales of its rows.
template <class C>
struct DispatchCodesRow {
  Quantized<const C> x;
  View<const std::int32_t, 1> pair_of_slot;
  Index pairs_per_token;
  Quantized<C> slots;

  DSV3_HD void operator()(auto team, Index slot) const {
    const Index t = pair_of_slot(slot) / pairs_per_token;
    team.each(x.extent(1), [&](Index j) { slots.codes(slot, j) = x.codes(t, j); });
    if (slots.scales.data != x.scales.data)
      team.each(slots.scales.extents[1], [&](Index g) { slots.scales(slot, g) = x.scales(t, g); });
  }
};

// Slots times the weight of each slot, which multiplies the scale, as a matrix with pieces of rows.
template <class C>
struct WeightedSlots {
  Quantized<const C> slots;
  View<const std::int32_t, 1> pair_of_slot;
  View<const accum_t<C>, 2> weights;  // [T, K]

  DSV3_HD Index extent(int d) const { return slots.extent(d); }
};
template <class C>
DSV3_HD void for_each_piece_of_row(const WeightedSlots<C>& x, Index slot, Index from, Index to,
                                   auto&& f) {
  const auto& q = x.slots;
  const Index k = x.weights.extent(1), pair = x.pair_of_slot(slot);
  const accum_t<C> weight = x.weights(pair / k, pair % k);
  for (Index first = from; first < to;) {
    const Index group = first / q.group_columns, end = (group + 1) * q.group_columns;
    const Index next = end < to ? end : to;
    const accum_t<C> scale = q.scales(slot / q.group_rows, group) * weight;
    f(first, next - first,
      [&q, slot, scale](Index j) { return accum_t<C>(q.codes(slot, j)) * scale; });
    first = next;
  }
}

// SwiGLU of one slot backward, with dh before the slot's weight w: the gradient of w is h . dh, the
// gradients of a and b get the factor w, and w h replaces h for the down projection. Spec 5.8.
template <class T>
struct ExpertBackwardRow {
  View<const T, 2> a, b, dh;
  View<const std::int32_t, 1> pair_of_slot;
  View<const accum_t<T>, 2> weights;
  View<accum_t<T>, 2> dweights;
  View<T, 2> da, db, weighted_h;  // da may be dh

  DSV3_HD void operator()(auto team, Index slot) const {
    using A = accum_t<T>;
    const Index k = weights.extent(1), pair = pair_of_slot(slot), t = pair / k, i = pair % k;
    const A w = weights(t, i);
    const auto silu = [&](Index j) {
      const A gate = A(a(slot, j));
      return gate * sigmoid(gate);
    };
    const A dw = team.dot(
        a.extent(1), [&](Index j) { return silu(j) * A(b(slot, j)); },
        [&](Index j) { return A(dh(slot, j)); });
    team.once([&] { dweights(t, i) = dw; });
    team.each(a.extent(1), [&](Index j) {
      const A gate = A(a(slot, j)), up = A(b(slot, j)), d = A(dh(slot, j)) * w;
      const A s = sigmoid(gate), act = gate * s;
      weighted_h(slot, j) = T(act * up * w);
      db(slot, j) = T(d * act);
      da(slot, j) = T(d * up * s * fma(gate, A(1) - s, A(1)));
    });
  }
};

// The same from saved codes of a and b; h is left without its weight.
template <class T, class C>
struct ExpertQuantizedBackwardRow {
  Quantized<const C> a, b;
  View<const T, 2> dh;
  View<const std::int32_t, 1> pair_of_slot;
  View<const accum_t<T>, 2> weights;
  View<accum_t<T>, 2> dweights;
  View<T, 2> da, db, h;  // da may be dh

  DSV3_HD void operator()(auto team, Index slot) const {
    using A = accum_t<T>;
    const Index k = weights.extent(1), pair = pair_of_slot(slot), t = pair / k, i = pair % k;
    const Index n = h.extent(1);
    const A w = weights(t, i);
    // f(j, gate, up) for every column; b has the same groups as a.
    const auto each = [&](auto f) {
      for_each_piece_of_row(a, slot, 0, n, [&](Index first, Index count, const auto& gate_of) {
        for_each_piece_of_row(b, slot, first, first + count, [&](Index, Index, const auto& up_of) {
          team.each(count, [&](Index c) { f(first + c, gate_of(first + c), up_of(first + c)); });
        });
      });
    };
    each([&](Index j, A gate, A up) { h(slot, j) = T(gate * sigmoid(gate) * up); });
    team.sync();
    const A dw = team.dot(
        n, [&](Index j) { return A(h(slot, j)); }, [&](Index j) { return A(dh(slot, j)); });
    team.once([&] { dweights(t, i) = dw; });
    team.sync();
    each([&](Index j, A gate, A up) {
      const A d = A(dh(slot, j)) * w, s = sigmoid(gate);
      db(slot, j) = T(d * (gate * s));
      da(slot, j) = T(d * up * s * fma(gate, A(1) - s, A(1)));
    });
  }
};

}  // namespace detail

/// E experts, each an Mlp of its own: dispatch to sorted slots, three products over ragged
/// segments.
///
/// Shapes   T tokens, K chosen experts each, H hidden_size, I width of an expert.
/// Types    as Moe.
/// Source   spec 5.8; in an FP8 policy 7.6.
template <class P>
struct Experts {
  using T = typename P::activation;
  using W = operand_t<P>;
  using A = typename P::accumulator;
  using M = typename P::master;
  using Input = typename Projection<P>::Input;

  Index num_experts_per_tok, moe_intermediate_size;

  template <class U>
  struct Tensors {
    stack_of<U> gate_proj;  // [E, I, H]
    stack_of<U> up_proj;    // [E, I, H]
    stack_of<U> down_proj;  // [E, H, I]
  };

  /// What forward leaves for backward.
  struct Saved {
    typename Projection<P>::Stored a, b;  // [T K, I] gate(x) and up(x) of every slot
  };

  /// The experts' outputs, slot by slot, in scratch, where more than they stays taken; writes
  /// saved.
  template <class Backend>
  View<T, 2> forward(Backend& backend, const Tensors<const W>& params, Input x,
                     const Routing<A>& routing, Saved& saved, Arena& scratch) const {
    const View<const Index, 1> offsets = routing.offsets;
    const Index K = num_experts_per_tok, pairs = x.extent(0) * K, hidden = x.extent(1);
    if constexpr (QuantizedPolicy<P>) {
      using Code = typename P::code;
      const Projection<P> projection;
      const auto h = Projection<P>::take_rows(scratch, pairs, moe_intermediate_size);
      {
        const ArenaScope scope(scratch);
        const auto slots = dispatch(backend, x, routing, scratch);
        const auto a = scratch.take<T>({pairs, moe_intermediate_size});
        const auto b = scratch.take<T>({pairs, moe_intermediate_size});
        projection.forward(backend, params.gate_proj, slots, offsets, a, scratch);
        projection.forward(backend, params.up_proj, slots, offsets, b, scratch);
        projection.swiglu(backend, input_site("input of down_proj", params.down_proj), as_const(a),
                          as_const(b), saved.a, saved.b, h, scratch);
      }
      const auto slots = scratch.take<T>({pairs, hidden});
      projection.forward(backend, params.down_proj, Quantized<const Code>(h), offsets, slots,
                         scratch);
      return slots;
    } else {
      const auto slots = scratch.take<T>({pairs, hidden});
      const auto h = scratch.take<T>({pairs, moe_intermediate_size});
      for_each_row_fused(backend, pairs, detail::DispatchRow<T>{x, routing.pair_of_slot, K, slots});
      grouped_gemm(backend, nt, as_const(slots), params.gate_proj, saved.a, offsets,
                   Output::overwrite);
      grouped_gemm(backend, nt, as_const(slots), params.up_proj, saved.b, offsets,
                   Output::overwrite);
      detail::swiglu_forward<T>(backend, saved.a, saved.b, h);
      grouped_gemm(backend, nt, as_const(h), params.down_proj, slots, offsets, Output::overwrite);
      return slots;
    }
  }

  /// The gradients in the experts' inputs, slot by slot, in scratch, where more than they stays
  /// taken; writes dweights [T, K], adds to grads. x is the input of forward.
  template <class Backend>
  View<T, 2> backward(Backend& backend, const Tensors<const W>& params, Input x,
                      const Routing<A>& routing, const Saved& saved, View<const T, 2> dy,
                      View<A, 2> dweights, const Tensors<M>& grads, Arena& scratch) const {
    const View<const Index, 1> offsets = routing.offsets;
    const Index K = num_experts_per_tok, pairs = x.extent(0) * K, hidden = x.extent(1);
    const Index I = moe_intermediate_size;
    if constexpr (QuantizedPolicy<P>) {
      using Code = typename P::code;
      using GradientCode = typename P::gradient_code;
      const Projection<P> projection;
      const auto da = scratch.take<T>({pairs, I}), db = scratch.take<T>({pairs, I});
      {
        const ArenaScope down(scratch);
        const auto h = scratch.take<T>({pairs, I});
        const auto site = gradient_site("gradient of the experts' outputs", params.down_proj);
        const auto dy_codes = projection.gradient(backend, site, dy, Route::dispatch, scratch);
        const auto dy_slots = dispatch(backend, dy_codes, routing, scratch);
        projection.backward_input(backend, params.down_proj, dy_slots, offsets, da,
                                  Output::overwrite, scratch);
        for_each_row(backend, pairs,
                     detail::ExpertQuantizedBackwardRow<T, Code>{
                         as_const(saved.a), as_const(saved.b), da, routing.pair_of_slot,
                         routing.topk_weights, dweights, da, db, h});
        const auto h_columns = projection.template columns<Code>(
            backend, input_site("input of down_proj", params.down_proj), as_const(h), offsets,
            Route::dense, scratch);
        const auto weighted = projection.template columns<GradientCode>(
            backend, {},
            detail::WeightedSlots<GradientCode>{dy_slots, routing.pair_of_slot,
                                                routing.topk_weights},
            offsets, Route::dispatch, scratch);
        projection.backward_weight(backend, weighted, h_columns, offsets, grads.down_proj, scratch);
      }
      {
        const ArenaScope up(scratch);
        const auto slots = dispatch(backend, x, routing, scratch);
        const auto columns = projection.template columns<Code>(backend, {}, slots, offsets,
                                                               Route::dispatch, scratch);
        const auto weight_gradient = [&](const Site& site, const View<const T, 2>& d,
                                         View<M, 3> gradient) {
          const ArenaScope one(scratch);
          const auto d_columns = projection.template columns<GradientCode>(
              backend, site, d, offsets, Route::dense, scratch);
          projection.backward_weight(backend, d_columns, columns, offsets, gradient, scratch);
        };
        weight_gradient(gradient_site("", params.gate_proj), da, grads.gate_proj);
        weight_gradient(gradient_site("", params.up_proj), db, grads.up_proj);
      }
      const auto dslots = scratch.take<T>({pairs, hidden});
      const auto input_gradient = [&](const char* what, const View<const T, 2>& d,
                                      const QuantizedWeightStack<const Code>& weight,
                                      Output output) {
        const ArenaScope one(scratch);
        const auto rows =
            projection.gradient(backend, gradient_site(what, weight), d, Route::dense, scratch);
        projection.backward_input(backend, weight, rows, offsets, dslots, output, scratch);
      };
      input_gradient("gradient of the experts' gate_proj outputs", da, params.gate_proj,
                     Output::overwrite);
      input_gradient("gradient of the experts' up_proj outputs", db, params.up_proj, Output::add);
      return dslots;
    } else {
      const auto slots = scratch.take<T>({pairs, hidden});
      const ArenaScope scope(scratch);
      const auto da = scratch.take<T>({pairs, I});
      const auto db = scratch.take<T>({pairs, I});
      const auto weighted_h = scratch.take<T>({pairs, I});
      for_each_row_fused(backend, pairs,
                         detail::DispatchRow<T>{dy, routing.pair_of_slot, K, slots});
      grouped_gemm(backend, nn, as_const(slots), params.down_proj, da, offsets, Output::overwrite);
      for_each_row(
          backend, pairs,
          detail::ExpertBackwardRow<T>{saved.a, saved.b, da, routing.pair_of_slot,
                                       routing.topk_weights, dweights, da, db, weighted_h});
      grouped_gemm(backend, tn, as_const(slots), as_const(weighted_h), grads.down_proj, offsets,
                   Output::add);
      for_each_row_fused(backend, pairs, detail::DispatchRow<T>{x, routing.pair_of_slot, K, slots});
      grouped_gemm(backend, tn, as_const(da), as_const(slots), grads.gate_proj, offsets,
                   Output::add);
      grouped_gemm(backend, tn, as_const(db), as_const(slots), grads.up_proj, offsets, Output::add);
      // The gathered inputs are used up.
      grouped_gemm(backend, nn, as_const(da), params.gate_proj, slots, offsets, Output::overwrite);
      grouped_gemm(backend, nn, as_const(db), params.up_proj, slots, offsets, Output::add);
      return slots;
    }
  }

 private:
  // Rows of codes, gathered for the experts; a scale of the whole tensor stays where it is.
  template <class Backend, class C>
  Quantized<const C> dispatch(Backend& backend, Quantized<const C> x, const Routing<A>& routing,
                              Arena& scratch) const {
    const Index K = num_experts_per_tok, pairs = x.extent(0) * K;
    const auto codes = scratch.take<C>({pairs, x.extent(1)});
    Quantized<C> slots;
    if constexpr (P::tile > 0) {
      const auto scales = scratch.take<accum_t<C>>({pairs, x.scales.extents[1]});
      slots = {codes, {scales.data, scales.extent(0), scales.extent(1)}, 1, x.group_columns};
    } else {
      slots = {codes,
               {const_cast<accum_t<C>*>(x.scales.data), 1, 1},
               group_size(0, pairs),
               x.group_columns};
    }
    for_each_row_fused(backend, pairs,
                       detail::DispatchCodesRow<C>{x, routing.pair_of_slot, K, slots});
    return slots;
  }
};

}  // namespace dsv3
