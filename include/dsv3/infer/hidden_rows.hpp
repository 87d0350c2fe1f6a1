// HiddenRows: the hidden states that MTP still has to read, of every sequence and level.
#pragma once

#include <dsv3/core/arena.hpp>
#include <dsv3/core/buffer.hpp>
#include <dsv3/core/check.hpp>
#include <dsv3/nn/rows.hpp>
#include <vector>

namespace dsv3 {
namespace detail {

// y[row[r]] = x[r]. No row occurs twice.
template <class T>
struct ScatterRow {
  View<const T, 2> x;
  View<const std::int32_t, 1> row;
  View<T, 2> y;

  DSV3_HD void operator()(auto team, Index r) const {
    const Index to = row(r);
    team.each(x.extent(1), [&](Index j) { y(to, j) = x(r, j); });
  }
};

}  // namespace detail

/// For each sequence and level the rows of the last `window` positions, in a backend's memory: MTP
/// depth k reads row i of level k - 1 when the token i + k is known, which may be passes later.
///
/// Shapes   [sequences, levels, window, H]; position p lies at p modulo window.
template <class Backend, class T>
class HiddenRows {
 public:
  HiddenRows(Backend& backend, Index sequences, Index levels, Index window, Index hidden)
      : backend_(&backend),
        levels_(levels),
        window_(window),
        hidden_(hidden),
        memory_(backend, Arena::bytes<T>(sequences * levels * window * hidden)) {}

  Index window() const { return window_; }

  /// The place of a sequence's position at a level.
  std::int32_t place(Index sequence, Index level, Index position) const {
    return static_cast<std::int32_t>((sequence * levels_ + level) * window_ + position % window_);
  }

  /// Keeps rows [T, H] at the given places.
  void store(View<const T, 2> rows, const std::vector<std::int32_t>& places) {
    if (places.empty()) return;
    check_shape("HiddenRows::store", "rows", rows, static_cast<Index>(places.size()), "places",
                hidden_, "hidden_size");
    for_each_row(*backend_, rows.extent(0), detail::ScatterRow<T>{rows, upload(places), all()});
  }

  /// The rows at the given places, [T, H], until the next call.
  View<const T, 2> load(const std::vector<std::int32_t>& places) {
    const Index n = static_cast<Index>(places.size());
    const Index bytes = Arena::bytes<T>(n * hidden_);
    if (rows_.bytes() < bytes) rows_ = Buffer<Backend>(*backend_, bytes);
    const View<T, 2> rows(static_cast<T*>(rows_.data()), {n, hidden_});
    for_each_row(*backend_, n, detail::GatherRow<T, T>{as_const(all()), upload(places), rows});
    return rows;
  }

 private:
  View<T, 2> all() const {
    return {static_cast<T*>(memory_.data()),
            {memory_.bytes() / (hidden_ * static_cast<Index>(sizeof(T))), hidden_}};
  }

  View<const std::int32_t, 1> upload(const std::vector<std::int32_t>& places) {
    const Index n = static_cast<Index>(places.size()), bytes = n * Index{sizeof(std::int32_t)};
    if (lists_.bytes() < bytes) lists_ = Buffer<Backend>(*backend_, bytes);
    copy_to_backend(*backend_, lists_.data(), places.data(), bytes);
    return {static_cast<const std::int32_t*>(lists_.data()), {n}};
  }

  Backend* backend_;
  Index levels_, window_, hidden_;
  Buffer<Backend> memory_, lists_, rows_;
};

}  // namespace dsv3
