// Benchmarks of the CUDA backend.
//
//     gpu_bench --out FILE [--limit SECONDS] [PATTERN]   runs the cases whose names match
//     gpu_bench --table FILE [FILE]                      prints the table, with PyTorch's peers
//     gpu_bench --list                                   names the cases
//     gpu_bench --device                                 names the GPU; status 1 where there is
//     none
//
// Cases run in a process of their own, which is started anew after a case that crashes, hangs or
// leaves the device unusable, so that the others are still measured.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <regex>

#include "harness.hpp"

namespace gpu_bench {
namespace {

constexpr int patience_seconds = 40;  // for one case
constexpr int device_lost = 3;        // a worker's status: go on with the next case

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const auto& add :
       {ceiling_cases, gemm_cases, grouped_cases, attention_cases, decode_attention_cases,
        row_cases, expert_row_cases, optimizer_cases, layer_bf16_cases, layer_fp8_cases,
        train_bf16_cases, train_fp8_cases, generate_bf16_cases, generate_fp8_cases})
    add(cases);
  return cases;
}

std::string device_name() {
  cudaDeviceProp properties;
  int driver = 0, runtime = 0;
  using dsv3::detail::check_cuda;
  check_cuda(cudaGetDeviceProperties(&properties, 0), "gpu_bench", "cudaGetDeviceProperties");
  check_cuda(cudaDriverGetVersion(&driver), "gpu_bench", "cudaDriverGetVersion");
  check_cuda(cudaRuntimeGetVersion(&runtime), "gpu_bench", "cudaRuntimeGetVersion");
  return std::string(properties.name) + ", " + std::to_string(properties.multiProcessorCount) +
         " multiprocessors, " + std::to_string(properties.totalGlobalMem >> 30) +
         " GiB, driver for CUDA " + std::to_string(driver / 1000) + "." +
         std::to_string(driver % 1000 / 10) + ", program of CUDA " +
         std::to_string(runtime / 1000) + "." + std::to_string(runtime % 1000 / 10) +
         ", cuBLASLt " + std::to_string(cublasLtGetVersion());
}

struct Options {
  std::string out, pattern;
  long deadline = 0;  // seconds since the epoch

  // "copy" runs in any case: others are compared with it.
  bool chooses(const std::string& name) const {
    return pattern.empty() || name == "copy" || std::regex_search(name, std::regex(pattern));
  }
};

void append(const std::string& path, const Record& record) {
  std::ofstream(path, std::ios::app) << to_line(record);
}

// Runs the cases from `first` on; writes each one's number to the pipe before it starts.
int work(const Options& options, std::size_t first, int pipe) {
  const auto cases = all_cases();
  dsv3::Cuda cuda;
  for (std::size_t i = first; i < cases.size(); ++i) {
    if (!options.chooses(cases[i].name)) continue;
    if (write(pipe, &i, sizeof i) != sizeof i) return 1;
    Record record;
    record.name = cases[i].name;
    const auto start = std::chrono::steady_clock::now();
    if (std::time(nullptr) > options.deadline) {
      record.status = "left out: the time is used up";
    } else {
      try {
        Run run(cuda, record);
        cases[i].body(run);
        synchronize(cuda);
      } catch (const std::exception& error) {
        record.status = error.what();
      }
    }
    cudaGetLastError();
    const bool lost = cudaStreamSynchronize(cuda.stream()) != cudaSuccess;
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    append(options.out, record);
    if (record.status == "ok")
      std::printf("%6.1f s  %s: %.4f ms\n", passed.count(), record.name.c_str(), record.ms);
    else
      std::printf("%6.1f s  FAILED %s: %s\n", passed.count(), record.name.c_str(),
                  record.status.c_str());
    std::fflush(stdout);
    if (lost) std::_Exit(device_lost);
    cudaMemPool_t pool;  // what the next case takes may be of other sizes
    if (cudaDeviceGetDefaultMemPool(&pool, cuda.options().device) == cudaSuccess)
      cudaMemPoolTrimTo(pool, 0);
  }
  return 0;
}

