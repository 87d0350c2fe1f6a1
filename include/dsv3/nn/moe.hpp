// DeepSeekMoE: a gate, routed experts and shared experts, forward and backward.
#pragma once

#include <dsv3/nn/experts.hpp>
#include <dsv3/nn/gate.hpp>
#include <dsv3/nn/mlp.hpp>
#include <dsv3/nn/observer.hpp>
#include <dsv3/nn/rows.hpp>
#include <dsv3/nn/sequences.hpp>

namespace dsv3 {
namespace detail {

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

  using Routing = dsv3::Routing<A>;

  /// What forward leaves for backward.
  struct Saved {
    View<A, 2> scores;  // [T, E]
    Routing routing;
    View<A, 2> frequency;                 // [balance_spans(S), E] of the balance loss
    View<A, 1> balance;                   // [1] the balance loss with alpha = 1
    typename Projection<P>::Stored a, b;  // [T K, I] gate(x) and up(x) of every slot
    typename Mlp<P>::Saved shared;
  };

  /// Averages that the balance loss of so many sequences takes: one each, or one of all.
  constexpr Index balance_spans(Index sequences) const {
    return detail::BalanceSpans::count(sequences, rule.seq_aux);
  }

  constexpr Saved make_saved(Arena& arena, Index tokens, Index sequences,
                             bool backward_follows = true) const {
    const Index E = rule.n_routed_experts, K = rule.num_experts_per_tok;
    Saved saved;
    saved.scores = arena.take<A>({tokens, E});
    saved.routing.topk_idx = arena.take<std::int32_t>({tokens, K});
    saved.routing.topk_weights = arena.take<A>({tokens, K});
    saved.routing.offsets = arena.take<Index>({E + 1});
    saved.routing.pair_of_slot = arena.take<std::int32_t>({tokens * K});
    saved.routing.slot_of_pair = arena.take<std::int32_t>({tokens, K});
    saved.frequency = arena.take<A>({balance_spans(sequences), E});
    saved.balance = arena.take<A>({1});
    const auto stored = [&] {
      return Projection<P>::take_stored(arena, tokens * K, moe_intermediate_size, backward_follows);
    };
    saved.a = stored();
    saved.b = stored();
    if (shared_intermediate_size)
      saved.shared = Mlp<P>::make_saved(arena, tokens, shared_intermediate_size, backward_follows);
    return saved;
  }

  /// Writes y [T, H] and saved.
  ///
  /// bias [E] chooses experts and never weighs them; empty for a gate without one. forced [T, K],
  /// ascending by expert, replaces the gate's choice; empty: the gate chooses. balance_scale
  /// multiplies the balance loss of each sequence: 1 / number of sequences for its mean. Without
  /// seq_aux the one loss of all tokens counts as that of each sequence.
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

    typename Experts<P>::Saved kept{saved.a, saved.b};
    const auto slots =
        experts().forward(backend, expert_tensors(params), operand_of(x), routing, kept, scratch);
    View<T, 2> shared;
    if (shared_intermediate_size) {
      shared = scratch.take<T>({tokens, hidden});
      Mlp<P>{}.forward(backend, params.shared_experts, operand_of(x), shared, saved.shared,
                       scratch);
    }
    for_each_row_fused(
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
    const auto dslots =
        experts().backward(backend, expert_tensors(params), operand_of(x), routing,
                           {saved.a, saved.b}, dy, dweights, expert_tensors(grads), scratch);
    const auto dz = scratch.take<A>({tokens, E});
    const auto dx_gate = scratch.take<A>({tokens, hidden});
    for_each_row(
        backend, tokens,
        detail::GateBackwardRow<A>{rule, saved.scores, routing.topk_idx, dweights, saved.frequency,
                                   spans_of(sequences), span_scale(sequences, balance_scale), dz});
    linear.backward_weight(backend, dz, values_of(x), grads.gate);
    linear.backward_input(backend, params.gate, dz, dx_gate, Output::overwrite);
    View<T, 2> dx_shared;
    if (shared_intermediate_size) {
      dx_shared = scratch.take<T>({tokens, hidden});
      Mlp<P>{}.backward(backend, params.shared_experts, operand_of(x), saved.shared, dy, dx_shared,
                        grads.shared_experts, scratch);
    }
    for_each_row_fused(
        backend, tokens,
        detail::CombineBackwardRow<T>{dslots, routing.slot_of_pair, dx_shared, dx_gate, dx});
  }

 private:
  Experts<P> experts() const { return {rule.num_experts_per_tok, moe_intermediate_size}; }

  template <class U>
  static typename Experts<P>::template Tensors<U> expert_tensors(const Tensors<U>& t) {
    return {t.gate_proj, t.up_proj, t.down_proj};
  }

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

  detail::BalanceSpans spans_of(const Sequences& sequences) const {
    return {sequences.first, sequences.sequence, rule.seq_aux};
  }
  // What one span counts, where one sequence counts `scale`.
  double span_scale(const Sequences& sequences, double scale) const {
    return rule.seq_aux ? scale : scale * static_cast<double>(sequences.count());
  }

  // Scores, choice, weights, balance loss and the sorted slots.
  template <class Backend>
  void route(Backend& backend, View<const A, 1> bias, View<const std::int32_t, 2> forced,
             const Sequences& sequences, double balance_scale, Saved& saved, Arena& scratch) const {
    const ArenaScope scope(scratch);
    const Index tokens = saved.scores.extent(0), count = balance_spans(sequences.count());
    const Index E = rule.n_routed_experts, K = rule.num_experts_per_tok;
    Routing& routing = saved.routing;
    const auto work = scratch.take<A>({tokens, E + rule.n_group});
    const auto balance_idx = scratch.take<std::int32_t>({tokens, K});
    const auto reciprocal = scratch.take<A>({tokens});
    const auto probability = scratch.take<A>({count, E});
    for_each_row(backend, tokens,
                 detail::GateForwardRow<A>{rule, bias, forced, saved.scores, work, routing.topk_idx,
                                           balance_idx, routing.topk_weights});
    if (count > 0)  // no sequences: no balance loss is wanted
      for_each_row(backend, tokens, detail::ReciprocalSumRow<A>{saved.scores, reciprocal});
    for_each_row(backend, count * E,
                 detail::BalanceRow<A>{saved.scores, balance_idx, reciprocal, spans_of(sequences),
                                       saved.frequency, probability});
    for_each_row(backend, 1,
                 detail::BalanceSumRow<A>{saved.frequency, probability,
                                          span_scale(sequences, balance_scale), saved.balance});
    sort_by_expert(backend, as_const(routing.topk_idx), routing.offsets, routing.pair_of_slot,
                   routing.slot_of_pair);
  }
};

}  // namespace dsv3
