// Sampling: from logits to a distribution, and from it to a token.
#pragma once

#include <algorithm>
#include <cmath>
#include <dsv3/core/check.hpp>
#include <dsv3/core/philox.hpp>
#include <limits>
#include <numeric>
#include <vector>

namespace dsv3 {

/// How the next token is chosen. Steps apply in the order of the members.
struct SamplingOptions {
  double repetition_penalty = 1;  ///< of logits of tokens seen before: divides positive ones,
                                  ///< multiplies negative ones (arXiv:1909.05858)
  double temperature = 0;         ///< divides logits; 0, or so little that the largest overflows:
                                  ///< greedy, the rest does not matter
  Index top_k = 0;                ///< keeps the k most probable tokens; 0: all
  double top_p = 1;               ///< keeps the fewest tokens that together reach p
  double min_p = 0;               ///< keeps tokens of at least min_p times the largest probability
  std::uint64_t seed = 0;         ///< of this sequence's random numbers

  /// Errors   std::invalid_argument naming the option, its value and its bound.
  void validate() const {
    const auto bounds = [](const char* name, double value, bool holds, const char* rule) {
      if (!holds)
        throw std::invalid_argument(std::string("SamplingOptions: ") + name + " (" +
                                    std::to_string(value) + ") must be " + rule);
    };
    bounds("repetition_penalty", repetition_penalty,
           repetition_penalty > 0 && std::isfinite(repetition_penalty), "above 0");
    const double least = std::numeric_limits<float>::min();
    bounds("temperature", temperature,
           temperature == 0 || (temperature >= least && std::isfinite(temperature)),
           "0, or a positive float");
    bounds("top_k", static_cast<double>(top_k), top_k >= 0, "at least 0");
    bounds("top_p", top_p, top_p > 0 && top_p <= 1, "above 0 and at most 1");
    bounds("min_p", min_p, min_p >= 0 && min_p <= 1, "at least 0 and at most 1");
  }
};

/// A token that was chosen, and the model's own log probability of it, in nats, before any option.
struct Choice {
  std::int32_t token;
  double log_probability;
};

/// Turns logits into the distribution that a token is drawn from. Ties take the lowest id. Keeps
/// its working memory between calls.
///
/// Types    Temperature divides in float, which logits are in inference (spec 2.5), as Hugging
///          Face's generate does; probabilities are double.
class Sampler {
 public:
  /// Fills probabilities [vocab_size] from logits [vocab_size]; `history` is every token of the
  /// sequence so far.
  /// Errors   std::invalid_argument where a logit is NaN or the largest is infinite.
  template <class A>
  void distribution(const A* logits, Index vocab, const SamplingOptions& options,
                    const std::vector<std::int32_t>& history, std::vector<double>& probabilities) {
    probabilities.assign(logits, logits + vocab);
    if (options.repetition_penalty != 1)
      penalise(options.repetition_penalty, history, probabilities);
    const auto best = std::max_element(probabilities.begin(), probabilities.end());
    const auto nan = std::find_if(probabilities.begin(), probabilities.end(),
                                  [](double logit) { return std::isnan(logit); });
    require_finite(nan == probabilities.end() ? -1 : nan - probabilities.begin(), *best);
    if (options.temperature == 0) return keep_only(best - probabilities.begin(), probabilities);
    const auto scaled = [t = static_cast<float>(options.temperature)](double logit) {
      return static_cast<double>(static_cast<float>(logit) / t);
    };
    const double largest = scaled(*best);
    if (!std::isfinite(largest)) return keep_only(best - probabilities.begin(), probabilities);
    for (double& p : probabilities) p = std::exp(scaled(p) - largest);
    normalise(probabilities);
    if ((options.top_k > 0 && options.top_k < vocab) || options.top_p < 1)
      keep_first(options, probabilities);
    if (options.min_p > 0) {
      const double least =
          options.min_p * *std::max_element(probabilities.begin(), probabilities.end());
      for (double& p : probabilities)
        if (p < least) p = 0;
      normalise(probabilities);
    }
  }

