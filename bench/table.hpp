// One row for each thing that is measured: what, measured, floor or peer, ratio, goal.
#pragma once

#include <cstdio>
#include <string>

namespace bench {

class Table {
 public:
  /// Prints the head, unless the rows are to be appended to another program's table.
  explicit Table(bool head = true) {
    if (head)
      std::printf("%-46s %16s %26s %7s  %s\n", "what", "measured", "floor or peer", "ratio",
                  "goal");
  }

  /// measured / peer must reach the goal; a goal of 0 asks for nothing.
  void at_least(const std::string& what, double measured, const char* unit, const std::string& peer,
                double peer_value, double goal) {
    print(what, measured, unit, peer, peer_value, ">=", goal, measured / peer_value >= goal);
  }

  /// measured / peer must not exceed the goal.
  void at_most(const std::string& what, double measured, const char* unit, const std::string& peer,
               double peer_value, double goal) {
    print(what, measured, unit, peer, peer_value, "<=", goal, measured / peer_value <= goal);
  }

  /// What main returns: 1 where a row fell short.
  int status() const { return missed_ > 0; }

 private:
  void print(const std::string& what, double measured, const char* unit, const std::string& peer,
             double peer_value, const char* relation, double goal, bool reached) {
    char value[64], floor[64], wanted[64] = "";
    std::snprintf(value, sizeof value, "%.5g %s", measured, unit);
    std::snprintf(floor, sizeof floor, "%s %.5g", peer.c_str(), peer_value);
    if (goal > 0)
      std::snprintf(wanted, sizeof wanted, "%s %.3g%s", relation, goal, reached ? "" : "  MISSED");
    std::printf("%-46s %16s %26s %7.3f  %s\n", what.c_str(), value, floor, measured / peer_value,
                wanted);
    std::fflush(stdout);
    if (!reached) ++missed_;
  }

  int missed_ = 0;
};

}  // namespace bench
