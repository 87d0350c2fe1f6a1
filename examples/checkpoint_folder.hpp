// What the programs that work on a checkpoint folder share: the folder, precision, threads.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <dsv3/io/checkpoint.hpp>
#include <dsv3/io/tokenizer.hpp>
#include <dsv3/model.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

namespace example {

using dsv3::Index;

/// A folder with config.json, weights and, perhaps, a tokenizer.json.
struct CheckpointFolder {
  std::string path;
  dsv3::ModelConfig config;
  std::optional<dsv3::Tokenizer> tokenizer;
  bool fp8 = false;  // its projections are FP8

  explicit CheckpointFolder(const std::string& folder)
      : path(folder), config(dsv3::load_config(folder + "/config.json")) {
    const std::string name = folder + "/tokenizer.json";
    if (std::filesystem::exists(name)) tokenizer.emplace(name);
    if (tokenizer && tokenizer->size() > config.vocab_size)
      throw std::invalid_argument("'" + name + "': tokens (" + std::to_string(tokenizer->size()) +
                                  ") must be at most the model's vocab_size (" +
                                  std::to_string(config.vocab_size) + ")");
    std::ifstream file(folder + "/config.json");
    const auto json = nlohmann::json::parse(file, nullptr, false);
    fp8 = json.is_object() && json.contains("quantization_config");
  }
};

/// Options that every such program has.
struct CheckpointOptions {
  std::string folder, precision = "auto";
  Index threads = 0;

  void add_to(CLI::App& app) {
    app.add_option("folder", folder, "checkpoint folder: config.json, weights, tokenizer.json")
        ->required();
    app.add_option("--precision", precision, "auto: fp8 where the folder's weights are, else bf16")
        ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp8"}))
        ->capture_default_str();
    app.add_option("--threads", threads, "0: as many as the machine has")
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
  }

  int thread_count() const {
    return threads > 0 ? static_cast<int>(threads) : dsv3::Cpu::default_threads();
  }

  /// f(std::type_identity<P>) with the policy that was asked for.
  auto with_precision(const CheckpointFolder& from, auto f) const {
    const bool codes = precision == "fp8" || (precision == "auto" && from.fp8);
    if (codes) return f(std::type_identity<dsv3::Fp8>());
    if (precision == "fp32") return f(std::type_identity<dsv3::Fp32>());
    return f(std::type_identity<dsv3::Bf16>());
  }
};

/// Seconds since it was made.
class Clock {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Parses the command line and runs the program: its exit status, 2 where what was asked for cannot
/// be done, 1 where something failed.
int run_program(const char* name, CLI::App& app, int argc, char** argv, auto program) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    std::fprintf(stderr, "%s: %s\nRun with --help for all options.\n", name, error.what());
    return 2;
  }
  try {
    return program();
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 1;
  }
}

}  // namespace example
