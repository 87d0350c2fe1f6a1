// The table: name, ours, peer, ratio, goal.
#include <cmath>
#include <cstdio>
#include <map>

#include "harness.hpp"

namespace gpu_bench {
namespace {

std::string with_unit(double rate, const std::string& unit) {
  char text[64];
  std::snprintf(text, sizeof text, rate < 100 ? "%.2f %s" : "%.0f %s", rate, unit.c_str());
  return text;
}

class Table {
 public:
  Table() {
    std::printf("%-46s %10s %14s  %-32s %7s  %s\n", "what", "ms", "ours", "peer", "ratio", "goal");
  }

  void row(const Record& r, const std::string& peer, double peer_rate, double goal,
           const std::string& note) {
    const double ours = r.rate(r.ms), ratio = ours / peer_rate;
    char ms[32], share[32] = "-", wanted[64] = "";
    std::snprintf(ms, sizeof ms, "%.4f", r.ms);
    if (std::isfinite(ratio)) std::snprintf(share, sizeof share, "%.3f", ratio);
    const bool judged = goal > 0 && std::isfinite(ratio);
    const bool reached = judged && ratio >= goal;
    met_ += reached;
    missed_ += judged && !reached;
    if (goal > 0)
      std::snprintf(wanted, sizeof wanted, ">= %.2f%s", goal,
                    !judged   ? "  not measured"
                    : reached ? ""
                              : "  MISSED");
    const std::string beside =
        peer.empty() ? ""
                     : peer + (std::isfinite(peer_rate) ? " " + with_unit(peer_rate, r.unit)
                                                        : std::string(" failed"));
    std::printf("%-46s %10s %14s  %-32s %7s  %s%s\n", r.name.c_str(), ms,
                with_unit(ours, r.unit).c_str(), beside.c_str(), share, wanted,
                note.empty() ? "" : ("  (" + note + ")").c_str());
  }

  void failed(const Record& r) {
    ++failed_;
    std::printf("%-46s FAILED: %s\n", r.name.c_str(), r.status.c_str());
  }

  int finish() const {
    std::printf("%d goals met, %d missed, %d cases failed\n", met_, missed_, failed_);
    return missed_ > 0 || failed_ > 0;
  }

 private:
  int met_ = 0, missed_ = 0, failed_ = 0;
};

}  // namespace

int print_table(const std::string& ours, const std::string& torch) {
  const auto records = read_records(ours);
  double copy = Record::none;
  for (const Record& r : records)
    if (r.name == "copy" && r.status == "ok") copy = r.rate(r.ms);
  std::multimap<std::string, Record> others;  // by the name of our case
  if (!torch.empty())
    for (const Record& r : read_records(torch)) others.emplace(r.name, r);
  Table table;
  for (const Record& r : records) {
    if (r.status != "ok") {
      table.failed(r);
      continue;
    }
    const double peer_rate = r.peer == "copy" ? copy : r.rate(r.peer_ms);
    const auto [first, last] = others.equal_range(r.name);
    if (!r.peer.empty() || first == last) table.row(r, r.peer, peer_rate, r.goal, r.note);
    for (auto other = first; other != last; ++other) {
      const Record& t = other->second;
      if (t.status == "ok")
        table.row(r, t.peer, r.rate(t.ms), r.torch_goal, "");
      else
        table.row(r, t.peer, Record::none, r.torch_goal, t.status);
    }
  }
  return table.finish();
}

}  // namespace gpu_bench
