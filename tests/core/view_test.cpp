#include <doctest/doctest.h>

#include <dsv3/core/check.hpp>
#include <dsv3/core/product.hpp>
#include <dsv3/core/view.hpp>
#include <stdexcept>
#include <string>

using namespace dsv3;

TEST_CASE("View reads row-major memory") {
  int data[24];
  for (int i = 0; i < 24; ++i) data[i] = i;
  const View<int, 3> v(data, {2, 3, 4});
  CHECK(v.size() == 24);
  CHECK(v.extent(1) == 3);
  CHECK(v(0, 0, 0) == 0);
  CHECK(v(1, 2, 3) == 23);
  CHECK(v(1, 0, 2) == 14);
  CHECK(v.dense());
  CHECK(v[1](2, 3) == 23);
  CHECK(v[1][2](3) == 23);
  CHECK(v.flat()(14) == 14);
  v(1, 0, 2) = 99;
  CHECK(data[14] == 99);
}

TEST_CASE("Rows and columns of a view keep its strides") {
  int data[24];
  for (int i = 0; i < 24; ++i) data[i] = i;
  const View<int, 2> v(data, {4, 6});
  const auto rows = v.rows(1, 2);
  CHECK(rows.extent(0) == 2);
  CHECK(rows(0, 0) == 6);
  CHECK(rows(1, 5) == 17);
  CHECK(rows.dense());
  const auto cols = v.cols(2, 3);
  CHECK(cols.extent(1) == 3);
  CHECK(cols(3, 2) == 22);
  CHECK_FALSE(cols.dense());
  CHECK(cols.rows(2, 1).dense());  // one row has no gap
  const auto both = v.rows(1, 3).cols(5, 1);
  CHECK(both(2, 0) == 23);
  CHECK(both[2](0) == 23);
  CHECK(v.rows(4, 0).size() == 0);
}

TEST_CASE("A view of T reads as a view of const T; views without memory keep shapes") {
  int data[6] = {1, 2, 3, 4, 5, 6};
  const View<int, 2> v(data, {2, 3});
  const View<const int, 2> c = v;
  CHECK(c(1, 2) == 6);
  static_assert(std::is_same_v<decltype(as_const(v)), View<const int, 2>>);
  static_assert(std::is_same_v<decltype(as_const(c)), View<const int, 2>>);
  static_assert(!std::is_convertible_v<View<const int, 2>, View<int, 2>>);
  static_assert(!std::is_convertible_v<View<int, 2>, View<long, 2>>);
  const View<int, 3> none(nullptr, {4, 5, 6});
  CHECK(none.size() == 120);
  CHECK(none[2].data == nullptr);  // a dry run moves no null pointer
  CHECK(none.rows(1, 2).data == nullptr);
  CHECK(none.cols(1, 2).data == nullptr);
  CHECK(none.rows(1, 2).extent(0) == 2);
  CHECK(View<int, 2>().size() == 0);
}

TEST_CASE("Views work in constant expressions") {
  static constexpr int data[] = {1, 2, 3, 4, 5, 6};
  constexpr View<const int, 2> v(data, {2, 3});
  static_assert(v(1, 1) == 5 && v[1](2) == 6 && v.cols(1, 2)(0, 1) == 3 && v.dense());
}

TEST_CASE("Checks name the caller, both quantities and both values") {
  check_equal("F", "a", 3, "b", 3);
  check_at_most("F", "a", 3, "b", 3);
  CHECK_THROWS_WITH_AS(check_equal("F", "a", 3, "b", 4), "F: a (3) must equal b (4)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(check_at_most("F", "a", 5, "b", -4), "F: a (5) must be at most b (-4)",
                       std::invalid_argument);
  const View<float, 1> x(nullptr, {7});
  const View<float, 2> y(nullptr, {7, 5});
  check_shape("F", "x", x, 7, "n");
  check_shape("F", "y", y, 7, "n", 5, "m");
  CHECK_THROWS_WITH_AS(check_shape("F", "x", x, 8, "n"), "F: size of x (7) must equal n (8)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(check_shape("F", "y", y, 8, "n", 5, "m"),
                       "F: rows of y (7) must equal n (8)", std::invalid_argument);
  CHECK_THROWS_WITH_AS(check_shape("F", "y", y, 7, "n", 6, "m"),
                       "F: columns of y (5) must equal m (6)", std::invalid_argument);
}

TEST_CASE("Checks of products name the side that disagrees") {
  using detail::check_product;
  check_product<Product::nt>("gemm", 2, 3, 4, 3, 2, 4);
  check_product<Product::nn>("gemm", 2, 3, 3, 4, 2, 4);
  check_product<Product::tn>("gemm", 3, 2, 3, 4, 2, 4);
  CHECK_THROWS_WITH_AS(check_product<Product::nt>("gemm", 2, 3, 4, 5, 2, 4),
                       "gemm: columns of a (3) must equal columns of b (5)", std::invalid_argument);
  CHECK_THROWS_WITH_AS(check_product<Product::nn>("gemm", 2, 3, 5, 4, 2, 4),
                       "gemm: columns of a (3) must equal rows of b (5)", std::invalid_argument);
  CHECK_THROWS_WITH_AS(check_product<Product::tn>("gemm", 3, 2, 5, 4, 2, 4),
                       "gemm: rows of a (3) must equal rows of b (5)", std::invalid_argument);
  CHECK_THROWS_WITH_AS(check_product<Product::nt>("gemm", 2, 3, 4, 3, 9, 4),
                       "gemm: rows of a (2) must equal rows of c (9)", std::invalid_argument);
  CHECK_THROWS_WITH_AS(check_product<Product::tn>("gemm", 3, 2, 3, 4, 2, 9),
                       "gemm: columns of b (4) must equal columns of c (9)", std::invalid_argument);
}
