// DeepSeekMoE: routed experts over ragged segments beside shared experts, forward and backward.
#pragma once

#include <dsv3/nn/gate.hpp>
#include <dsv3/nn/mlp.hpp>
#include <dsv3/nn/observer.hpp>
#include <dsv3/nn/rows.hpp>
#include <dsv3/nn/sequences.hpp>

namespace dsv3 {
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

// y[t] = sum_k w[t,k] slots[slot(t,k)] + shared[t], in ascending order of expert, rounded once.
template <class T>
struct CombineRow {
  View<const T, 2> slots;
  View<const std::int32_t, 2> slot_of_pair;  // ascending by expert
  View<const accum_t<T>, 2> weights;
  View<const T, 2> shared;  // or empty
  View<T, 2> y;

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<T>;
    team.each(y.extent(1), [&](Index j) {
      A total = 0;
      for (Index k = 0; k < weights.extent(1); ++k)
        total = fma(weights(t, k), A(slots(slot_of_pair(t, k), j)), total);
      if (shared.data) total += A(shared(t, j));
      y(t, j) = T(total);
    });
  }
};

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

// load[e] += tokens of expert e.
struct CountLoadRow {
  View<const Index, 1> offsets;
  View<Index, 1> load;

  DSV3_HD void operator()(auto team, Index) const {
    team.each(load.extent(0), [&](Index e) { load(e) += offsets(e + 1) - offsets(e); });
  }
};

// dx[t] = sum over the slots of t, in ascending order of expert, + shared part + gate's part.
template <class T>
struct CombineBackwardRow {
  View<const T, 2> dslots;
  View<const std::int32_t, 2> slot_of_pair;
  View<const T, 2> shared;  // or empty
  View<const accum_t<T>, 2> gate;
  View<T, 2> dx;

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<T>;
    team.each(dx.extent(1), [&](Index j) {
      A total = gate(t, j);
      for (Index k = 0; k < slot_of_pair.extent(1); ++k) total += A(dslots(slot_of_pair(t, k), j));
      if (shared.data) total += A(shared(t, j));
      dx(t, j) = T(total);
    });
  }
};

}  // namespace detail

/// DeepSeekMoE: a gate sends each token to K of E experts, whose weighted outputs are added to that
/// of the shared experts. No token is dropped.
///
///     y = sum_{i chosen} w_i Expert_i(x) + Shared(x)
///
/// Shapes   T tokens, H hidden_size, E experts of width I, K chosen; x and y [T, H].
/// Types    activations in P::activation, weights in P::weight, gate and sums in P::accumulator,
///          gradients in P::master. In an FP8 policy the experts multiply codes, dispatched with
///          power-of-two scales; the gate reads plain values (spec 7.5, 7.6).
/// Errors   std::invalid_argument when extents disagree.
/// Source   DeepSeek-V3 section 2.1.2; spec 5.
template <class P>
struct Moe {
  using T = typename P::activation;
  using W = operand_t<P>;
  using A = typename P::accumulator;
  using M = typename P::master;

  /// What forward and backward read in an FP8 policy: the values, and their codes for the experts.
  struct ValuesAndCodes {
    View<const T, 2> values;
    typename Projection<P>::Input codes;

    Index extent(int d) const { return values.extent(d); }
  };
  /// In a plain policy the matrix itself.
  using Input = std::conditional_t<QuantizedPolicy<P>, ValuesAndCodes, View<const T, 2>>;

  static Input input_of(View<const T, 2> values, typename Projection<P>::Input operand) {
    if constexpr (QuantizedPolicy<P>)
      return {values, operand};
    else
      return operand;
  }

  GateRule rule;
  Index moe_intermediate_size, shared_intermediate_size;  // the latter 0 without shared experts

  constexpr explicit Moe(const ModelConfig& c)
      : rule(c),
        moe_intermediate_size(c.moe_intermediate_size),
        shared_intermediate_size(c.n_shared_experts * c.moe_intermediate_size) {}

  template <class U>
  struct Tensors {
    matrix_of<U> gate;                                    // [E, H]
    stack_of<U> gate_proj;                                // [E, I, H]
    stack_of<U> up_proj;                                  // [E, I, H]
    stack_of<U> down_proj;                                // [E, H, I]
    typename Mlp<P>::template Tensors<U> shared_experts;  // of width n_shared_experts * I
  };

