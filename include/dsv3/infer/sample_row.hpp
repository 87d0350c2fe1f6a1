// Sampling where the logits are: Sampler's distribution and the draw from it as one row kernel.
#pragma once

#include <dsv3/core/math.hpp>
#include <dsv3/infer/sampling.hpp>

namespace dsv3::detail {

// SamplingOptions of one row, as the kernel reads them, and its random number.
struct SampleRule {
  double repetition_penalty, temperature, top_p, min_p, u;
  Index top_k;
  Index first_seen, seen;  // its part of the list of tokens seen, each once

  SampleRule() = default;
  SampleRule(const SamplingOptions& options, double number)
      : repetition_penalty(options.repetition_penalty),
        temperature(options.temperature),
        top_p(options.top_p),
        min_p(options.min_p),
        u(number),
        top_k(options.top_k),
        first_seen(0),
        seen(0) {}
};

struct SampledRow {
  double log_probability;
  double largest;          // of the logits, after the penalty
  std::int32_t token;      // none where the logits are no numbers or the largest is infinite
  std::int32_t first_nan;  // or -1
};

// Sums of probabilities run in the team's order, where Sampler adds the most probable first for
// top_p: a token may fall to the other side where the sum meets top_p within rounding.
template <class A>
struct SampleRow {
  View<const A, 2> logits;           // [T, V]
  View<const SampleRule, 1> rules;   // [T]
  View<const std::int32_t, 1> seen;  // all rows' lists
  View<double, 2> p;                 // [T, V] to work in
  View<SampledRow, 1> chosen;        // [T]

  DSV3_HD void operator()(auto team, Index t) const {
    const Index V = logits.extent(1);
    const SampleRule rule = rules(t);
    const auto logit = [&](Index j) { return static_cast<double>(logits(t, j)); };
    const auto value = [&](Index j) { return p(t, j); };
    team.each(V, [&](Index j) { p(t, j) = logit(j); });
    if (rule.seen > 0 && rule.repetition_penalty != 1) {
      team.sync();  // tokens seen are other workers'
      team.each(rule.seen, [&](Index i) {
        double& x = p(t, seen(rule.first_seen + i));
        x = x > 0 ? x / rule.repetition_penalty : x * rule.repetition_penalty;
      });
      team.sync();
    }
    const auto nan = team.max(
        V, [&](Index j) { return p(t, j) != p(t, j) ? static_cast<std::uint32_t>(V - j) : 0u; });
    const Index best = team.argmax(V, value);
    const double largest = best < 0 ? -infinity() : p(t, best);
    if (nan != 0 || !(largest - largest == 0)) {
      team.once([&] {
        const auto first_nan = nan != 0 ? V - static_cast<Index>(nan) : Index{-1};
        chosen(t) = {0, largest, -1, static_cast<std::int32_t>(first_nan)};
      });
      return;
    }
    const double most = team.max(V, logit);
    const double total = team.sum(V, [&](Index j) { return exp(logit(j) - most); });
    const double top = scaled(largest, rule);
    const bool greedy = rule.temperature == 0 || !(top - top == 0);
    if (!greedy) distribution(team, t, rule, top);
    const Index token = greedy ? best : draw(team, t, rule.u);
    team.once([&] {
      chosen(t) = {logit(token) - most - log(total), largest, static_cast<std::int32_t>(token), -1};
    });
  }

 private:
  DSV3_HD static double infinity() {
    return static_cast<double>(__builtin_bit_cast(float, 0x7F800000));
  }

  DSV3_HD static double scaled(double x, const SampleRule& rule) {
    return static_cast<double>(static_cast<float>(x) / static_cast<float>(rule.temperature));
  }

