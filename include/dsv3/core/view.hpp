// View: the one argument type of every block, kernel and primitive.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define DSV3_HD __host__ __device__
#else
#define DSV3_HD
#endif

namespace dsv3 {

static_assert(std::endian::native == std::endian::little,
              "dsv3 reads and writes little-endian files without swapping: big-endian is refused");

using Index = std::ptrdiff_t;

/// A non-owning, row-major window on memory that somebody else keeps alive. The last dimension is
/// contiguous; strides count elements. It does not know whether `data` is host or device memory:
/// the backend that is passed beside it does.
template <class T, int Rank>
struct View {
  static_assert(Rank >= 1, "a View has at least one dimension");

  T* data = nullptr;
  Index extents[Rank] = {};
  Index strides[Rank] = {};

  DSV3_HD constexpr View() {}

  /// Dense memory of the given shape.
  DSV3_HD constexpr View(T* pointer, const Index (&shape)[Rank]) : data(pointer) {
    Index stride = 1;
    for (int d = Rank - 1; d >= 0; --d) {
      extents[d] = shape[d];
      strides[d] = stride;
      stride *= shape[d];
    }
  }

  /// A view of T may be read as a view of const T.
  template <class U>
  requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>) DSV3_HD
      constexpr View(const View<U, Rank>& other)
      : data(other.data) {
    for (int d = 0; d < Rank; ++d) {
      extents[d] = other.extents[d];
      strides[d] = other.strides[d];
    }
  }

  DSV3_HD constexpr Index extent(int d) const { return extents[d]; }

  DSV3_HD constexpr Index size() const {
    Index n = 1;
    for (int d = 0; d < Rank; ++d) n *= extents[d];
    return n;
  }

  /// The element at one index per dimension. Unchecked.
  template <class... I>
  requires(sizeof...(I) == Rank) DSV3_HD constexpr T& operator()(I... i) const {
    const Index at[] = {static_cast<Index>(i)...};
    Index offset = at[Rank - 1];  // the last stride is 1, which lets inner loops vectorise
    for (int d = 0; d + 1 < Rank; ++d) offset += at[d] * strides[d];
    return data[offset];
  }

  /// Entries [first, first + count) of the first dimension.
  DSV3_HD constexpr View rows(Index first, Index count) const {
    View part = *this;
    if (data) part.data = data + first * strides[0];
    part.extents[0] = count;
    return part;
  }

  /// Entries [first, first + count) of the last dimension.
  DSV3_HD constexpr View cols(Index first, Index count) const {
    View part = *this;
    if (data) part.data = data + first;
    part.extents[Rank - 1] = count;
    return part;
  }

  /// Entry i of the first dimension, with one dimension less.
  DSV3_HD constexpr View<T, Rank - 1> operator[](Index i) const requires(Rank > 1) {
    View<T, Rank - 1> part;
    if (data) part.data = data + i * strides[0];
    for (int d = 1; d < Rank; ++d) {
      part.extents[d - 1] = extents[d];
      part.strides[d - 1] = strides[d];
    }
    return part;
  }

  /// True where element (i, j, ...) lies at its row-major position: no gap between rows.
  DSV3_HD constexpr bool dense() const {
    Index stride = 1;
    for (int d = Rank - 1; d >= 0; --d) {
      if (extents[d] != 1 && strides[d] != stride) return false;
      stride *= extents[d];
    }
    return true;
  }

  /// The same elements as one dimension. The view must be dense.
  DSV3_HD constexpr View<T, 1> flat() const { return View<T, 1>(data, {size()}); }
};

/// A view of the same memory through which nothing is written.
template <class T, int Rank>
DSV3_HD constexpr View<const std::remove_const_t<T>, Rank> as_const(const View<T, Rank>& view) {
  return view;
}

}  // namespace dsv3