  template <class U>
  static constexpr Tensors<U> make_tensors(const ModelConfig& c, Arena& arena) {
    const Index E = c.n_routed_experts, I = c.moe_intermediate_size, H = c.hidden_size;
    Tensors<U> t;
    using Views = WeightViews<U>;
    t.gate = Views::take_matrix(arena, E, H);
    t.gate_proj = Views::take_stack(arena, E, I, H);
    t.up_proj = Views::take_stack(arena, E, I, H);
    t.down_proj = Views::take_stack(arena, E, H, I);
    if (c.n_shared_experts)
      t.shared_experts = Mlp<P>::template make_tensors<U>(H, c.n_shared_experts * I, arena);
    return t;
  }

  static void for_each_tensor(auto&& f, auto&... t) {
    f("gate.weight", t.gate...);
    const Index experts = [](const auto& first, const auto&...) {
      return first.gate_proj.extent(0);
    }(t...);
    for (Index e = 0; e < experts; ++e) {
      const std::string name = "experts." + std::to_string(e) + ".";
      f(name + "gate_proj.weight", t.gate_proj[e]...);
      f(name + "up_proj.weight", t.up_proj[e]...);
      f(name + "down_proj.weight", t.down_proj[e]...);
    }
    if ((t.shared_experts.gate_proj.extent(0) || ...))
      Mlp<P>::for_each_tensor(
          [&](const char* name, auto... views) {
            f(std::string("shared_experts.") + name, views...);
          },
          t.shared_experts...);
  }

  /// The routing of a batch: saved, never computed twice.
  struct Routing {
    View<std::int32_t, 2> topk_idx;      // [T, K] ascending by expert
    View<A, 2> topk_weights;             // [T, K]
    View<Index, 1> offsets;              // [E + 1] segments of the sorted slots
    View<std::int32_t, 1> pair_of_slot;  // [T K]
    View<std::int32_t, 2> slot_of_pair;  // [T, K]
  };

  /// What forward leaves for backward.
  struct Saved {
    View<A, 2> scores;  // [T, E]
    Routing routing;
    View<A, 2> frequency;                 // [S, E] of the balance loss
    View<A, 1> balance;                   // [1] the balance loss with alpha = 1
    typename Projection<P>::Stored a, b;  // [T K, I] gate(x) and up(x) of every slot
    typename Mlp<P>::Saved shared;
  };

  constexpr Saved make_saved(Arena& arena, Index tokens, Index sequences) const {
    const Index E = rule.n_routed_experts, K = rule.num_experts_per_tok;
    Saved saved;
    saved.scores = arena.take<A>({tokens, E});
    saved.routing.topk_idx = arena.take<std::int32_t>({tokens, K});
    saved.routing.topk_weights = arena.take<A>({tokens, K});
    saved.routing.offsets = arena.take<Index>({E + 1});
    saved.routing.pair_of_slot = arena.take<std::int32_t>({tokens * K});
    saved.routing.slot_of_pair = arena.take<std::int32_t>({tokens, K});
    saved.frequency = arena.take<A>({sequences, E});
    saved.balance = arena.take<A>({1});
    saved.a = Projection<P>::take_stored(arena, tokens * K, moe_intermediate_size);
    saved.b = Projection<P>::take_stored(arena, tokens * K, moe_intermediate_size);
    if (shared_intermediate_size)
      saved.shared = Mlp<P>::make_saved(arena, tokens, shared_intermediate_size);
    return saved;
  }

