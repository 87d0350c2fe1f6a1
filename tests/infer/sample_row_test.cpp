#include <doctest/doctest.h>

#include <dsv3/backend/cpu.hpp>
#include <dsv3/infer/sample_row.hpp>
#include <limits>

using namespace dsv3;

namespace {

struct Sampled {
  std::int32_t token;
  double log_probability;
  std::vector<double> p;  // what it was drawn from
};

// By the row kernel, of which every row is one question.
Sampled by_row(const std::vector<float>& logits, const SamplingOptions& options, double u,
               const std::vector<std::int32_t>& seen) {
  Cpu cpu(1);
  const Index V = static_cast<Index>(logits.size());
  std::vector<double> p(logits.size());
  detail::SampleRule rule(options, u);
  rule.seen = static_cast<Index>(seen.size());
  detail::SampledRow row{};
  for_each_row(cpu, 1,
               detail::SampleRow<float>{{logits.data(), {1, V}},
                                        {&rule, {1}},
                                        {seen.data(), {rule.seen}},
                                        {p.data(), {1, V}},
                                        {&row, {1}}});
  Sampler::require_finite(row.first_nan, row.largest);
  return {row.token, row.log_probability, p};
}

// By Sampler.
Sampled on_host(const std::vector<float>& logits, const SamplingOptions& options, double u,
                const std::vector<std::int32_t>& seen) {
  const Index V = static_cast<Index>(logits.size());
  Sampled s;
  Sampler().distribution(logits.data(), V, options, seen, s.p);
  s.token = Sampler::draw(s.p, u);
  s.log_probability = log_probability(logits.data(), V, s.token);
  return s;
}

void check_alike(const std::vector<float>& logits, const SamplingOptions& options, double u,
                 const std::vector<std::int32_t>& seen = {}) {
  const Sampled a = by_row(logits, options, u, seen), b = on_host(logits, options, u, seen);
  CHECK(a.token == b.token);
  // Sums of numbers up to 1 in another order.
  CHECK(std::abs(a.log_probability - b.log_probability) <=
        1e-15 * static_cast<double>(a.p.size()) + 1e-15);
  if (options.temperature < 1e-30) return;  // greedy: the kernel leaves no distribution
  double worst = 0;
  for (std::size_t i = 0; i < a.p.size(); ++i) {
    CHECK((a.p[i] == 0) == (b.p[i] == 0));
    worst = std::max(worst, std::abs(a.p[i] - b.p[i]));
  }
  CHECK(worst <= 1e-15 * static_cast<double>(a.p.size()));  // sums in another order
}

std::vector<float> random_logits(std::size_t vocab, std::uint64_t stream) {
  const Philox philox(3, stream);
  std::vector<float> logits(vocab);
  for (std::size_t i = 0; i < vocab; ++i) logits[i] = 4 * normal(philox, i);
  return logits;
}

}  // namespace

TEST_CASE("SampleRow is greedy at temperature 0, ties to the lowest id") {
  const Sampled s = by_row({1, 3, 3, 2}, {}, 0.9, {});
  CHECK(s.token == 1);
  // log(e^3 / (e + 2 e^3 + e^2))
  CHECK(s.log_probability == doctest::Approx(-0.9185).epsilon(1e-3));
}

TEST_CASE("SampleRow draws what Sampler draws, from the same distribution") {
  for (std::uint64_t stream = 0; stream < 40; ++stream) {
    const auto logits = random_logits(1 + stream * 13, stream);
    const double u = Sampler::random(1, "u", static_cast<Index>(stream));
    std::vector<std::int32_t> seen;
    for (std::size_t i = stream % 5; i < logits.size(); i += 7)
      seen.push_back(static_cast<std::int32_t>(i));
    for (const double temperature : {0.0, 0.3, 1.0, 5.0})
      for (const double penalty : {1.0, 1.7})
        for (const Index top_k : {Index{0}, Index{1}, Index{5}, Index{1000}})
          for (const double top_p : {1.0, 0.9, 0.3})
            for (const double min_p : {0.0, 0.2})
              check_alike(logits,
                          {.repetition_penalty = penalty,
                           .temperature = temperature,
                           .top_k = top_k,
                           .top_p = top_p,
                           .min_p = min_p},
                          u, seen);
  }
}

TEST_CASE("SampleRow keeps of equal tokens those with the lowest ids") {
  const std::vector<float> equal(9, 2.0f);
  for (const double u : {0.0, 0.24, 0.26, 0.6, 0.99}) {
    check_alike(equal, {.temperature = 1, .top_k = 4}, u);
    check_alike(equal, {.temperature = 1, .top_p = 0.3}, u);
  }
  const auto kept = by_row(equal, {.temperature = 1, .top_k = 4}, 0.99, {});
  CHECK(kept.token == 3);
  CHECK(kept.p == std::vector<double>{0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0, 0});
  // 1/2, 1/4, 1/8, 1/8 as in Sampler's tests: 0.75 is reached by two, a little more needs a third.
  const std::vector<float> halves = {std::log(0.25f), std::log(0.5f), std::log(0.125f),
                                     std::log(0.125f)};
  CHECK(by_row(halves, {.temperature = 1, .top_p = 0.8}, 0.999, {}).token == 2);
  CHECK(by_row(halves, {.temperature = 1, .top_p = 0.9}, 0.999, {}).token == 3);
}

TEST_CASE("SampleRow draws no token without probability, whatever the number") {
  for (const double u : {0.0, 0.5, 0x1.fffffffffffffp-1}) {
    const auto s = by_row({-900, 1, -900, 1, -900}, {.temperature = 0.5}, u, {});
    CHECK((s.token == 1 || s.token == 3));
  }
}

TEST_CASE("A temperature under which the largest logit overflows is greedy") {
  const double tiny = std::numeric_limits<float>::min();
  check_alike({10, 30, 20, 30}, {.temperature = tiny}, 0.9);
  CHECK(by_row({10, 30, 20, 30}, {.temperature = tiny, .top_k = 2}, 0.9, {}).token == 1);
}

TEST_CASE("SampleRow refuses logits that are no numbers, in Sampler's words") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH_AS(by_row({1, nan, 2, nan}, {.temperature = 1}, 0.5, {}),
                       "Sampler: logit 1 (nan) must be a number", std::invalid_argument);
  CHECK_THROWS_WITH_AS(by_row({1, infinity}, {}, 0.5, {}),
                       "Sampler: largest logit (inf) must be finite", std::invalid_argument);
  CHECK_THROWS_WITH_AS(by_row({-infinity, -infinity}, {}, 0.5, {}),
                       "Sampler: largest logit (-inf) must be finite", std::invalid_argument);
}
