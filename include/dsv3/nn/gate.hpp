// The MoE gate: scores, the choice of experts, their weights; and its gradient.
#pragma once

#include <dsv3/config.hpp>
#include <dsv3/core/math.hpp>
#include <dsv3/core/scalar.hpp>

namespace dsv3 {

/// How a gate chooses and weighs experts.
///
/// Source   DeepSeek-V3 section 2.1.2 and inference code; spec 5.1-5.3. Ties go to the smaller
///          index, for groups and for experts.
struct GateRule {
  Index n_routed_experts, num_experts_per_tok, n_group, topk_group;
  Index ranking_scores;  // scores added up to rank a group
  bool softmax, norm_topk_prob, seq_aux;
  double routed_scaling_factor;

  constexpr explicit GateRule(const ModelConfig& c)
      : n_routed_experts(c.n_routed_experts),
        num_experts_per_tok(c.num_experts_per_tok),
        n_group(c.groups()),
        topk_group(c.topk_group),
        ranking_scores(c.ranking_scores()),
        softmax(c.scoring_func == ScoringFunc::softmax),
        norm_topk_prob(c.norm_topk_prob),
        seq_aux(c.seq_aux),
        routed_scaling_factor(c.routed_scaling_factor) {}
};

namespace detail {

// The K largest of row t of `values` (ties: the smaller index), written to `chosen` in ascending
// order. Overwrites what it chooses with -infinity. Where NaN leaves too few, the smallest
// experts not yet chosen fill up; their weights are NaN and tell.
template <class A>
DSV3_HD void choose_largest(auto team, const View<A, 2>& values, Index t, Index n,
                            const View<std::int32_t, 2>& chosen) {
  const A gone = -__builtin_bit_cast(float, 0x7F800000);
  const Index count = chosen.extent(1);
  for (Index k = 0; k < count; ++k) {
    team.sync();
    const Index best = team.argmax(n, [&](Index e) { return values(t, e); });
    team.once([&] {
      Index e = best;
      if (e < 0) {
        e = 0;
        for (Index i = 0; i < k; ++i) e += chosen(t, i) == e;  // chosen so far, ascending
      }
      Index at = k;
      for (; at > 0 && chosen(t, at - 1) > e; --at) chosen(t, at) = chosen(t, at - 1);
      chosen(t, at) = static_cast<std::int32_t>(e);
      values(t, e) = gone;
    });
  }
  team.sync();
}

// Scores in place of logits, then the choice and its weights, of one token.
template <class A>
struct GateForwardRow {
  GateRule rule;
  View<const A, 1> bias;               // [E], or empty
  View<const std::int32_t, 2> forced;  // [T, K] ascending, or empty: the choice is made here
  View<A, 2> scores;                   // [T, E]: logits in, scores out
  View<A, 2> work;                     // [T, E + n_group] scratch
  View<std::int32_t, 2> topk_idx;      // [T, K] ascending by expert
  View<std::int32_t, 2> balance_idx;   // [T, K] what the balance loss counts, ascending
  View<A, 2> topk_weights;             // [T, K]

  DSV3_HD void operator()(auto team, Index t) const {
    const Index experts = rule.n_routed_experts, k = rule.num_experts_per_tok;
    to_scores(team, t);
    team.sync();
    if (forced.data) {
      team.each(k, [&](Index i) { topk_idx(t, i) = forced(t, i); });
      team.sync();
    } else {
      team.each(experts,
                [&](Index e) { work(t, e) = bias.data ? scores(t, e) + bias(e) : scores(t, e); });
      if (rule.n_group > 1) drop_groups(team, t);
      choose_largest(team, work, t, experts, topk_idx);
    }
    // Sigmoid gates count the unbiased, ungrouped top K, softmax gates what was chosen: spec 5.7.
    if (rule.softmax) {
      team.each(k, [&](Index i) { balance_idx(t, i) = topk_idx(t, i); });
    } else {
      team.each(experts, [&](Index e) { work(t, e) = scores(t, e); });
      choose_largest(team, work, t, experts, balance_idx);
    }
    const A total = rule.norm_topk_prob
                        ? team.sum(k, [&](Index i) { return scores(t, topk_idx(t, i)); }) + A(1e-20)
                        : A(1);
    // A score that is no number is never chosen among others: the weights must tell of it.
    const A all = team.sum(experts, [&](Index e) { return scores(t, e); });
    team.each(k, [&](Index i) {
      const A weight = scores(t, topk_idx(t, i)) / total * A(rule.routed_scaling_factor);
      topk_weights(t, i) = all == all ? weight : all;
    });
  }

