#include <doctest/doctest.h>
#include <unistd.h>

#include "../../examples/fp8_study/study_page.hpp"

using namespace example;
namespace fs = std::filesystem;

namespace {

struct File {
  std::string path = (fs::temp_directory_path() / ("dsv3_study_" + std::to_string(::getpid())));
  ~File() { fs::remove(path); }
  std::string content() const {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
};

Index count(const std::string& text, const std::string& word) {
  Index n = 0;
  for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++n;
  return n;
}

Measurements made_up_measurements(Index step) {
  Measurements m;
  m.step = step;
  for (const Index layer : {0, 1})
    for (const char* projection : {"q_a", "down"})
      m.layers.push_back({{layer, "", projection}, {{{1, 1600}, {4, 1600}, {9, 1600}}}});
  for (CodeCounts& c : m.kinds) c = {100, 2, 1, {{-3, 40}, {8, 50}}, 0.25};
  return m;
}

Run made_up_run(double loss, bool looks) {
  Run run;
  run.loss.assign(30, loss);
  run.seconds = 2;
  run.timed_tokens = 300;
  if (looks)
    for (const Index step : {1, 30}) run.measurements.push_back(made_up_measurements(step));
  return run;
}

// BF16, a variant with FP8 and one that has not run yet; losses of two seeds.
Study made_up_study() {
  Study study;
  study.options.steps = 30;
  study.options.seeds = 2;
  study.options.layers = 2;
  study.results = {
      {{"bf16", "BF16", false, nullptr}, {made_up_run(2, false), made_up_run(4, false)}},
      {{"fp8", "A <recipe>", true, nullptr}, {made_up_run(2.02, true), made_up_run(4.12, false)}},
      {{"later", "Not yet", true, nullptr}, {}}};
  return study;
}

}  // namespace

TEST_CASE("the moving average starts at the first value and forgets a tenth a step") {
  CHECK(moving_average({}).empty());
  const auto s = moving_average({1, 1, 11});
  CHECK(s[0] == 1);
  CHECK(s[1] == doctest::Approx(1).epsilon(1e-15));
  CHECK(s[2] == doctest::Approx(2).epsilon(1e-15));
}

TEST_CASE("gaps compare a variant with BF16 from the same seed, over the last third") {
  Study study = made_up_study();
  CHECK(study.last_steps() == 10);
  Spread gap = study.gap(study.results[1]);
  CHECK(gap.least == doctest::Approx(0.01).epsilon(1e-12));
  CHECK(gap.most == doctest::Approx(0.03).epsilon(1e-12));
  CHECK(gap.mean == doctest::Approx(0.02).epsilon(1e-12));
  CHECK(study.loss(study.results[1]).mean == doctest::Approx(3.07).epsilon(1e-12));
  for (const double each : study.gaps(study.results[1]))
    CHECK(each == doctest::Approx(0.02).epsilon(1e-12));
  study.results[1].runs[0].loss[20] += 1;  // the first of the last third
  CHECK(study.gap(study.results[1]).most == doctest::Approx((2.02 + 0.1) / 2 - 1).epsilon(1e-12));
  study.results[1].runs[0].loss[19] += 100;  // before it
  CHECK(study.gap(study.results[1]).most == doctest::Approx((2.02 + 0.1) / 2 - 1).epsilon(1e-12));
  study.options.steps = 2;
  CHECK(study.last_steps() == 1);
  study.options.steps = 10'000;
  CHECK(study.last_steps() == 100);
}

TEST_CASE("the file of numbers has every curve and measurement of what has run") {
  const auto j = to_json(made_up_study());
  REQUIRE(j["variants"].size() == 2);
  const auto& fp8 = j["variants"][1];
  CHECK(fp8["name"] == "fp8");
  CHECK(fp8["runs"].size() == 2);
  CHECK(fp8["runs"][1]["seed"] == 2);
  CHECK(fp8["runs"][1]["loss"].size() == 30);
  const auto& m = fp8["measurements"][1];
  CHECK(m["step"] == 30);
  CHECK(m["relative_errors"][0]["projection"] == "q_a");
  CHECK(m["relative_errors"][0]["y"] == 1.0 / 40);  // sqrt(1 / 1600)
  CHECK(m["relative_errors"][0]["dw"] == 3.0 / 40);
  CHECK(m["tensors"].size() == kind_names.size());
  CHECK(m["tensors"][0]["by_exponent"]["-3"] == 40);
  CHECK(m["products_not_measured"] == 0);
  CHECK(j["options"]["--steps"] == 30);
}

TEST_CASE("the page is one file with every plot, and refers to nothing outside") {
  const File file;
  write_page(file.path, made_up_study(), {"Some text", {{"Run", {{"threads", "2"}}}}});
  const std::string page = file.content();
  for (const char* word :
       {"What this shows, and what it cannot", "Training loss", "Gap to BF16", "mean over 2 seeds",
        "+2.000 %", "+1.00 % to +3.00 %", "2.50 %", "5.00 %", "7.50 %", "A &lt;recipe&gt;", "150",
        "Underflow", "2.000 %", "Saturation", "1.000 %", "Largest inputs", "layer 1", "threads"})
    CHECK_MESSAGE(page.find(word) != std::string::npos, word);
  for (const char* name : kind_names) CHECK_MESSAGE(page.find(name) != std::string::npos, name);
  CHECK(page.find("Not yet") == std::string::npos);
  // 2 of losses, 3 of errors, one for each kind, 2 of largest values; and 2 keys of one color.
  CHECK(count(page, "<svg") == 2 + 3 + Index{kind_names.size()} + 2 + 2);
  for (const char* tag : {"svg", "figure", "table", "tr", "td", "th", "div", "details", "text"})
    CHECK_MESSAGE(
        count(page, std::string("<") + tag + " ") + count(page, std::string("<") + tag + ">") ==
            count(page, std::string("</") + tag + ">"),
        tag);
  for (const char* outside : {"http", "src=", "href=", "url("})
    CHECK(page.find(outside) == std::string::npos);
}

TEST_CASE("the page stands a variant that diverged and one without measurements") {
  const File file;
  Study study = made_up_study();
  for (Run& run : study.results[1].runs) {
    run.loss.assign(30, std::nan(""));
    run.measurements.clear();
  }
  study.results[1].runs[0].skipped = 30;
  write_page(file.path, study, {});
  const std::string page = file.content();
  CHECK(page.find(">nan") == std::string::npos);
  CHECK(page.find("inf") == std::string::npos);
  CHECK(page.find("30 steps skipped: gradient not finite") != std::string::npos);
  CHECK(page.find("Products of codes") == std::string::npos);
  CHECK(page.find("</html>") != std::string::npos);
}
