// Row kernels without parameters that several blocks share.
#pragma once

#include <dsv3/core/math.hpp>
#include <dsv3/core/scalar.hpp>

namespace dsv3::detail {

// y = a + b, summed in the wider type and rounded once.
template <class TA, class TB, class TY>
struct AddRow {
  View<const TA, 2> a;
  View<const TB, 2> b;
  View<TY, 2> y;

  DSV3_HD void operator()(auto team, Index t) const {
    using A = accum_t<TY>;
    team.each(y.extent(1), [&](Index j) { y(t, j) = TY(A(a(t, j)) + A(b(t, j))); });
  }
};

// y = x in another type.
template <class From, class To>
struct CastRow {
  View<const From, 2> x;
  View<To, 2> y;

  DSV3_HD void operator()(auto team, Index t) const {
    team.each(y.extent(1), [&](Index j) { y(t, j) = To(accum_t<From>(x(t, j))); });
  }
};

// y[r] = x[row[r]].
template <class From, class To>
struct GatherRow {
  View<const From, 2> x;
  View<const std::int32_t, 1> row;
  View<To, 2> y;

  DSV3_HD void operator()(auto team, Index r) const {
    const Index from = row(r);
    team.each(y.extent(1), [&](Index j) { y(r, j) = To(accum_t<From>(x(from, j))); });
  }
};

// y[row[r]] += x[r]. No row occurs twice.
template <class From, class To>
struct ScatterAddRow {
  View<const From, 2> x;
  View<const std::int32_t, 1> row;
  View<To, 2> y;

  DSV3_HD void operator()(auto team, Index r) const {
    using A = accum_t<To>;
    const Index to = row(r);
    team.each(x.extent(1), [&](Index j) { y(to, j) = To(A(y(to, j)) + A(x(r, j))); });
  }
};

// A copy.
template <class T>
struct CopyRow {
  View<const T, 2> x;
  View<T, 2> y;

  DSV3_HD void operator()(auto team, Index r) const {
    team.each(x.extent(1), [&](Index j) { y(r, j) = x(r, j); });
  }
};

}  // namespace dsv3::detail
