// Teams of row kernels and sorting by expert on a GPU, against the host.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <dsv3/backend/cuda/sort.cuh>
#include <dsv3/backend/host.hpp>
#include <dsv3/core/philox.hpp>
#include <memory>
#include <vector>

#include "where.hpp"

namespace {

using dsv3::Cuda;
using dsv3::Index;
using dsv3::View;

// The GPU, or null and a message.
std::unique_ptr<Cuda> gpu() {
  const auto reason = dsv3::cuda_unavailable();
  if (reason.empty()) return std::make_unique<Cuda>();
  std::printf("skipped: %s\n", reason.c_str());
  return nullptr;
}

// A vector in the device's memory.
template <class T>
class OnDevice {
 public:
  OnDevice(Cuda& cuda, const std::vector<T>& values)
      : cuda_(cuda), size_(values.size()), data_(static_cast<T*>(allocate(cuda, bytes()))) {
    copy_to_backend(cuda_, data_, values.data(), bytes());
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { deallocate(cuda_, data_, bytes()); }

  T* data() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    copy_to_host(cuda_, values.data(), data_, bytes());
    return values;
  }

 private:
  Index bytes() const { return static_cast<Index>(size_ * sizeof(T)); }

  Cuda& cuda_;
  std::size_t size_;
  T* data_;
};

// Says how many values differ, and where and how the first does.
template <class T>
void check_equal_values(const char* what, const std::vector<T>& ours,
                        const std::vector<T>& theirs) {
  REQUIRE(ours.size() == theirs.size());
  std::size_t count = 0, first = 0, last = 0;
  for (std::size_t i = 0; i < ours.size(); ++i)
    if (std::memcmp(&ours[i], &theirs[i], sizeof(T)) != 0) {
      if (count++ == 0) first = i;
      last = i;
    }
  if (count == 0) {
    CHECK(count == 0);
    return;
  }
  FAIL_CHECK(what << ": " << count << " of " << ours.size() << " differ, from [" << first << "] ("
                  << double(ours[first]) << ", must be " << double(theirs[first]) << ") to ["
                  << last << "] (" << double(ours[last]) << ", must be " << double(theirs[last])
                  << ")");
}

// Functors: nvcc warns where a team calls a host function's lambda.
template <class A>
struct Element {
  const A* x;
  DSV3_HD A operator()(Index i) const { return x[i]; }
};
struct Scattered {
  DSV3_HD std::uint32_t operator()(Index i) const {
    return static_cast<std::uint32_t>(i * 2654435761 % 4294967296);
  }
};

// What every thread of a team of 128 gets for ranges of x and y that begin at 0.
template <class A>
struct TeamRow {
  View<const Index, 1> length;
  View<const A, 1> x, y;
  View<A, 2> sum, dot, max;     // [lengths, 128]
  View<Index, 2> argmax, bits;  // bits: the largest of |x|'s