  /// Writes y [T, H] and saved.
  ///
  /// bias [E] chooses experts and never weighs them; empty for a gate without one. forced [T, K],
  /// ascending by expert, replaces the gate's choice; empty: the gate chooses. balance_scale
  /// multiplies the balance loss: 1 / number of sequences for its mean.
  template <class Backend, class Observer = NoObserver>
  void forward(Backend& backend, const Tensors<const W>& params, View<const A, 1> bias,
               View<const std::int32_t, 2> forced, Input x, const Sequences& sequences,
               double balance_scale, View<T, 2> y, Saved& saved, Arena& scratch,
               Observer&& observer = {}) const {
    const Index tokens = x.extent(0), hidden = x.extent(1);
    const Index E = rule.n_routed_experts, K = rule.num_experts_per_tok;
    check_shape("Moe::forward", "y", y, tokens, "rows of x", hidden, "columns of x");
    check_equal("Moe::forward", "tokens of sequences", sequences.tokens(), "rows of x", tokens);
    if (bias.data) check_shape("Moe::forward", "bias", bias, E, "n_routed_experts");
    if (forced.data)
      check_shape("Moe::forward", "forced", forced, tokens, "rows of x", K, "num_experts_per_tok");
    const ArenaScope scope(scratch);
    const Linear linear;
    Routing& routing = saved.routing;
    linear.forward(backend, params.gate, values_of(x), saved.scores);
    route(backend, bias, forced, sequences, balance_scale, saved, scratch);
    observer("scores", as_const(saved.scores));
    observer("topk_idx", as_const(routing.topk_idx));
    observer("topk_weight", as_const(routing.topk_weights));
    observer("load", as_const(routing.offsets));
    observer("balance", as_const(saved.balance));

    const auto slots = experts_forward(backend, params, x, saved, scratch);
    View<T, 2> shared;
    if (shared_intermediate_size) {
      shared = scratch.take<T>({tokens, hidden});
      Mlp<P>{}.forward(backend, params.shared_experts, operand_of(x), shared, saved.shared,
                       scratch);
    }
    for_each_row(
        backend, tokens,
        detail::CombineRow<T>{slots, routing.slot_of_pair, routing.topk_weights, shared, y});
  }

  /// Overwrites dx [T, H]; adds to grads. x is the input of forward; balance_scale is forward's,
  /// times alpha.
  template <class Backend>
  void backward(Backend& backend, const Tensors<const W>& params, Input x, const Saved& saved,
                const Sequences& sequences, double balance_scale, View<const T, 2> dy,
                View<T, 2> dx, const Tensors<typename P::master>& grads, Arena& scratch) const {
    const Index tokens = x.extent(0), hidden = x.extent(1);
    const Index E = rule.n_routed_experts, K = rule.num_experts_per_tok;
    check_shape("Moe::backward", "dy", dy, tokens, "rows of x", hidden, "columns of x");
    check_shape("Moe::backward", "dx", dx, tokens, "rows of x", hidden, "columns of x");
    const ArenaScope scope(scratch);
    const Linear linear;
    const Routing& routing = saved.routing;
    const auto dweights = scratch.take<A>({tokens, K});
    const auto dslots = experts_backward(backend, params, x, saved, dy, dweights, grads, scratch);
    const auto dz = scratch.take<A>({tokens, E});
    const auto dx_gate = scratch.take<A>({tokens, hidden});
    for_each_row(
        backend, tokens,
        detail::GateBackwardRow<A>{rule, saved.scores, routing.topk_idx, dweights, saved.frequency,
                                   sequences.first, sequences.sequence, balance_scale, dz});
    linear.backward_weight(backend, dz, values_of(x), grads.gate);
    linear.backward_input(backend, params.gate, dz, dx_gate, Output::overwrite);
    View<T, 2> dx_shared;
    if (shared_intermediate_size) {
      dx_shared = scratch.take<T>({tokens, hidden});
      Mlp<P>{}.backward(backend, params.shared_experts, operand_of(x), saved.shared, dy, dx_shared,
                        grads.shared_experts, scratch);
    }
    for_each_row(
        backend, tokens,
        detail::CombineBackwardRow<T>{dslots, routing.slot_of_pair, dx_shared, dx_gate, dx});
  }

 private:
  static View<const T, 2> values_of(const Input& x) {
    if constexpr (QuantizedPolicy<P>)
      return x.values;
    else
      return x;
  }
  static typename Projection<P>::Input operand_of(const Input& x) {
    if constexpr (QuantizedPolicy<P>)
      return x.codes;
    else
      return x;
  }

