// Initial weights.
#pragma once

#include <dsv3/core/philox.hpp>
#include <dsv3/core/scalar.hpp>

namespace dsv3::detail {

// One row of a tensor: std times the normal number of each element's index, from the stream that
// the tensor's name gives. Neither threads nor layout change it.
template <class M>
struct NormalRow {
  Philox philox;
  double std;
  View<M, 2> weight;

  DSV3_HD void operator()(auto team, Index row) const {
    const Index n = weight.extent(1);
    team.each(n, [&](Index j) {
      const auto index = static_cast<std::uint64_t>(row * n + j);
      weight(row, j) = M(std * double(normal(philox, index)));
    });
  }
};

template <class M>
struct ConstantRow {
  M value;
  View<M, 1> weight;

  DSV3_HD void operator()(auto team, Index) const {
    team.each(weight.extent(0), [&](Index j) { weight(j) = value; });
  }
};

}  // namespace dsv3::detail
