#include <doctest/doctest.h>

#include <dsv3/train/schedule.hpp>
#include <limits>

using namespace dsv3;

namespace {

constexpr Schedule v3;
constexpr Index billion = 1'000'000'000, trillion = 1000 * billion;

// Values are computed by the same few operations as the expected ones: a few roundings apart.
doctest::Approx close(double value) { return doctest::Approx(value).epsilon(1e-13); }

}  // namespace

TEST_CASE("Schedule::lr has DeepSeek-V3's numbers in every phase") {
  CHECK(v3.lr(2000, 0) == 2.2e-4);
  CHECK(v3.lr(5000, 10 * trillion - 1) == 2.2e-4);
  CHECK(v3.lr(5000, 10 * trillion) == close(2.2e-4));
  CHECK(v3.lr(5000, 12'150 * billion) == close(1.21e-4));  // half way: the mean of both ends
  // A sixth of the cosine: cos(pi / 6) = sqrt(3) / 2.
  const Index sixth = 10 * trillion + 4'300 * billion / 6;
  CHECK(v3.lr(5000, sixth) ==
        doctest::Approx(2.2e-5 + 0.99e-4 * (1 + 0.86602540378443865)).epsilon(1e-11));
  CHECK(v3.lr(5000, 14'300 * billion - 1) == close(2.2e-5));
  CHECK(v3.lr(5000, 14'300 * billion) == 2.2e-5);
  CHECK(v3.lr(5000, 14'633 * billion - 1) == 2.2e-5);
  CHECK(v3.lr(5000, 14'633 * billion) == 7.3e-6);
  CHECK(v3.lr(5000, 15 * trillion) == 7.3e-6);
}

TEST_CASE("Schedule::lr warms up over steps that count from 1") {
  CHECK(v3.lr(1, 0) == close(1.1e-7));  // 2.2e-4 / 2000: the first step is not lost
  CHECK(v3.lr(1000, 0) == close(1.1e-4));
  CHECK(v3.lr(1999, 0) == close(2.2e-4 * 1999 / 2000));
  CHECK(v3.lr(1000, 12'150 * billion) == close(1.1e-4));  // whatever the tokens
}

TEST_CASE("Schedule::bias_gamma is exactly 0 in the last phase, also when it begins there") {
  CHECK(v3.bias_gamma(0) == 1e-3);
  CHECK(v3.bias_gamma(14'300 * billion - 1) == 1e-3);
  CHECK(v3.bias_gamma(14'300 * billion) == 0.0);
  // A resumed run has nothing but its counters: a fresh object says the same.
  CHECK(Schedule{}.bias_gamma(14'700 * billion) == 0.0);
}

TEST_CASE("Schedule::mtp_lambda falls from 0.3 to 0.1 at 10T tokens") {
  CHECK(v3.mtp_lambda(0) == 0.3);
  CHECK(v3.mtp_lambda(10 * trillion - 1) == 0.3);
  CHECK(v3.mtp_lambda(10 * trillion) == 0.1);
}

TEST_CASE("Schedule::batch rises linearly from 3072 to 15360 sequences over 469B tokens") {
  CHECK(v3.batch(0) == 3072);
  CHECK(v3.batch(234'500'000'000) == 9216);  // half way: (3072 + 15360) / 2
  CHECK(v3.batch(469 * billion) == 15360);
  CHECK(v3.batch(14 * trillion) == 15360);
  CHECK(v3.batch(0, 1000) == 3000);                     // a multiple of ranks times micro-batch
  CHECK(v3.batch(0, 4000) == 4000);                     // and never none
  CHECK(v3.batch(469 * billion) * 4096 == 62'914'560);  // tokens a step, spec 8
}

TEST_CASE("Schedule::scaled keeps the proportions of the run and of the rates") {
  constexpr Schedule small = v3.scaled(148'000, 1e-2, 20);
  static_assert(small.constant_until == 100'000);
  static_assert(small.cosine_until == 143'000);
  static_assert(small.low_until == 146'330);
  static_assert(small.end == 148'000);
  static_assert(small.mtp_lambda_until == 100'000);
  static_assert(small.bias_until == 143'000);
  static_assert(small.batch_until == 4'690);
  CHECK(small.lr(1, 0) == close(5e-4));
  CHECK(small.lr(20, 0) == 1e-2);
  CHECK(small.lr(100, 121'500) == close(5.5e-3));
  CHECK(small.lr(100, 143'000) == close(1e-3));
  CHECK(small.lr(100, 146'330) == close(1e-2 * 7.3 / 220));
  CHECK(small.bias_gamma(143'000) == 0.0);
  CHECK(v3.scaled(v3.end, v3.peak_lr, v3.warmup_steps) == v3);
}

TEST_CASE("Schedule::constant_lr is one rate from the first step to the last") {
  constexpr Schedule extension = v3.constant_lr(7.3e-6);
  for (const Index tokens : {Index{0}, 12 * trillion, 15 * trillion})
    CHECK(extension.lr(1, tokens) == close(7.3e-6));
}

TEST_CASE("StepDecay has DeepSeek-V2's steps at 60 % and 90 % of the tokens") {
  constexpr StepDecay v2;
  CHECK(v2.lr(1, 0) == close(1.2e-7));
  CHECK(v2.lr(2000, 0) == 2.4e-4);
  CHECK(v2.lr(9000, 4'859 * billion) == 2.4e-4);
  CHECK(v2.lr(9000, 4'861 * billion) == close(2.4e-4 * 0.316));
  CHECK(v2.lr(9000, 7'291 * billion) == close(2.4e-4 * 0.316 * 0.316));
}

TEST_CASE("validate(Schedule) names the broken rule and the values") {
  validate(v3);
  Schedule s;
  SUBCASE("phases out of order") {
    s.cosine_until = 5;
    CHECK_THROWS_WITH_AS(
        validate(s), "Schedule: constant_until (10000000000000) must be at most cosine_until (5)",
        std::invalid_argument);
  }
  SUBCASE("a negative rate") {
    s.peak_lr = -1;
    CHECK_THROWS_WITH_AS(validate(s), "Schedule: peak_lr (-1.000000) must be at least 0 and finite",
                         std::invalid_argument);
  }
  SUBCASE("not a number") {
    s.mtp_lambda_last = std::numeric_limits<double>::quiet_NaN();
    CHECK_THROWS_AS(validate(s), std::invalid_argument);
  }
  SUBCASE("a shrinking batch") {
    s.batch_last = 3;
    CHECK_THROWS_WITH_AS(validate(s), "Schedule: batch_first (3072) must be at most batch_last (3)",
                         std::invalid_argument);
  }
  SUBCASE("step 0") {
    CHECK_THROWS_WITH_AS(v3.lr(0, 0), "Schedule::lr: first step (1) must be at most step (0)",
                         std::invalid_argument);
  }
  SUBCASE("negative tokens") {
    CHECK_THROWS_WITH_AS(v3.lr(1, -7), "Schedule::lr: zero (0) must be at most tokens (-7)",
                         std::invalid_argument);
  }
}