  DSV3_HD void operator()(auto team, Index row) const {
    const Index n = length(row);
    const auto left = [&](Index i) { return x(i); };
    const A s = team.sum(n, left), d = team.dot(n, left, [&](Index i) { return y(i); });
    const A m = team.max(n, left);
    const Index at = team.argmax(n, left);
    const auto largest = team.max(n, Scattered{});
    team.each(128, [&](Index thread) {
      sum(row, thread) = s;
      dot(row, thread) = d;
      max(row, thread) = m;
      argmax(row, thread) = at;
      bits(row, thread) = Index{largest};
    });
  }
};

// The values of 128 threads in the order in which a team adds them.
template <class A>
A in_order(std::vector<A> own) {
  for (std::size_t by = 16; by > 0; by /= 2)
    for (std::size_t i = 0; i < 128; ++i)
      if (i % 32 < by) own[i] += own[i + by];
  A all = own[0];
  for (std::size_t warp = 1; warp < 4; ++warp) all += own[32 * warp];
  return all;
}

template <class A>
void compare_teams() {
  const auto cuda = gpu();
  if (!cuda) return;
  const std::vector<Index> lengths = {0, 1, 2, 31, 32, 33, 127, 128, 129, 1000, 7168};
  const std::size_t rows = lengths.size();
  std::vector<A> x(7168), y(x.size());
  const dsv3::Philox philox(1, 0);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = A(normal(philox, i));
    y[i] = A(normal(philox, i + x.size()));
  }
  x[500] = x[900] = A(9);  // a tie of the largest
  const OnDevice<Index> on_lengths(*cuda, lengths);
  const OnDevice<A> on_x(*cuda, x), on_y(*cuda, y);
  const std::vector<A> none(rows * 128, A(-7));
  const std::vector<Index> no_index(rows * 128, -7);
  const OnDevice<A> sum(*cuda, none), dot(*cuda, none), max(*cuda, none);
  const OnDevice<Index> argmax(*cuda, no_index), bits(*cuda, no_index);
  const Index n = static_cast<Index>(rows), all = static_cast<Index>(x.size());
  for_each_row(*cuda, n,
               TeamRow<A>{{on_lengths.data(), {n}},
                          {on_x.data(), {all}},
                          {on_y.data(), {all}},
                          {sum.data(), {n, 128}},
                          {dot.data(), {n, 128}},
                          {max.data(), {n, 128}},
                          {argmax.data(), {n, 128}},
                          {bits.data(), {n, 128}}});
  std::vector<A> sums, dots, largest;
  std::vector<Index> places, largest_bits;
  const dsv3::SerialTeam serial;
  for (const Index length : lengths) {
    std::vector<A> own(128, A(0)), products(128, A(0));
    for (Index i = 0; i < length; ++i) {
      const auto at = static_cast<std::size_t>(i);
      own[at % 128] += x[at];
      products[at % 128] = std::fma(x[at], y[at], products[at % 128]);
    }
    const Element<A> value{x.data()};
    sums.insert(sums.end(), 128, in_order(own));
    dots.insert(dots.end(), 128, in_order(products));
    largest.insert(largest.end(), 128, serial.max(length, value));
    places.insert(places.end(), 128, serial.argmax(length, value));
    largest_bits.insert(largest_bits.end(), 128, Index{serial.max(length, Scattered{})});
  }
  check_equal_values("sum [11 lengths, 128 threads]", sum.host(), sums);
  check_equal_values("dot [11 lengths, 128 threads]", dot.host(), dots);
  check_equal_values("max [11 lengths, 128 threads]", max.host(), largest);
  check_equal_values("argmax [11 lengths, 128 threads]", argmax.host(), places);
  check_equal_values("max of integers [11 lengths, 128 threads]", bits.host(), largest_bits);
}

// How often each row was visited, and the sums before do not disturb those that follow.
struct VisitRow {
  View<std::int32_t, 1> visits;

  DSV3_HD void operator()(auto team, Index row) const {
    const float ones = team.sum(Index{100}, [](Index) { return 1.0f; });
    const Index last = team.argmax(Index{130}, [](Index i) { return double(i); });
    const double twos = team.sum(Index{1000}, [](Index) { return 2.0; });
    team.once([&] { visits(row) += ones == 100 && last == 129 && twos == 2000; });
  }
};

// Choices of experts and their order, on the host.
struct Choices {
  Index tokens, k, experts, stride;
  std::vector<std::int32_t> idx;

  Choices(Index t, Index per_token, Index e, Index gap, Index used)
      : tokens(t), k(per_token), experts(e), stride(per_token + gap) {
    idx.assign(static_cast<std::size_t>(t * stride), -7);
    std::uint64_t state = static_cast<std::uint64_t>(t + e);
    for (Index i = 0; i < t; ++i)
      for (Index j = 0; j < k; ++j) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        at(i, j) = static_cast<std::int32_t>((state >> 33) % static_cast<std::uint64_t>(used));
      }
  }
  std::int32_t& at(Index t, Index j) { return idx[static_cast<std::size_t>(t * stride + j)]; }
};

struct Order {
  std::vector<Index> offsets;
  std::vector<std::int32_t> pair_of_slot, slot_of_pair;

  explicit Order(const Choices& c)
      : offsets(static_cast<std::size_t>(c.experts + 1), -7),
        pair_of_slot(static_cast<std::size_t>(c.tokens * c.k), -7),
        slot_of_pair(c.idx.size(), -7) {}
};

template <class Backend>
void sort(Backend& backend, const Choices& c, const std::int32_t* idx, Index* offsets,
          std::int32_t* pair_of_slot, std::int32_t* slot_of_pair) {
  View<const std::int32_t, 2> from(idx, {c.tokens, c.k});
  View<std::int32_t, 2> to(slot_of_pair, {c.tokens, c.k});
  from.strides[0] = to.strides[0] = c.stride;
  sort_by_expert(backend, from, View<Index, 1>(offsets, {c.experts + 1}),
                 View<std::int32_t, 1>(pair_of_slot, {c.tokens * c.k}), to);
}

Order on_host(const Choices& c) {
  dsv3::HostMemory host;
  Order order(c);
  sort(host, c, c.idx.data(), order.offsets.data(), order.pair_of_slot.data(),
       order.slot_of_pair.data());
  return order;
}