  // The experts' outputs, slot by slot, in scratch.
  template <class Backend>
  View<T, 2> experts_forward(Backend& backend, const Tensors<const W>& params, const Input& x,
                             Saved& saved, Arena& scratch) const {
    const Routing& routing = saved.routing;
    const View<const Index, 1> offsets = routing.offsets;
    const Index K = rule.num_experts_per_tok, pairs = x.extent(0) * K, hidden = x.extent(1);
    if constexpr (QuantizedPolicy<P>) {
      using Code = typename P::code;
      const Projection<P> projection;
      const auto h = Projection<P>::take_rows(scratch, pairs, moe_intermediate_size);
      {
        const ArenaScope scope(scratch);
        const auto slots = dispatch(backend, x.codes, routing, scratch);
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
      for_each_row(backend, pairs, detail::DispatchRow<T>{x, routing.pair_of_slot, K, slots});
      grouped_gemm(backend, nt, as_const(slots), params.gate_proj, saved.a, offsets,
                   Output::overwrite);
      grouped_gemm(backend, nt, as_const(slots), params.up_proj, saved.b, offsets,
                   Output::overwrite);
      for_each_row(backend, pairs, detail::SwigluForwardRow<T>{saved.a, saved.b, h});
      grouped_gemm(backend, nt, as_const(h), params.down_proj, slots, offsets, Output::overwrite);
      return slots;
    }
  }

  // The gradients in the experts' inputs, slot by slot, in scratch; writes dweights, adds to grads.
  template <class Backend>
  View<T, 2> experts_backward(Backend& backend, const Tensors<const W>& params, const Input& x,
                              const Saved& saved, View<const T, 2> dy, View<A, 2> dweights,
                              const Tensors<typename P::master>& grads, Arena& scratch) const {
    const Routing& routing = saved.routing;
    const View<const Index, 1> offsets = routing.offsets;
    const Index K = rule.num_experts_per_tok, pairs = x.extent(0) * K, hidden = x.extent(1);
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
        const auto slots = dispatch(backend, x.codes, routing, scratch);
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
      for_each_row(backend, pairs, detail::DispatchRow<T>{dy, routing.pair_of_slot, K, slots});
      grouped_gemm(backend, nn, as_const(slots), params.down_proj, da, offsets, Output::overwrite);
      for_each_row(
          backend, pairs,
          detail::ExpertBackwardRow<T>{saved.a, saved.b, da, routing.pair_of_slot,
                                       routing.topk_weights, dweights, da, db, weighted_h});
      grouped_gemm(backend, tn, as_const(slots), as_const(weighted_h), grads.down_proj, offsets,
                   Output::add);
      for_each_row(backend, pairs, detail::DispatchRow<T>{x, routing.pair_of_slot, K, slots});
      grouped_gemm(backend, tn, as_const(da), as_const(slots), grads.gate_proj, offsets,
                   Output::add);
      grouped_gemm(backend, tn, as_const(db), as_const(slots), grads.up_proj, offsets, Output::add);
      // The gathered inputs are used up.
      grouped_gemm(backend, nn, as_const(da), params.gate_proj, slots, offsets, Output::overwrite);
      grouped_gemm(backend, nn, as_const(db), params.up_proj, slots, offsets, Output::add);
      return slots;
    }
  }

  // Rows of codes, gathered for the experts; a scale of the whole tensor stays where it is.
  template <class Backend, class C>
  Quantized<const C> dispatch(Backend& backend, Quantized<const C> x, const Routing& routing,
                              Arena& scratch) const {
    const Index K = rule.num_experts_per_tok, pairs = x.extent(0) * K;
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
    for_each_row(backend, pairs, detail::DispatchCodesRow<C>{x, routing.pair_of_slot, K, slots});
    return slots;
  }

  // Scores, choice, weights, balance loss and the sorted slots.
  template <class Backend>
  void route(Backend& backend, View<const A, 1> bias, View<const std::int32_t, 2> forced,
             const Sequences& sequences, double balance_scale, Saved& saved, Arena& scratch) const {
    const ArenaScope scope(scratch);
    const Index tokens = saved.scores.extent(0), count = sequences.count();
    const Index E = rule.n_routed_experts, K = rule.num_experts_per_tok;
    Routing& routing = saved.routing;
    const auto work = scratch.take<A>({tokens, E + rule.n_group});
    const auto balance_idx = scratch.take<std::int32_t>({tokens, K});
    const auto reciprocal = scratch.take<A>({tokens});
    const auto probability = scratch.take<A>({count, E});
    for_each_row(backend, tokens,
                 detail::GateForwardRow<A>{rule, bias, forced, saved.scores, work, routing.topk_idx,
                                           balance_idx, routing.topk_weights});
    for_each_row(backend, tokens, detail::ReciprocalSumRow<A>{saved.scores, reciprocal});
    for_each_row(backend, count * E,
                 detail::BalanceRow<A>{saved.scores, balance_idx, reciprocal, sequences.first,
                                       saved.frequency, probability});
    for_each_row(
        backend, 1,
        detail::BalanceSumRow<A>{saved.frequency, probability, balance_scale, saved.balance});
    sort_by_expert(backend, as_const(routing.topk_idx), routing.offsets, routing.pair_of_slot,
                   routing.slot_of_pair);
  }
};

}  // namespace dsv3
