// Converts a checkpoint folder between BF16, FP32 and FP8 without loading the model. Run with
// --help.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <dsv3/io/checkpoint_convert.hpp>

#include "text.hpp"

namespace {

using dsv3::Index;

// One line that is redrawn on a terminal; elsewhere a line for each tenth.
class Progress {
 public:
  void operator()(Index done, Index total) {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start_;
    const bool last = done == total;
    const auto percent =
        static_cast<Index>(100 * static_cast<double>(done) / static_cast<double>(total));
    const bool live = live_ && (last || passed.count() - drawn_ > 0.1);
    if (!live && (live_ || (!last && percent / 10 == tenth_))) return;
    tenth_ = percent / 10;
    drawn_ = passed.count();
    const double left =
        passed.count() * static_cast<double>(total - done) / static_cast<double>(done);
    const auto filled = static_cast<std::size_t>(percent / 5);
    std::printf("%s[%s%s] %3td %%  %s of %s  ETA %s%s", live_ ? "\r\033[K" : "",
                std::string(filled, '#').c_str(), std::string(20 - filled, '.').c_str(), percent,
                example::mib(done).c_str(), example::mib(total).c_str(),
                example::minutes(left).c_str(), !live_ || last ? "\n" : "");
    std::fflush(stdout);
  }

 private:
  bool live_ = ::isatty(STDOUT_FILENO);
  Index tenth_ = -1;
  double drawn_ = -1;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

int main(int argc, char** argv) {
  std::string from, to, dtype;
  std::uint64_t shard_bytes = 5'000'000'000;
  bool replace = false;
  CLI::App app("Converts a checkpoint folder between BF16, FP32 and FP8, tensor by tensor.");
  app.add_option("from", from, "folder with config.json and safetensors files")->required();
  app.add_option("to", to, "folder to be made")->required();
  app.add_option("--dtype", dtype, "of the projections: bf16, fp32 or fp8")
      ->required()
      ->check(CLI::IsMember({"bf16", "fp32", "fp8"}));
  app.add_option("--shard-size", shard_bytes, "data in one file, at most, e.g. 5GB or 500MiB")
      ->transform(CLI::AsSizeValue(true))
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 50));
  app.add_flag("--replace", replace, "replace `to` where it exists");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    std::fprintf(stderr, "convert: %s\nRun with --help for all options.\n", error.what());
    return 2;
  }
  try {
    dsv3::convert_checkpoint(
        from, to,
        {.dtype = dtype == "fp8"    ? dsv3::DType::f8_e4m3
                  : dtype == "fp32" ? dsv3::DType::f32
                                    : dsv3::DType::bf16,
         .shard_bytes = static_cast<Index>(shard_bytes),
         .if_exists = replace ? dsv3::IfExists::replace : dsv3::IfExists::refuse,
         .progress = Progress{}});
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "convert: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "convert: %s\n", error.what());
    return 1;
  }
  return 0;
}