// message: what the wait reports, or empty.
Order on_gpu(Cuda& cuda, const Choices& c, std::string& message) {
  Order order(c);
  const OnDevice<std::int32_t> idx(cuda, c.idx), pair_of_slot(cuda, order.pair_of_slot),
      slot_of_pair(cuda, order.slot_of_pair);
  const OnDevice<Index> offsets(cuda, order.offsets);
  sort(cuda, c, idx.data(), offsets.data(), pair_of_slot.data(), slot_of_pair.data());
  try {
    synchronize(cuda);
  } catch (const std::invalid_argument& e) {
    message = e.what();
  }
  order.offsets = offsets.host();
  order.pair_of_slot = pair_of_slot.host();
  order.slot_of_pair = slot_of_pair.host();
  return order;
}

void check_same(const Order& ours, const Order& theirs) {
  check_equal_values("offsets", ours.offsets, theirs.offsets);
  check_equal_values("pair_of_slot", ours.pair_of_slot, theirs.pair_of_slot);
  check_equal_values("slot_of_pair", ours.slot_of_pair, theirs.slot_of_pair);
}

}  // namespace

TEST_CASE("a team of 128 threads adds in the order that it promises, the same in all threads") {
  compare_teams<float>();
  compare_teams<double>();
}

TEST_CASE("every row is visited once, also where there are more than blocks") {
  const auto cuda = gpu();
  if (!cuda) return;
  for (const Index rows : {1, 300, 65535, 65536, 200000}) {
    if (on_fibers && rows > 300) break;
    CAPTURE(rows);
    const std::vector<std::int32_t> zeros(static_cast<std::size_t>(rows), 0), ones(zeros.size(), 1);
    const OnDevice<std::int32_t> visits(*cuda, zeros);
    for_each_row(*cuda, rows, VisitRow{{visits.data(), {rows}}});
    check_equal_values("visits", visits.host(), ones);
  }
}

TEST_CASE("sorting by expert gives the slots of the host") {
  const auto cuda = gpu();
  if (!cuda) return;
  std::vector<Choices> all;
  for (const Index tokens : {0, 1, 3, 37, 64, 171, 1000})
    for (const Index experts : {1, 8, 33, 256}) all.push_back({tokens, 3, experts, 0, experts});
  all.push_back({5, 0, 4, 0, 4});            // no pairs
  all.push_back({700, 8, 16, 0, 1});         // all of one expert
  all.push_back({200, 5, 9, 2, 9});          // rows apart
  all.push_back({300, 8, 12001, 0, 12001});  // counted in the workspace
  if (!on_fibers) {
    all.push_back({3000, 8, 50000, 1, 50000});
    all.push_back({4096, 8, 256, 0, 256});
    all.push_back({131072, 8, 256, 0, 256});  // chunks longer than the least
  }
  for (const auto& choices : all) {
    CAPTURE(choices.tokens);
    CAPTURE(choices.k);
    CAPTURE(choices.experts);
    std::string message;
    check_same(on_gpu(*cuda, choices, message), on_host(choices));
    CHECK(message == "");
  }
}

TEST_CASE("the first pair that is no expert's is reported once, and all slots stay within bounds") {
  const auto cuda = gpu();
  if (!cuda) return;
  for (const Index experts : {Index{11}, Index{12001}}) {
    Choices choices(700, 3, experts, 0, 11);
    choices.at(650, 0) = 1 << 30;
    choices.at(500, 2) = static_cast<std::int32_t>(experts);
    choices.at(501, 0) = -1;
    std::string message;
    const Order ours = on_gpu(*cuda, choices, message);
    const auto e = std::to_string(experts);
    CHECK(message == "sort_by_expert: topk_idx[500, 2] (" + e +
                         ") must be at least 0 and below the experts (" + e + ")");
    choices.at(650, 0) = choices.at(500, 2) = choices.at(501, 0) = 0;
    check_same(ours, on_host(choices));
    CHECK_NOTHROW(synchronize(*cuda));
  }
}

TEST_CASE("sorting checks extents before anything is launched") {
  const auto cuda = gpu();
  if (!cuda) return;
  CHECK_THROWS_WITH_AS(
      sort_by_expert(*cuda, View<const std::int32_t, 2>(nullptr, {3, 2}),
                     View<Index, 1>(nullptr, {5}), View<std::int32_t, 1>(nullptr, {5}),
                     View<std::int32_t, 2>(nullptr, {3, 2})),
      "sort_by_expert: size of pair_of_slot (5) must equal pairs (6)", std::invalid_argument);
}
