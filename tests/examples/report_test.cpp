#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>

#include "../../examples/report.hpp"

using namespace example;
namespace fs = std::filesystem;

namespace {

// A folder of its own, removed at the end.
struct Folder {
  fs::path at = fs::temp_directory_path() / ("dsv3_report_" + std::to_string(::getpid()));
  Folder() { fs::create_directories(at); }
  ~Folder() { fs::remove_all(at); }
  std::string path(const char* name) const { return (at / name).string(); }
};

std::string content(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

Index count(const std::string& text, const std::string& word) {
  Index n = 0;
  for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++n;
  return n;
}

std::vector<Metrics> made_up(Index steps) {
  std::vector<Metrics> all;
  for (Index s = 1; s <= steps; ++s) {
    const auto x = static_cast<double>(s);
    Metrics m;
    m.step = s;
    m.tokens = 512 * s;
    m.loss = 1 + 4 / x;
    m.mtp_loss = {2 + 4 / x, 3 + 4 / x};
    m.balance_loss = 1e-4;
    m.grad_norm = 1 / x;
    m.max_violation = 2 / x;
    m.lr = 1e-3;
    m.seconds = 0.25;
    m.tokens_per_second = 2048;
    m.load = {{4, 0, 0, 0}, {1, 1, 1, 1}};
    if (s % 10 == 0) {
      m.held_out = 1.1 + 4 / x;
      m.held_out_mtp = {2.1, 3.1};
    }
    all.push_back(m);
  }
  return all;
}

}  // namespace

TEST_CASE("metrics survive their JSON line, numbers that JSON does not have included") {
  Metrics m = made_up(10).back();
  m.loss = std::nan("");
  const Metrics back = from_json(nlohmann::json::parse(to_json(m).dump()));
  CHECK(std::isnan(back.loss));
  m.loss = 0.1 + 0.2;  // needs 17 digits
  CHECK(from_json(nlohmann::json::parse(to_json(m).dump())).loss == m.loss);
  CHECK(back.mtp_loss == m.mtp_loss);
  CHECK(back.load == m.load);
  CHECK(back.held_out == m.held_out);
  CHECK(back.tokens == 5120);
  CHECK_FALSE(from_json(nlohmann::json::parse(to_json(made_up(1)[0]).dump())).held_out);
}

TEST_CASE("metrics.jsonl is continued from the step that was saved, without what came after") {
  Folder folder;
  const auto path = folder.path("metrics.jsonl");
  const auto all = made_up(12);
  {
    MetricsFile file(path, {});
    for (const Metrics& m : all) {
      file.add(m);
      CHECK(count(content(path), "\n") == m.step);  // each line is there at once
    }
  }
  std::ofstream(path, std::ios::app) << "{\"step\": 13, \"tok";  // cut off by a crash
  const auto kept = read_metrics(path, 7);
  REQUIRE(kept.size() == 7);
  MetricsFile file(path, kept);
  CHECK(count(content(path), "\n") == 7);
  file.add(all[7]);
  CHECK(read_metrics(path, 100).size() == 8);
  CHECK(read_metrics(folder.path("none"), 100).empty());
}

TEST_CASE("a metrics file that is not one of ours is refused with its line") {
  Folder folder;
  const auto path = folder.path("metrics.jsonl");
  std::ofstream(path) << to_json(made_up(1)[0]).dump() << "\n{}\n";
  try {
    read_metrics(path, 9);
    FAIL("no error");
  } catch (const std::invalid_argument& error) {
    CHECK(std::string(error.what()).find("read_metrics: line 2 of '" + path + "': ") == 0);
  }
}

TEST_CASE("the report is one file with every plot, and refers to nothing outside") {
  Folder folder;
  const auto path = folder.path("report.html");
  Report report{"A <run> & more",
                "some text",
                {{"held-out", "1.2"}},
                3.4,
                2.6,
                {"layer 1", "MTP 1"},
                {{"Model", {{"hidden_size", "64"}}}}};
  write_report(path, report, made_up(400));
  const std::string page = content(path);
  CHECK(page.find("<h1>A &lt;run&gt; &amp; more</h1>") != std::string::npos);
  for (const char* word :
       {"Loss", "Learning rate", "MaxVio", "Throughput", "Gradient norm", "Expert load",
        "train (smoothed)", "held-out", "MTP depth 1", "MTP depth 2", "unigram entropy 3.400",
        "bigram entropy 2.600", "nats per token", "tokens per second", "layer 1", "MTP 1",
        "hidden_size"})
    CHECK_MESSAGE(page.find(word) != std::string::npos, word);
  CHECK(count(page, "<svg") == 6);
  for (const char* tag : {"svg", "figure", "table", "section", "div", "text"})
    CHECK(count(page, std::string("<") + tag + " ") + count(page, std::string("<") + tag + ">") ==
          count(page, std::string("</") + tag + ">"));
  for (const char* outside : {"http", "src=", "href=", "url("})
    CHECK(page.find(outside) == std::string::npos);
  CHECK(page.size() < 300'000);
}

TEST_CASE("the heat map paints an expert with every token and those without one") {
  Folder folder;
  const auto path = folder.path("report.html");
  write_report(path, {}, made_up(1));
  const std::string page = content(path);
  // Layer 0: loads 4, 0, 0, 0 of mean 1; layer 1 is balanced and stays background.
  CHECK(count(page, "<path class=\"o8\" d=\"M") == 1);
  const auto none = page.find("<path class=\"u8\" d=\"");
  REQUIRE(none != std::string::npos);
  CHECK(count(page.substr(none, page.find('>', none) - none), "z") == 3);
}

TEST_CASE("the report stands what a run can do: no step, one step, losses that are not finite") {
  Folder folder;
  const auto path = folder.path("report.html");
  for (const Index steps : {0, 1, 3}) {
    auto metrics = made_up(steps);
    if (steps == 3)
      for (Metrics& m : metrics) m.loss = m.grad_norm = std::nan("");
    write_report(path, {}, metrics);
    const std::string page = content(path);
    CHECK(page.find("nan") == std::string::npos);
    CHECK(page.find("inf") == std::string::npos);
    CHECK(page.find("</html>") != std::string::npos);
  }
}

TEST_CASE("the report says where it cannot be written") {
  CHECK_THROWS_WITH_AS(write_report("/dev/null/report.html", {}, {}),
                       "AtomicFile: create '/dev/null/report.html.tmp': Not a directory",
                       std::runtime_error);
}
