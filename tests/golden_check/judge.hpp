// Judge: compares what the library computed with an expected file, one printed line an array.
#pragma once

#include <cmath>
#include <cstdio>
#include <dsv3/io/safetensors.hpp>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace golden {

/// An array of any type, widened.
struct Array {
  std::vector<double> values;
  std::vector<dsv3::Index> shape;
};

/// How an array is compared.
struct Rule {
  enum Kind {
    largest,    ///< max |a - b| / max |b|, and exactly zero where b is
    frobenius,  ///< |a - b| / |b| in the Frobenius norm, and exactly zero where b is
    equal,      ///< every value equal
    printed     ///< only finite and of the right shape; the error is printed
  } kind = largest;
  double tolerance = 0;
};

struct Counts {
  int passed = 0, failed = 0, skipped = 0;
};

inline Array read_array(const dsv3::SafetensorsFile& file, const std::string& name) {
  const dsv3::SafetensorsTensor& tensor = file.at(name);
  Array array{{}, tensor.shape};
  if (is_integer(tensor.dtype)) {
    const auto integers = tensor.values<std::int64_t>();
    array.values.assign(integers.begin(), integers.end());
  } else {
    array.values = tensor.values<double>();
  }
  return array;
}

/// The Frobenius norm of a - b; NaN where their shapes differ.
inline double distance(const Array& a, const Array& b) {
  if (a.shape != b.shape) return NAN;
  double squares = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i)
    squares += (a.values[i] - b.values[i]) * (a.values[i] - b.values[i]);
  return std::sqrt(squares);
}

class Judge {
 public:
  Judge(std::string path, const dsv3::SafetensorsFile& expected, Counts& counts)
      : path_(std::move(path)), expected_(expected), counts_(counts) {}
  Judge(const Judge&) = delete;

  /// What was not compared, and is no input, fails; so does a folder in which nothing was compared.
  ~Judge() {
    for (const auto& tensor : expected_.tensors())
      if (!known_.count(tensor.name)) line(tensor.name, NAN, {}, false);
    if (compared_ == 0) line("(nothing compared)", NAN, {}, false);
  }

  void input(const std::string& name) { known_.insert(name); }

  void skip(const std::string& name) {
    known_.insert(name);
    ++counts_.skipped;
    std::printf("%s %s - - skipped\n", path_.c_str(), name.c_str());
  }

  bool has(const std::string& name) const { return expected_.find(name) != nullptr; }

  Array expected(const std::string& name) const { return read_array(expected_, name); }

  /// Compares one array with the expected one of the same name; a name that is not expected passes
  /// unseen.
  void compare(const std::string& name, const Array& ours, Rule rule) {
    if (!has(name)) return;
    known_.insert(name);
    ++compared_;
    const Array theirs = expected(name);
    if (ours.shape != theirs.shape) return line(name, NAN, rule, false);
    double worst = 0, largest = 0, squares = 0, norm = 0;
    bool finite = true, exact = true;
    for (std::size_t i = 0; i < ours.values.size(); ++i) {
      const double a = ours.values[i], b = theirs.values[i], d = std::abs(a - b);
      finite = finite && std::isfinite(a) && std::isfinite(b);
      exact = exact && a == b;
      worst = std::max(worst, d);
      largest = std::max(largest, std::abs(b));
      squares += d * d;
      norm += b * b;
    }
    double error = rule.kind == Rule::frobenius ? std::sqrt(squares / norm) : worst / largest;
    if (norm == 0) error = exact ? 0 : INFINITY;
    bool ok = finite && error <= rule.tolerance;
    if (rule.kind == Rule::equal) ok = finite && exact;
    if (rule.kind == Rule::printed) ok = finite;
    line(name, finite ? error : NAN, rule, ok);
  }

  /// Compares one array element by element: same(ours, theirs). The error is the number of elements
  /// that differ.
  template <class Same>
  void compare_each(const std::string& name, const Array& ours, Same same) {
    if (!has(name)) return;
    known_.insert(name);
    ++compared_;
    const Array theirs = expected(name);
    if (ours.shape != theirs.shape) return line(name, NAN, {}, false);
    double differ = 0;
    for (std::size_t i = 0; i < ours.values.size(); ++i)
      differ += same(ours.values[i], theirs.values[i]) ? 0 : 1;
    line(name, differ, {}, differ == 0);
  }

  /// Judges an error that the caller has computed, of the array of this name where the file has it.
  void judge(const std::string& name, double error, double tolerance) {
    known_.insert(name);
    ++compared_;
    line(name, error, {Rule::largest, tolerance}, error <= tolerance);
  }

 private:
  void line(const std::string& name, double error, Rule rule, bool ok) {
    ++(ok ? counts_.passed : counts_.failed);
    const double tolerance = rule.kind == Rule::printed ? INFINITY : rule.tolerance;
    std::printf("%s %s %.3g %.3g %s\n", path_.c_str(), name.c_str(), error, tolerance,
                ok ? "ok" : "FAIL");
  }

  std::string path_;
  const dsv3::SafetensorsFile& expected_;
  Counts& counts_;
  std::set<std::string> known_;
  int compared_ = 0;
};

}  // namespace golden