 private:
  DSV3_HD void to_scores(auto team, Index t) const {
    const Index experts = rule.n_routed_experts;
    if (!rule.softmax) {
      team.each(experts, [&](Index e) { scores(t, e) = sigmoid(scores(t, e)); });
      return;
    }
    const A largest = team.max(experts, [&](Index e) { return scores(t, e); });
    team.each(experts, [&](Index e) { scores(t, e) = exp(scores(t, e) - largest); });
    team.sync();
    const A total = team.sum(experts, [&](Index e) { return scores(t, e); });
    team.each(experts, [&](Index e) { scores(t, e) = scores(t, e) / total; });
  }

  // -infinity for the experts of every group but the best topk_group.
  DSV3_HD void drop_groups(auto team, Index t) const {
    const A gone = -__builtin_bit_cast(float, 0x7F800000);
    const Index experts = rule.n_routed_experts, groups = rule.n_group, size = experts / groups;
    team.sync();
    team.each(groups, [&](Index g) {
      // The sum of the group's largest scores: each pass finds the next one in order.
      A sum = 0, last = -gone;
      Index last_at = -1;
      for (Index r = 0; r < rule.ranking_scores; ++r) {
        A best = gone;
        Index at = -1;
        for (Index e = g * size; e < (g + 1) * size; ++e) {
          const A value = work(t, e);
          const bool after = value < last || (value == last && e > last_at);
          if (after && (at < 0 || value > best)) {
            best = value;
            at = e;
          }
        }
        sum += best;
        last = best;
        last_at = at;
      }
      work(t, experts + g) = sum;
    });
    for (Index m = 0; m < rule.topk_group; ++m) {  // the groups that stay are marked -infinity
      team.sync();
      const Index g = team.argmax(groups, [&](Index i) { return work(t, experts + i); });
      team.once([&] {
        if (g >= 0) work(t, experts + g) = gone;
      });
    }
    team.sync();
    team.each(experts, [&](Index e) {
      if (work(t, experts + e / size) != gone) work(t, e) = gone;
    });
  }
};

// The N runs of tokens that the balance loss averages over: the S sequences, or, batch-wise, all
// tokens as one.
struct BalanceSpans {
  View<const std::int32_t, 1> first, sequence;  // [S + 1], [T]
  bool seq_aux;

  // N of S sequences.
  static constexpr Index count(Index sequences, bool seq_aux) {
    return seq_aux || sequences < 1 ? sequences : 1;
  }
  DSV3_HD Index of(Index t) const { return seq_aux ? sequence(t) : 0; }
  DSV3_HD Index begin(Index span) const { return first(span); }
  DSV3_HD Index end(Index span) const { return first(seq_aux ? span + 1 : first.extent(0) - 1); }
};

// dz of one token from the gradients of its K weights and of its balance term.
//
//   w_i = kappa s_i / total:  ds_i = (kappa / total)(dw_i - sum_j (s_j / total) dw_j), i chosen
//   balance:                  ds_e += c (f_e - sum_j f_j s'_j) / sum_j s_j,  s' = s / sum_j s_j
//   sigmoid:                  dz = ds s (1 - s)        softmax: dz = s (ds - sum_e s_e ds_e)
template <class A>
struct GateBackwardRow {
  GateRule rule;
  View<const A, 2> scores;               // [T, E]
  View<const std::int32_t, 2> topk_idx;  // [T, K]
  View<const A, 2> dweights;             // [T, K]
  View<const A, 2> frequency;            // [N, E] of the balance loss
  BalanceSpans spans;
  double balance_scale;  // alpha times the weight of one span
  View<A, 2> dz;         // [T, E]