  /// The token at which the cumulated probability passes u in [0, 1).
  static std::int32_t draw(const std::vector<double>& probabilities, double u) {
    double total = 0;
    for (const double p : probabilities) total += p;
    double sum = 0;
    std::int32_t last = 0;
    for (std::size_t i = 0; i < probabilities.size(); ++i) {
      if (probabilities[i] <= 0) continue;
      sum += probabilities[i];
      last = static_cast<std::int32_t>(i);
      if (u * total < sum) break;
    }
    return last;
  }

  /// Number `position` of a sequence's stream `name`, in [0, 1) with 53 bits: it depends neither on
  /// the batch nor on what was drawn before.
  static double random(std::uint64_t seed, std::string_view name, Index position) {
    const auto block = Philox(seed, hash_name(name))(static_cast<std::uint64_t>(position));
    const std::uint64_t bits = (std::uint64_t{block.word[0]} << 32) | block.word[1];
    return static_cast<double>(bits >> 11) * 0x1p-53;
  }

  /// Errors   std::invalid_argument where a logit is NaN (the first, or -1) or the largest is
  ///          infinite.
  static void require_finite(Index nan, double largest) {
    if (nan >= 0)
      throw std::invalid_argument("Sampler: logit " + std::to_string(nan) +
                                  " (nan) must be a number");
    if (!std::isfinite(largest))
      throw std::invalid_argument("Sampler: largest logit (" + std::to_string(largest) +
                                  ") must be finite");
  }

 private:
  static void keep_only(Index token, std::vector<double>& probabilities) {
    std::fill(probabilities.begin(), probabilities.end(), 0.0);
    probabilities[static_cast<std::size_t>(token)] = 1;
  }

  static void penalise(double penalty, const std::vector<std::int32_t>& history,
                       std::vector<double>& logits) {
    std::vector<bool> seen(logits.size());
    for (const std::int32_t id : history) {
      const auto i = static_cast<std::size_t>(id);
      if (seen[i]) continue;
      seen[i] = true;
      logits[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
    }
  }

  static void normalise(std::vector<double>& probabilities) {
    const double total = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
    for (double& p : probabilities) p /= total;
  }

  // top-k, then top-p of what it left.
  void keep_first(const SamplingOptions& options, std::vector<double>& probabilities) {
    order_.clear();
    for (std::size_t i = 0; i < probabilities.size(); ++i)
      if (probabilities[i] > 0) order_.push_back(static_cast<std::int32_t>(i));
    const auto before = [&](std::int32_t a, std::int32_t b) {
      const double pa = probabilities[static_cast<std::size_t>(a)];
      const double pb = probabilities[static_cast<std::size_t>(b)];
      return pa != pb ? pa > pb : a < b;
    };
    if (options.top_k > 0 && options.top_k < static_cast<Index>(order_.size())) {
      std::nth_element(order_.begin(), order_.begin() + options.top_k, order_.end(), before);
      for (auto i = order_.begin() + options.top_k; i != order_.end(); ++i)
        probabilities[static_cast<std::size_t>(*i)] = 0;
      order_.resize(static_cast<std::size_t>(options.top_k));
      normalise(probabilities);
    }
    if (options.top_p >= 1) return;
    // Most probable first, and no further than needed.
    const auto later = [&](std::int32_t a, std::int32_t b) { return before(b, a); };
    std::make_heap(order_.begin(), order_.end(), later);
    auto end = order_.end();
    for (double sum = 0; end != order_.begin() && sum < options.top_p;) {
      std::pop_heap(order_.begin(), end, later);
      sum += probabilities[static_cast<std::size_t>(*--end)];
    }
    for (auto i = order_.begin(); i != end; ++i) probabilities[static_cast<std::size_t>(*i)] = 0;
    normalise(probabilities);
  }

  std::vector<std::int32_t> order_;
};

/// log softmax(logits)[token], in nats: the model's own probability, before any option applies.
template <class A>
double log_probability(const A* logits, Index vocab, std::int32_t token) {
  double largest = static_cast<double>(logits[0]), sum = 0;
  for (Index i = 1; i < vocab; ++i) largest = std::max(largest, static_cast<double>(logits[i]));
  for (Index i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i]) - largest);
  return static_cast<double>(logits[token]) - largest - std::log(sum);
}

}  // namespace dsv3
