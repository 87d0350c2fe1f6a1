// How calls are timed, and records as lines.
#include "harness.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

namespace gpu_bench {
namespace {

using dsv3::Cuda;
using dsv3::detail::check_cuda;

// A pair of events around work on a stream.
class Stopwatch {
 public:
  explicit Stopwatch(Cuda& cuda) : cuda_(cuda) {
    check_cuda(cudaEventCreate(&start_), "Stopwatch", "cudaEventCreate");
    check_cuda(cudaEventCreate(&stop_), "Stopwatch", "cudaEventCreate");
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }

  double ms(auto&& f) {
    check_cuda(cudaEventRecord(start_, cuda_.stream()), "Stopwatch", "cudaEventRecord");
    f();
    check_cuda(cudaEventRecord(stop_, cuda_.stream()), "Stopwatch", "cudaEventRecord");
    cuda_.wait("Stopwatch");
    float elapsed = 0;
    check_cuda(cudaEventElapsedTime(&elapsed, start_, stop_), "Stopwatch", "cudaEventElapsedTime");
    return static_cast<double>(elapsed);
  }

 private:
  Cuda& cuda_;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

// Several calls as a graph; empty where they cannot be captured.
class Graph {
 public:
  Graph(Cuda& cuda, Index calls, Index sets, const Call& call) {
    if (cudaStreamBeginCapture(cuda.stream(), cudaStreamCaptureModeRelaxed) != cudaSuccess) {
      cudaGetLastError();
      return;
    }
    bool complete = true;
    try {
      for (Index i = 0; i < calls; ++i) call(i % sets);
    } catch (const std::exception&) {
      complete = false;  // a call that waits or copies to the host: it is launched as it is
    }
    cudaGraph_t graph = nullptr;
    if (cudaStreamEndCapture(cuda.stream(), &graph) != cudaSuccess) complete = false;
    if (complete && cudaGraphInstantiate(&graph_, graph, 0) != cudaSuccess) graph_ = nullptr;
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    if (graph_) cudaGraphExecDestroy(graph_);
  }

  bool complete() const { return graph_ != nullptr; }
  void launch(Cuda& cuda) const {
    check_cuda(cudaGraphLaunch(graph_, cuda.stream()), "Graph", "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace

double median_ms(Cuda& cuda, Index sets, const Call& call, bool& captured) {
  Stopwatch watch(cuda);
  for (Index i = 0; i < 2; ++i) call(i % sets);  // plans, attributes, first touches
  double one = watch.ms([&] { call(0); });
  if (one < 20)  // else a call warms up by itself
    one = watch.ms([&] {
      for (Index i = 0; i < 3; ++i) call(i % sets);
    }) / 3;
  one = std::max(one, 1e-3);
  // A sample of 0.5 ms hides what events and starts of graphs cost; the whole takes about 0.1 s.
  const auto calls = std::clamp(static_cast<Index>(std::ceil(0.5 / one)), sets, Index{64});
  const auto samples = std::clamp(static_cast<Index>(100 / (one * static_cast<double>(calls))),
                                  Index{one < 200 ? 5 : 3}, Index{20});
  const Graph graph(cuda, calls, sets, call);
  captured = graph.complete();
  const auto sample = [&] {
    if (captured) {
      graph.launch(cuda);
    } else {
      for (Index i = 0; i < calls; ++i) call(i % sets);
    }
  };
  if (one < 20) watch.ms(sample);
  std::vector<double> times;
  for (Index s = 0; s < samples; ++s)
    times.push_back(watch.ms(sample) / static_cast<double>(calls));
  std::nth_element(times.begin(), times.begin() + samples / 2, times.end());
  return times[static_cast<std::size_t>(samples / 2)];
}

void Run::measure_peer(const std::string& name, double goal, Index sets, const Call& call) {
  record.peer = name;
  record.goal = goal;
  try {
    bool captured = false;
    record.peer_ms = median_ms(cuda, sets, call, captured);
  } catch (const std::exception& error) {
    record.note += std::string(record.note.empty() ? "" : "; ") + name + ": " + error.what();
  }
}

std::string to_line(const Record& r) {
  std::ostringstream out;
  out.precision(9);
  const auto clean = [](std::string text) {
    std::replace_if(
        text.begin(), text.end(), [](char c) { return c == '\t' || c == '\n'; }, ' ');
    return text;
  };
  out << r.name << '\t' << clean(r.status) << '\t' << r.ms << '\t' << r.work << '\t' << r.unit
      << '\t' << r.peer << '\t' << r.peer_ms << '\t' << r.goal << '\t' << r.torch << '\t'
      << r.torch_goal << '\t' << clean(r.note) << '\n';
  return out.str();
}

std::vector<Record> read_records(const std::string& path) {
  std::vector<Record> records;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::vector<std::string> fields;
    std::istringstream in(line);
    for (std::string field; std::getline(in, field, '\t');) fields.push_back(field);
    fields.resize(11);
    const auto number = [](const std::string& text) { return std::strtod(text.c_str(), nullptr); };
    records.push_back({fields[0], fields[1], number(fields[2]), number(fields[3]), fields[4],
                       fields[5], number(fields[6]), number(fields[7]), fields[8],
                       number(fields[9]), fields[10]});
  }
  return records;
}

}  // namespace gpu_bench
