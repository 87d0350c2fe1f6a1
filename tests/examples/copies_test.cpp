#include <doctest/doctest.h>

#include "../../examples/experiments/copies.hpp"

using dsv3::Index;
using experiment::Copies;

namespace {

// Six experts on two nodes of three GPUs; two tokens a row.
Copies counted(const std::vector<std::int32_t>& chosen, Index k, Index first_row) {
  Copies c{std::vector<Index>(3), std::vector<Index>(2), std::vector<Index>(2)};
  c.add({chosen.data(), {static_cast<Index>(chosen.size()) / k, k}}, 6, first_row, 2);
  return c;
}

using List = std::vector<Index>;

}  // namespace

TEST_CASE("A token's own node costs no copy between nodes, its own GPU none inside") {
  const Copies own = counted({0, 1}, 2, 0);  // row 0: node 0, GPU 0
  CHECK(own.nodes == List{0, 1, 0});
  CHECK(own.between == List{0, 0});
  CHECK(own.inside == List{1, 0});
}

TEST_CASE("Experts of another node share one copy between, from which all but one go on inside") {
  const Copies other = counted({3, 4, 5}, 3, 1);  // row 1: node 0, GPU 1, as expert 4 in node 1
  CHECK(other.nodes == List{0, 1, 0});
  CHECK(other.between == List{0, 1});
  CHECK(other.inside == List{0, 2});
  const Copies both = counted({2, 3}, 2, 0);
  CHECK(both.nodes == List{0, 0, 1});
  CHECK(both.between == List{0, 1});
  CHECK(both.inside == List{1, 0});
}

TEST_CASE("Rows go to the GPUs in turn, all their tokens to one") {
  // Rows 4 and 5 are in node 1 at GPUs 1 and 2; row 6 is where row 0 is.
  const Copies c = counted({4, 4, 5, 5, 0, 3}, 1, 4);
  CHECK(c.nodes == List{0, 6, 0});
  CHECK(c.between == List{0, 1});  // the last token alone
  CHECK(c.inside == List{0, 0});
}