// One worker from case `first` on. Returns whether it came to the end; `last` is the case that it
// was at.
bool supervise(const char* program, const Options& options, std::size_t first, std::size_t& last,
               std::string& reason) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("gpu_bench: pipe failed");
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("gpu_bench: fork failed");
  if (child == 0) {
    close(ends[0]);
    const std::string from = std::to_string(first), to = std::to_string(ends[1]),
                      deadline = std::to_string(options.deadline);
    execl("/proc/self/exe", program, "--worker", from.c_str(), to.c_str(), options.out.c_str(),
          deadline.c_str(), options.pattern.c_str(), static_cast<char*>(nullptr));
    std::_Exit(127);
  }
  close(ends[1]);
  bool hangs = false;
  for (pollfd wait = {ends[0], POLLIN, 0};;) {
    const int ready = poll(&wait, 1, patience_seconds * 1000);
    if (ready < 0 && errno == EINTR) continue;
    std::size_t at = 0;
    if (ready == 0) {
      hangs = true;
      kill(child, SIGKILL);
      break;
    }
    if (read(ends[0], &at, sizeof at) != sizeof at) break;
    last = at;
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (hangs)
    reason = "no end within " + std::to_string(patience_seconds) + " s";
  else if (WIFSIGNALED(status))
    reason = std::string("killed by signal: ") + strsignal(WTERMSIG(status));
  else if (WEXITSTATUS(status) == device_lost)
    reason.clear();  // the worker has noted what happened
  else if (WEXITSTATUS(status) != 0)
    reason = "the process ended with status " + std::to_string(WEXITSTATUS(status));
  return !hangs && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int run_all(const char* program, const Options& options) {
  const auto cases = all_cases();
  std::ofstream(options.out, std::ios::trunc);
  for (std::size_t first = 0; first < cases.size();) {
    std::size_t last = cases.size();
    std::string reason;
    if (supervise(program, options, first, last, reason)) return 0;
    if (last == cases.size()) {  // not one case began
      std::printf("no case could start: %s\n", reason.c_str());
      return 1;
    }
    if (!reason.empty()) {
      Record record;
      record.name = cases[last].name;
      record.status = reason;
      append(options.out, record);
      std::printf("FAILED %s: %s\n", record.name.c_str(), reason.c_str());
      std::fflush(stdout);
    }
    first = last + 1;
  }
  return 0;
}

}  // namespace
}  // namespace gpu_bench

int main(int argc, char** argv) try {
  using namespace gpu_bench;
  const std::string mode = argc > 1 ? argv[1] : "";
  Options options;
  if (mode == "--worker" && argc >= 6) {
    options.out = argv[4];
    options.deadline = std::stol(argv[5]);
    options.pattern = argc > 6 ? argv[6] : "";
    return work(options, std::stoul(argv[2]), std::stoi(argv[3]));
  }
  if (mode == "--list") {
    for (const auto& c : all_cases()) std::printf("%s\n", c.name.c_str());
    return 0;
  }
  if (mode == "--device") {
    const auto reason = dsv3::cuda_unavailable();
    std::printf("%s\n", reason.empty() ? device_name().c_str() : reason.c_str());
    return !reason.empty();
  }
  if (mode == "--table" && argc >= 3) return print_table(argv[2], argc > 3 ? argv[3] : "");
  long limit = 150;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--out" && i + 1 < argc)
      options.out = argv[++i];
    else if (argument == "--limit" && i + 1 < argc)
      limit = std::stol(argv[++i]);
    else
      options.pattern = argument;
  }
  if (options.out.empty()) {
    std::fprintf(stderr, "usage: gpu_bench --out FILE [--limit SECONDS] [PATTERN]\n");
    return 2;
  }
  if (const auto reason = dsv3::cuda_unavailable(); !reason.empty()) {
    std::printf("%s\n", reason.c_str());
    return 2;
  }
  std::regex check(options.pattern);  // a bad pattern stops here
  options.deadline = std::time(nullptr) + limit;
  return run_all(argv[0], options);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