  DSV3_HD void distribution(auto team, Index t, const SampleRule& rule, double top) const {
    const Index V = p.extent(1);
    team.each(V, [&](Index j) { p(t, j) = exp(scaled(p(t, j), rule) - top); });
    normalise(team, t);
    if (rule.top_k > 0 && rule.top_k < V) {
      const auto at_least = [&](double least) {
        return team.sum(V, [&](Index j) { return p(t, j) >= least ? Index{1} : Index{0}; });
      };
      if (at_least(smallest()) > rule.top_k) {
        const double least = threshold(team, t, rule.top_k, at_least);
        const Index above =
            team.sum(V, [&](Index j) { return p(t, j) > least ? Index{1} : Index{0}; });
        keep(team, t, least, rule.top_k - above);
        normalise(team, t);
      }
    }
    if (rule.top_p < 1) {
      const auto at_least = [&](double least) {
        return team.sum(V, [&](Index j) { return p(t, j) >= least ? p(t, j) : 0.0; });
      };
      if (at_least(smallest()) > rule.top_p) {
        const double least = threshold(team, t, rule.top_p, at_least);
        const double above = team.sum(V, [&](Index j) { return p(t, j) > least ? p(t, j) : 0.0; });
        const double missing = (rule.top_p - above) / least;  // of `least`
        const Index whole = missing < static_cast<double>(V) ? static_cast<Index>(missing) : V;
        keep(team, t, least, whole + (static_cast<double>(whole) < missing ? 1 : 0));
        normalise(team, t);
      }
    }
    if (rule.min_p > 0) {
      const double least = rule.min_p * team.max(V, [&](Index j) { return p(t, j); });
      team.each(V, [&](Index j) {
        if (p(t, j) < least) p(t, j) = 0;
      });
      normalise(team, t);
    }
  }

  DSV3_HD void normalise(auto team, Index t) const {
    const Index V = p.extent(1);
    const double total = team.sum(V, [&](Index j) { return p(t, j); });
    team.each(V, [&](Index j) { p(t, j) /= total; });
  }

  DSV3_HD static double smallest() { return __builtin_bit_cast(double, std::uint64_t{1}); }

  // The largest x with measure(x) >= target, where measure falls as x grows and smallest()
  // satisfies it; or any x that meets the target exactly. Positive doubles are bisected by their
  // bits, which order alike.
  template <class Target>
  DSV3_HD double threshold(auto team, Index t, Target target, auto&& measure) const {
    const double most = team.max(p.extent(1), [&](Index j) { return p(t, j); });
    std::uint64_t low = 1, high = __builtin_bit_cast(std::uint64_t, most);
    while (low < high) {
      const std::uint64_t middle = high - (high - low) / 2;
      const auto found = measure(__builtin_bit_cast(double, middle));
      if (found >= target)
        low = middle;
      else
        high = middle - 1;
      if (found == target) break;
    }
    return __builtin_bit_cast(double, low);
  }

  // Leaves what is above `least`, and the first `ties` of what equals it; the rest becomes 0.
  DSV3_HD void keep(auto team, Index t, double least, Index ties) const {
    const Index V = p.extent(1);
    const auto ties_before = [&](Index end) {
      return team.sum(end, [&](Index j) { return p(t, j) == least ? Index{1} : Index{0}; });
    };
    Index low = 0, high = V;  // the ids of the ties that stay are below
    if (ties_before(V) > ties)
      while (low < high) {
        const Index middle = low + (high - low) / 2;
        if (ties_before(middle) >= ties)
          high = middle;
        else
          low = middle + 1;
      }
    team.each(V, [&](Index j) {
      if (p(t, j) < least || (p(t, j) == least && j >= high)) p(t, j) = 0;
    });
  }

  // The token at which the cumulated probability passes u: sums of more terms are not smaller, in
  // any team's order.
  DSV3_HD Index draw(auto team, Index t, double u) const {
    const Index V = p.extent(1);
    const auto sum = [&](Index count) { return team.sum(count, [&](Index j) { return p(t, j); }); };
    const double wanted = u * sum(V);
    Index low = 0, high = V - 1;
    while (low < high) {
      const Index middle = low + (high - low) / 2;
      if (wanted < sum(middle + 1))
        high = middle;
      else
        low = middle + 1;
    }
    // Where rounding lets no sum pass, the last token that has a probability.
    const auto place = [&](Index j) { return p(t, j) > 0 ? static_cast<double>(j) : -1.0; };
    return team.argmax(low + 1, place);
  }
};

}  // namespace dsv3::detail