  DSV3_HD void operator()(auto team, Index t) const {
    const Index experts = rule.n_routed_experts, k = rule.num_experts_per_tok;
    const auto score = [&](Index e) { return scores(t, e); };
    const auto chosen = [&](Index i) { return scores(t, topk_idx(t, i)); };
    const auto dweight = [&](Index i) { return dweights(t, i); };
    const Index s = spans.of(t);
    const A all = team.sum(experts, score);
    const A expected = team.dot(
                           experts, [&](Index e) { return frequency(s, e); }, score) /
                       all;
    const A slope = A(balance_scale) / A(spans.end(s) - spans.begin(s)) / all;
    team.each(experts, [&](Index e) { dz(t, e) = slope * (frequency(s, e) - expected); });
    team.sync();
    A factor = A(rule.routed_scaling_factor), mean = 0;
    if (rule.norm_topk_prob) {
      const A total = team.sum(k, chosen) + A(1e-20);
      mean = team.dot(k, chosen, dweight) / total;
      factor = factor / total;
    }
    team.each(k, [&](Index i) {
      const Index e = topk_idx(t, i);
      dz(t, e) = fma(factor, dweights(t, i) - mean, dz(t, e));
    });
    team.sync();
    if (!rule.softmax) {
      team.each(experts, [&](Index e) {
        const A p = scores(t, e);
        dz(t, e) = dz(t, e) * p * (A(1) - p);
      });
      return;
    }
    const A inner = team.dot(experts, score, [&](Index e) { return dz(t, e); });
    team.sync();
    team.each(experts, [&](Index e) { dz(t, e) = scores(t, e) * (dz(t, e) - inner); });
  }
};

// 1 / sum_e s_e of each token, then for each span s of T_s tokens and expert e
//   f = E / (K T_s) #{t : e counted},   P = 1 / T_s sum_t s'_{e,t}.        Spec 5.7.
template <class A>
struct BalanceRow {
  View<const A, 2> scores;                  // [T, E]
  View<const std::int32_t, 2> balance_idx;  // [T, K]
  View<const A, 1> reciprocal;              // [T] 1 / sum_e s_e
  BalanceSpans spans;
  View<A, 2> frequency;    // [N, E]
  View<A, 2> probability;  // [N, E]

  DSV3_HD void operator()(auto team, Index row) const {
    const Index experts = scores.extent(1), k = balance_idx.extent(1);
    const Index s = row / experts, e = row % experts;
    const Index from = spans.begin(s), tokens = spans.end(s) - from;
    const A count = team.sum(tokens, [&](Index t) {
      A hits = 0;
      for (Index i = 0; i < k; ++i) hits += balance_idx(from + t, i) == e ? A(1) : A(0);
      return hits;
    });
    const A sum = team.dot(
        tokens, [&](Index t) { return scores(from + t, e); },
        [&](Index t) { return reciprocal(from + t); });
    team.once([&] {
      frequency(s, e) = tokens ? count * A(experts) / (A(k) * A(tokens)) : A(0);
      probability(s, e) = tokens ? sum / A(tokens) : A(0);
    });
  }
};

template <class A>
struct ReciprocalSumRow {
  View<const A, 2> x;
  View<A, 1> y;

  DSV3_HD void operator()(auto team, Index t) const {
    const A total = team.sum(x.extent(1), [&](Index e) { return x(t, e); });
    team.once([&] { y(t) = A(1) / total; });
  }
};

// sum_s sum_e f P over the spans, times scale.
template <class A>
struct BalanceSumRow {
  View<const A, 2> frequency, probability;
  double scale;
  View<A, 1> loss;

  DSV3_HD void operator()(auto team, Index) const {
    const A total = team.dot(
        frequency.size(), [&](Index i) { return frequency.data[i]; },
        [&](Index i) { return probability.data[i]; });
    team.once([&] { loss(0) = total * A(scale); });
  }
};

}  // namespace detail
}  // namespace dsv3
