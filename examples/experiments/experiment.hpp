// What the programs of this folder share: options, seeds, progress, variants of one recipe.
#pragma once

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <dsv3/io/config_json.hpp>
#include <thread>

#include "section.hpp"

namespace experiment {

struct Options {
  double scale = 1;
  Index seeds = 3, threads = 0;
  std::string out = "experiments";
  std::vector<std::string> texts;

  Index steps(Index at_scale_1) const {
    return std::max<Index>(2, static_cast<Index>(static_cast<double>(at_scale_1) * scale + 0.5));
  }
};

/// A recipe under a name. The first of a list is what the others are compared with.
struct Variant {
  std::string name;
  Recipe recipe;
  std::vector<Run> runs = {};  ///< one a seed

  /// Mean and range over the seeds of f(run).
  Spread over_seeds(auto&& f) const {
    std::vector<double> values;
    for (const Run& run : runs) values.push_back(f(run));
    return Spread::of(values);
  }
};

/// Says on one line of the terminal how far a program is.
class ProgressLine {
 public:
  explicit ProgressLine(Index steps) : steps_(steps) {}

  void step(const std::string& what) {
    const bool last = ++done_ == steps_;
    if (!(live_ || last)) return;
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start_;
    const double left =
        passed.count() / static_cast<double>(done_) * static_cast<double>(steps_ - done_);
    std::printf("%s%s  %td/%td steps  ETA %s%s", live_ ? "\r\033[K" : "", what.c_str(), done_,
                steps_, example::minutes(left).c_str(), !live_ || last ? "\n" : "");
    std::fflush(stdout);
  }

 private:
  bool live_ = ::isatty(STDOUT_FILENO);
  Index steps_, done_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// The fields in which a variant differs from another: "n_group 4 -> 1".
inline std::string differences(const Recipe& from, const Recipe& to) {
  std::string text;
  const auto add = [&](const std::string& name, const std::string& a, const std::string& b) {
    if (a != b) text += (text.empty() ? "" : ", ") + name + ' ' + a + " -> " + b;
  };
  const auto fields = [](const Recipe& r) {
    return nlohmann::ordered_json::parse(dsv3::config_to_json(r.config));
  };
  const auto a = fields(from), b = fields(to);
  for (const auto& [name, value] : b.items())
    add(name, a.contains(name) ? a[name].dump() : "-", value.dump());
  add("bias_gamma", example::number(from.bias_gamma), example::number(to.bias_gamma));
  add("balance_alpha", example::number(from.balance_alpha), example::number(to.balance_alpha));
  add("batch", std::to_string(from.batch), std::to_string(to.batch));
  add("length", std::to_string(from.length), std::to_string(to.length));
  return text.empty() ? "the reference" : text;
}

/// Trains every variant from every seed; after(variant, trained) sees each model.
inline void train_all(std::vector<Variant>& variants, const Options& o,
                      const std::vector<DomainText>& texts, Index steps, Index looks,
                      const std::function<void(std::size_t, Trained&)>& after = {}) {
  for (const Variant& v : variants) dsv3::validate(v.recipe.config);
  ProgressLine line(static_cast<Index>(variants.size()) * o.seeds * steps);
  for (Index seed = 1; seed <= o.seeds; ++seed)
    for (std::size_t i = 0; i < variants.size(); ++i) {
      Variant& v = variants[i];
      const auto seen = [&](Trained& trained) {
        if (after) after(i, trained);
      };
      v.runs.push_back(train(
          v.recipe, texts, steps, looks, static_cast<std::uint64_t>(seed),
          static_cast<int>(o.threads),
          [&](Index) { line.step(v.name + ", seed " + std::to_string(seed)); }, seen));
    }
}

/// The mean over the seeds of a value of each evaluation, against the step.
inline example::Curve curve_of(const Variant& v, int color, auto&& f) {
  example::Curve curve{v.name, color, {}};
  for (std::size_t e = 0; e < v.runs.front().evaluations.size(); ++e)
    curve.points.push_back({static_cast<double>(v.runs.front().evaluations[e].step),
                            v.over_seeds([&](const Run& r) { return f(r.evaluations[e]); }).mean});
  return curve;
}

/// Every number of the runs but times, which differ from run to run.
inline nlohmann::ordered_json to_json(const std::vector<Variant>& variants) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const Variant& v : variants) {
    nlohmann::ordered_json runs = nlohmann::ordered_json::array();
    for (const Run& run : v.runs) {
      nlohmann::ordered_json looks = nlohmann::ordered_json::array();
      for (const Evaluation& e : run.evaluations)
        looks.push_back({{"step", e.step},
                         {"loss", e.loss},
                         {"max_violation", e.max_violation},
                         {"domain_loss", e.domain_loss},
                         {"load", e.load},
                         {"nodes", e.copies.nodes},
                         {"between", e.copies.between},
                         {"inside", e.copies.inside}});
      runs.push_back({{"loss", run.loss}, {"evaluations", looks}});
    }
    all.push_back({{"name", v.name},
                   {"differs", differences(variants.front().recipe, v.recipe)},
                   {"runs", runs}});
  }
  return all;
}

/// Reads the options, runs body(options, texts, section), and writes what it left. Exit code 2 with
/// a sentence for what cannot be, before anything is trained or written.
inline int run_program(int argc, char** argv, const std::string& name, auto&& body) {
  Options o;
  CLI::App app("An experiment of dsv3: " + name);
  app.add_option("--scale", o.scale, "factor of the number of steps")
      ->check(CLI::Range(1e-4, 1e4))
      ->capture_default_str();
  app.add_option("--seeds", o.seeds, "runs of each variant")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "0: as many as the machine has")
      ->check(CLI::Range(0, 1024));
  app.add_option("--out", o.out, "folder for NAME.html and NAME.json")->capture_default_str();
  app.add_option("--text", o.texts, "NAME=PATH of a domain; several; else what is installed");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    if (o.threads == 0) o.threads = dsv3::Index(std::max(1u, std::thread::hardware_concurrency()));
    std::vector<DomainText> texts;
    for (const std::string& text : o.texts) texts.push_back(parse_domain(text));
    if (texts.empty()) texts = installed_texts();
    std::error_code failed;
    std::filesystem::create_directories(o.out, failed);
    if (failed || ::access(o.out.c_str(), W_OK) != 0)
      throw std::invalid_argument("--out: folder '" + o.out + "' cannot be written");
    Section section(name);
    body(o, texts, section);
    section.write(o.out);
    std::printf("%s: %s/%s.html and .json\n", name.c_str(), o.out.c_str(), name.c_str());
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s: %s\n", name.c_str(), error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name.c_str(), error.what());
    return 1;
  }
  return 0;
}

}  // namespace experiment
