// One line of metrics.jsonl for each optimizer step.
#pragma once

#include <cmath>
#include <dsv3/io/atomic_file.hpp>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace example {

using dsv3::Index;

/// What is known after a step. Losses are in nats a token.
struct Metrics {
  Index step = 0, tokens = 0;  ///< both from the start of the run, this step included
  double loss = 0;
  std::vector<double> mtp_loss;  ///< by depth
  double balance_loss = 0, grad_norm = 0, max_violation = 0, lr = 0;
  double seconds = 0, tokens_per_second = 0;
  bool skipped = false;
  std::vector<std::vector<Index>> load;  ///< tokens of each expert, by MoE layer
  std::optional<double> held_out;        ///< on steps that evaluate
  std::vector<double> held_out_mtp;
};

inline nlohmann::ordered_json to_json(const Metrics& m) {
  nlohmann::ordered_json j{{"step", m.step},
                           {"tokens", m.tokens},
                           {"loss", m.loss},
                           {"mtp_loss", m.mtp_loss},
                           {"balance_loss", m.balance_loss},
                           {"grad_norm", m.grad_norm},
                           {"max_violation", m.max_violation},
                           {"lr", m.lr},
                           {"seconds", m.seconds},
                           {"tokens_per_second", m.tokens_per_second},
                           {"skipped", m.skipped},
                           {"load", m.load}};
  if (m.held_out) {
    j["held_out_loss"] = *m.held_out;
    j["held_out_mtp_loss"] = m.held_out_mtp;
  }
  return j;
}

inline Metrics from_json(const nlohmann::json& j) {
  const auto number = [](const nlohmann::json& value) {  // JSON has no NaN: null stands for it
    return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
  };
  const auto numbers = [&](const nlohmann::json& values) {
    std::vector<double> v;
    for (const auto& value : values) v.push_back(number(value));
    return v;
  };
  Metrics m;
  m.step = j.at("step").get<Index>();
  m.tokens = j.at("tokens").get<Index>();
  m.loss = number(j.at("loss"));
  m.mtp_loss = numbers(j.at("mtp_loss"));
  m.balance_loss = number(j.at("balance_loss"));
  m.grad_norm = number(j.at("grad_norm"));
  m.max_violation = number(j.at("max_violation"));
  m.lr = number(j.at("lr"));
  m.seconds = number(j.at("seconds"));
  m.tokens_per_second = number(j.at("tokens_per_second"));
  m.skipped = j.at("skipped").get<bool>();
  m.load = j.at("load").get<std::vector<std::vector<Index>>>();
  if (j.contains("held_out_loss")) {
    m.held_out = number(j.at("held_out_loss"));
    m.held_out_mtp = numbers(j.at("held_out_mtp_loss"));
  }
  return m;
}

/// The lines of a metrics file for steps up to `last`. A last line cut off by a crash is dropped;
/// a file that does not exist has no lines.
/// Errors   std::invalid_argument naming the line that is not one of ours.
inline std::vector<Metrics> read_metrics(const std::string& path, Index last) {
  std::vector<Metrics> all;
  std::ifstream file(path);
  Index number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (file.eof()) break;  // no newline at its end: it was not written completely
    try {
      const Metrics m = from_json(nlohmann::json::parse(line));
      if (m.step <= last) all.push_back(m);
    } catch (const nlohmann::json::exception& error) {
      throw std::invalid_argument("read_metrics: line " + std::to_string(number) + " of '" + path +
                                  "': " + error.what());
    }
  }
  return all;
}

/// metrics.jsonl, open for writing: what was there is replaced by `before`, in one step.
/// Errors   std::runtime_error where it cannot be written.
class MetricsFile {
 public:
  MetricsFile(const std::string& path, const std::vector<Metrics>& before) : path_(path) {
    dsv3::AtomicFile first(path);
    for (const Metrics& m : before) first.write(to_json(m).dump() + '\n');
    first.commit();
    file_.open(path, std::ios::app);
  }

  /// Appends a line and hands it to the system.
  void add(const Metrics& m) {
    file_ << to_json(m).dump() << '\n' << std::flush;
    if (!file_) throw std::runtime_error("MetricsFile: cannot write '" + path_ + "'");
  }

 private:
  std::string path_;
  std::ofstream file_;
};

}  // namespace example
