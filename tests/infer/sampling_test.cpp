#include <doctest/doctest.h>

#include <dsv3/infer/sampling.hpp>
#include <limits>

using namespace dsv3;

namespace {

std::vector<double> distribution(const std::vector<double>& logits, const SamplingOptions& options,
                                 const std::vector<std::int32_t>& history = {}) {
  std::vector<double> p;
  Sampler().distribution(logits.data(), static_cast<Index>(logits.size()), options, history, p);
  return p;
}

// Logits of the probabilities 1/2, 1/4, 1/8, 1/8.
const std::vector<double> halves = {std::log(0.25), std::log(0.5), std::log(0.125),
                                    std::log(0.125)};

// Within what rounding the logits to float costs: half an ulp of numbers below 4, three times.
void check_close(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(a[i] == doctest::Approx(b[i]).epsilon(4e-7));
}

}  // namespace

TEST_CASE("Temperature 0 is the largest logit, ties the lowest id") {
  check_close(distribution({1, 3, 3, 2}, {}), {0, 1, 0, 0});
}

TEST_CASE("Temperature divides logits") {
  check_close(distribution(halves, {.temperature = 1}), {0.25, 0.5, 0.125, 0.125});
  // 1/16, 1/4, 1/64, 1/64 over their sum 22/64.
  check_close(distribution(halves, {.temperature = 0.5}),
              {4 / 22.0, 16 / 22.0, 1 / 22.0, 1 / 22.0});
}

TEST_CASE("top_k keeps the k most probable, ties the lowest ids") {
  check_close(distribution(halves, {.temperature = 1, .top_k = 3}), {2 / 7.0, 4 / 7.0, 1 / 7.0, 0});
  check_close(distribution(halves, {.temperature = 1, .top_k = 9}), {0.25, 0.5, 0.125, 0.125});
}

TEST_CASE("top_p keeps the fewest that reach p") {
  check_close(distribution(halves, {.temperature = 1, .top_p = 0.5}), {0, 1, 0, 0});
  check_close(distribution(halves, {.temperature = 1, .top_p = 0.51}), {1 / 3.0, 2 / 3.0, 0, 0});
  check_close(distribution(halves, {.temperature = 1, .top_p = 0.8}),
              {2 / 7.0, 4 / 7.0, 1 / 7.0, 0});
}

TEST_CASE("top_p counts in what top_k left") {
  // After top_k = 2 the largest has 2/3.
  check_close(distribution(halves, {.temperature = 1, .top_k = 2, .top_p = 0.6}), {0, 1, 0, 0});
}

TEST_CASE("min_p compares with the largest") {
  check_close(distribution(halves, {.temperature = 1, .min_p = 0.3}), {1 / 3.0, 2 / 3.0, 0, 0});
}

TEST_CASE("The repetition penalty divides positive logits and multiplies negative ones, once") {
  const auto p = distribution({2, -1, 0.5}, {.repetition_penalty = 2, .temperature = 1}, {0, 1, 0});
  const double a = std::exp(1.0), b = std::exp(-2.0), c = std::exp(0.5), sum = a + b + c;
  check_close(p, {a / sum, b / sum, c / sum});
}

TEST_CASE("draw inverts the cumulated distribution and never returns what has no probability") {
  const std::vector<double> p = {0, 0.25, 0, 0.75, 0};
  CHECK(Sampler::draw(p, 0) == 1);
  CHECK(Sampler::draw(p, 0.2499) == 1);
  CHECK(Sampler::draw(p, 0.25) == 3);
  CHECK(Sampler::draw(p, std::nextafter(1.0, 0.0)) == 3);
}

TEST_CASE("Random numbers depend on seed, stream and position alone and spread over [0, 1)") {
  CHECK(Sampler::random(1, "token", 5) == Sampler::random(1, "token", 5));
  CHECK(Sampler::random(1, "token", 5) != Sampler::random(1, "draft", 5));
  CHECK(Sampler::random(1, "token", 5) != Sampler::random(2, "token", 5));
  double sum = 0;
  for (Index i = 0; i < 10000; ++i) {
    const double u = Sampler::random(3, "token", i);
    REQUIRE(u >= 0);
    REQUIRE(u < 1);
    sum += u;
  }
  CHECK(sum / 10000 == doctest::Approx(0.5).epsilon(0.03));  // five standard deviations: 0.0144
}

TEST_CASE("log_probability is the model's own") {
  CHECK(log_probability(halves.data(), 4, 1) == doctest::Approx(std::log(0.5)));
}

TEST_CASE("Options out of range and logits that are no numbers are errors") {
  const auto message = [](SamplingOptions options, const char* text) {
    CHECK_THROWS_WITH_AS(options.validate(), text, std::invalid_argument);
  };
  message({.temperature = -1},
          "SamplingOptions: temperature (-1.000000) must be 0, or a positive float");
  message({.top_k = -1}, "SamplingOptions: top_k (-1.000000) must be at least 0");
  message({.top_p = 0}, "SamplingOptions: top_p (0.000000) must be above 0 and at most 1");
  message({.min_p = 1.5}, "SamplingOptions: min_p (1.500000) must be at least 0 and at most 1");
  message({.repetition_penalty = 0},
          "SamplingOptions: repetition_penalty (0.000000) must be above 0");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH_AS(distribution({1, nan}, {}), "Sampler: logit 1 (nan) must be a number",
                       std::invalid_argument);
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK_THROWS_WITH_AS(distribution({1, infinity}, {}),
                       "Sampler: largest logit (inf) must be finite", std::invalid_argument);
}
