// What every GPU benchmark shares: a case, what is recorded of it, and how calls are timed. For the
// host's compiler too.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/core/dry_run.hpp>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace gpu_bench {

using dsv3::Index;
using dsv3::View;

/// One line of the table, as it travels between programs.
struct Record {
  static constexpr double none = std::numeric_limits<double>::quiet_NaN();

  std::string name;
  std::string status = "ok";     ///< or the sentence that says what went wrong
  double ms = none;              ///< median of one call
  double work = 0;               ///< of one call: FLOP, bytes or tokens
  std::string unit = "TFLOP/s";  ///< of the rate: TFLOP/s, GB/s or tok/s
  std::string peer;              ///< what was measured beside it; "copy": the copy's rate
  double peer_ms = none;         ///< of the same work
  double goal = 0;               ///< ours / peer; 0: none
  std::string torch;             ///< the same for the script of PyTorch's peers, as words
  double torch_goal = 0;
  std::string note;

  double rate(double milliseconds) const {
    const double scale = unit == "TFLOP/s" ? 1e-9 : unit == "GB/s" ? 1e-6 : 1e3;
    return work / milliseconds * scale;
  }
};

/// call(i) does the work once, on operands of set i.
using Call = std::function<void(Index)>;

/// The median milliseconds of one call: in a CUDA graph of several calls where the calls can be
/// captured, else back to back. `captured` says which.
double median_ms(dsv3::Cuda& cuda, Index sets, const Call& call, bool& captured);

/// A case that runs: its backend, its memory, its line.
class Run {
 public:
  Run(dsv3::Cuda& backend, Record& line) : cuda(backend), record(line) {}

  dsv3::Cuda& cuda;
  Record& record;

  void work(double amount, const char* unit) {
    record.work = amount;
    record.unit = unit;
  }
  /// Names what PyTorch's script times beside it.
  void torch(const std::string& words, double goal) {
    record.torch = words;
    record.torch_goal = goal;
  }
  /// The goal is a part of the rate at which a copy moves bytes.
  void against_copy(double goal) {
    record.peer = "copy";
    record.goal = goal;
  }
  void measure(Index sets, const Call& call) {
    bool captured = false;
    record.ms = median_ms(cuda, sets, call, captured);
    if (!captured) record.note = "launches, no graph";
  }
  void measure(const Call& call) { measure(1, call); }
  /// A peer that does the same work; one that fails leaves a note.
  void measure_peer(const std::string& name, double goal, Index sets, const Call& call);

  /// How many sets of operands of so many bytes pass the last-level cache when they take turns.
  static Index sets(double bytes) {
    const double wanted = 256e6 / bytes;
    return wanted < 1 ? 1 : wanted > 8 ? 8 : static_cast<Index>(wanted) + 1;
  }

  /// Memory of the device until the case ends.
  template <class T, int Rank>
  View<T, Rank> take(const Index (&shape)[Rank]) {
    Index n = 1;
    for (int d = 0; d < Rank; ++d) n *= shape[d];
    buffers_.emplace_back(cuda, n * static_cast<Index>(sizeof(T)));
    return View<T, Rank>(static_cast<T*>(buffers_.back().data()), shape);
  }
  template <class T>
  View<T, 1> upload(const std::vector<T>& values) {
    const auto n = static_cast<Index>(values.size());
    const auto view = take<T>({n});
    copy_to_backend(cuda, view.data, values.data(), n * static_cast<Index>(sizeof(T)));
    synchronize(cuda);
    return view;
  }

  /// An arena of its own for what `make` takes, until the case ends.
  template <class Make>
  auto arena_for(Make make) {
    dsv3::Arena counting;
    make(counting);
    const auto memory = take<std::byte>({counting.peak()});
    dsv3::Arena arena(memory.data, memory.extent(0));
    return make(arena);
  }

  /// f(backend, arena) as a function without arguments, with as much scratch as a dry run counts.
  template <class F>
  auto planned(F f) {
    dsv3::Arena counting;
    dsv3::DryRun<dsv3::Cuda> dry{cuda};
    f(dry, counting);
    const auto memory = take<std::byte>({counting.peak()});
    return [f, memory, this] {
      dsv3::Arena arena(memory.data, memory.extent(0));
      f(cuda, arena);
    };
  }

 private:
  std::vector<dsv3::Buffer<dsv3::Cuda>> buffers_;
};

struct Case {
  std::string name;
  std::function<void(Run&)> body;
};
using Cases = std::vector<Case>;

/// The cases, file by file, in the order of the table.
void copy_case(Run&);
void ceiling_cases(Cases&);
void gemm_cases(Cases&);
void grouped_cases(Cases&);
void attention_cases(Cases&);
void decode_attention_cases(Cases&);
void row_cases(Cases&);
void expert_row_cases(Cases&);
void optimizer_cases(Cases&);
void layer_bf16_cases(Cases&);
void layer_fp8_cases(Cases&);
void train_bf16_cases(Cases&);
void train_fp8_cases(Cases&);
void generate_bf16_cases(Cases&);
void generate_fp8_cases(Cases&);

/// Records as lines of a file.
std::string to_line(const Record& record);
std::vector<Record> read_records(const std::string& path);

/// Prints the table of our records and, where the file exists, of PyTorch's. Returns 1 where a goal
/// is missed or a case failed.
int print_table(const std::string& ours, const std::string& torch);

}  // namespace gpu_bench
