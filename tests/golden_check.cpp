// golden_check: reproduces folders of golden data and says where it does not.
//
//     golden_check [--precision fp64|fp32|bf16|fp8] [--threads N] [--backend cpu|eigen] PATH...
//
// One line an array: path, array, error, tolerance, ok or FAIL; last line `N passed, N failed`.
// Exit status: 0, 1 where something failed, 2 where an input cannot be used.
#include <CLI/CLI.hpp>

#include "golden_check/adamw_case.hpp"
#include "golden_check/fp8_linears.hpp"
#include "golden_check/generation_case.hpp"
#include "golden_check/model_case.hpp"
#include "golden_check/tokenizer_case.hpp"

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string precision = "fp64", backend = "cpu";
  int threads = 0;
  std::vector<std::string> paths;
};

// An input that this program cannot judge: exit status 2.
struct Unusable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string kind_of(const fs::path& path) {
  if (!fs::exists(path)) throw Unusable(path.string() + ": no such file or folder");
  if (!fs::is_directory(path)) {
    if (path.filename() == "generation.json") return "generation";
    throw Unusable(path.string() + ": neither a folder nor a generation.json");
  }
  if (fs::exists(path / "config.json")) {
    const dsv3::MappedFile text((path / "config.json").string());
    const auto json = nlohmann::json::parse(text.data(), text.data() + text.size(), nullptr, false);
    if (json.is_object() && json.contains("training")) return "trajectory";
  }
  if (fs::exists(path / "model.safetensors.index.json")) return "checkpoint";
  if (fs::exists(path / "expected.safetensors") &&
      dsv3::SafetensorsFile((path / "expected.safetensors").string()).find("p0.before"))
    return "adamw";
  if (fs::exists(path / "casts.safetensors")) return "fp8";
  if (fs::exists(path / "tokenizer.json")) return "tokenizer";
  if (fs::exists(path / "config.json") && fs::exists(path / "expected.safetensors"))
    return "model case";
  throw Unusable(path.string() + ": holds no golden data that is known here");
}

void skip(const std::string& path, const std::string& kind, golden::Counts& counts) {
  ++counts.skipped;
  std::printf("%s %s - - skipped\n", path.c_str(), kind.c_str());
}

template <class P, class Backend>
void check(const std::string& path, Backend& backend, golden::Counts& counts) {
  const std::string kind = kind_of(path);
  constexpr bool narrow = std::is_same_v<P, dsv3::Bf16>;
  if (kind == "fp8" ||
      (narrow && (kind == "trajectory" || kind == "adamw" || kind == "generation")))
    skip(path, kind, counts);
  else if (kind == "model case" || kind == "checkpoint")
    golden::check_model_case<P>(path, backend, counts);
  else if (kind == "trajectory")
    golden::check_trajectory<P>(path, backend, counts);
  else if (kind == "adamw")
    golden::check_adamw<P>(path, backend, counts);
  else if (kind == "tokenizer")
    golden::check_tokenizer(path, counts);
  else
    golden::check_generation(path, P::name, backend, counts);
}

// FP8 linears, and nothing else: what a model without them would be judged by is skipped.
template <class Backend>
void check_linears(const std::string& path, Backend& backend, golden::Counts& counts) {
  const std::string kind = kind_of(path);
  const bool activations = fs::exists(path + "/expected_fp8_activations.safetensors");
  if (kind == "fp8" || (kind == "checkpoint" && activations))
    golden::check_fp8_linears(path, kind == "fp8", backend, counts);
  else
    skip(path, kind, counts);
}

// Whether every input could be used. What cannot is named, and the others are judged all the same.
template <class Backend>
bool check_all(const Options& options, Backend& backend, golden::Counts& counts) {
  bool usable = true;
  for (const std::string& path : options.paths) try {
      if (options.precision == "fp64") check<dsv3::Fp64>(path, backend, counts);
      if (options.precision == "fp32") check<dsv3::Fp32>(path, backend, counts);
      if (options.precision == "bf16") check<dsv3::Bf16>(path, backend, counts);
      if (options.precision == "fp8") check_linears(path, backend, counts);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "golden_check: %s\n", error.what());
      usable = false;
    }
  return usable;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Reproduces folders of golden data.");
  app.add_option("--precision", options.precision, "of the model; fp8: of its linear layers")
      ->check(CLI::IsMember({"fp64", "fp32", "bf16", "fp8"}));
  app.add_option("--backend", options.backend)->check(CLI::IsMember({"cpu", "eigen"}));
  app.add_option("--threads", options.threads, "0: all of the machine")->check(CLI::Range(0, 1024));
  app.add_option("paths", options.paths, "folders, or a generation.json")->required();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  golden::Counts counts;
  bool usable = true;
  try {
    if (options.backend == "eigen") {
      dsv3::EigenCpu backend;
      usable = check_all(options, backend, counts);
    } else {
      dsv3::Cpu backend(options.threads > 0 ? options.threads : dsv3::Cpu::default_threads());
      usable = check_all(options, backend, counts);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "golden_check: %s\n", error.what());
    return 2;
  }
  std::printf("%d passed, %d failed", counts.passed, counts.failed);
  if (counts.skipped) std::printf(", %d skipped", counts.skipped);
  std::printf("\n");
  if (!usable) return 2;
  return counts.failed ? 1 : 0;
}
