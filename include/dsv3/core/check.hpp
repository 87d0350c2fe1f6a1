// Argument checks. A message names the caller, both quantities and both values.
#pragma once

#include <dsv3/core/view.hpp>
#include <stdexcept>
#include <string>

namespace dsv3 {

/// Throws std::invalid_argument unless a == b.
constexpr void check_equal(const char* caller, const char* name_a, Index a, const char* name_b,
                           Index b) {
  if (a == b) return;
  throw std::invalid_argument(std::string(caller) + ": " + name_a + " (" + std::to_string(a) +
                              ") must equal " + name_b + " (" + std::to_string(b) + ")");
}

/// Throws std::invalid_argument unless a <= b.
constexpr void check_at_most(const char* caller, const char* name_a, Index a, const char* name_b,
                             Index b) {
  if (a <= b) return;
  throw std::invalid_argument(std::string(caller) + ": " + name_a + " (" + std::to_string(a) +
                              ") must be at most " + name_b + " (" + std::to_string(b) + ")");
}

/// Throws std::invalid_argument unless the view has the given extents.
template <class T>
constexpr void check_shape(const char* caller, const char* name, const View<T, 1>& view, Index n,
                           const char* name_n) {
  if (view.extent(0) != n)
    check_equal(caller, (std::string("size of ") + name).c_str(), view.extent(0), name_n, n);
}

/// Throws std::invalid_argument unless the view has the given extents.
template <class T>
constexpr void check_shape(const char* caller, const char* name, const View<T, 2>& view, Index rows,
                           const char* name_rows, Index cols, const char* name_cols) {
  if (view.extent(0) != rows)
    check_equal(caller, (std::string("rows of ") + name).c_str(), view.extent(0), name_rows, rows);
  if (view.extent(1) != cols)
    check_equal(caller, (std::string("columns of ") + name).c_str(), view.extent(1), name_cols,
                cols);
}

}  // namespace dsv3
