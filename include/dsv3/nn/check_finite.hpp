// The checked mode of FP8 policies: where the first NaN or infinity stands.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/core/scalar.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace dsv3 {

/// A value that is not finite where one is needed.
struct NonFinite : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

// first[t] = the first column of row t whose value is not finite, or -1.
template <class T>
struct FirstNonFiniteRow {
  View<const T, 2> x;
  View<Index, 1> first;

  DSV3_HD void operator()(auto team, Index t) const {
    const Index at = team.argmax(x.extent(1), [&](Index j) {
      const auto value = accum_t<T>(x(t, j));
      return value - value == 0 ? -accum_t<T>(1) / accum_t<T>(0) : accum_t<T>(1);
    });
    team.once([&] { first(t) = at; });
  }
};

// Throws NonFinite naming `what` and the place; waits for the backend.
template <class Backend, class T>
void check_finite(Backend& backend, const char* what, const View<const T, 2>& x, Arena& scratch) {
  const ArenaScope scope(scratch);
  const Index rows = x.extent(0);
  const auto first = scratch.take<Index>({rows});
  if (scratch.counting()) return;
  for_each_row(backend, rows, FirstNonFiniteRow<T>{x, first});
  std::vector<Index> host(static_cast<std::size_t>(rows));
  copy_to_host(backend, host.data(), first.data, rows * static_cast<Index>(sizeof(Index)));
  for (Index t = 0; t < rows; ++t) {
    const Index j = host[static_cast<std::size_t>(t)];
    if (j < 0) continue;
    T value{};
    copy_to_host(backend, &value, &x(t, j), static_cast<Index>(sizeof(T)));
    throw NonFinite(std::string(what) + " [" + std::to_string(t) + ", " + std::to_string(j) +
                    "] (" + std::to_string(double(accum_t<T>(value))) + ") must be finite");
  }
}

}  // namespace detail
}  // namespace dsv3
