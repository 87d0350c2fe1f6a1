// Work that a backend may record the first times and then repeat as a whole.
#pragma once

#include <cstring>
#include <dsv3/core/view.hpp>
#include <string>

namespace dsv3 {

/// Everything by value that decides what a piece of work asks of its backend: sizes, addresses,
/// numbers. Two pieces with equal keys ask the same, in the same order, of the same memory.
class RecordKey {
 public:
  template <class T>
  requires std::is_trivially_copyable_v<T> RecordKey& add(const T& value) {
    static_assert(std::has_unique_object_representations_v<T> || std::is_floating_point_v<T>,
                  "a key is compared byte by byte: padding would differ by chance");
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  template <class T, int Rank>
  RecordKey& add(const View<T, Rank>& view) {
    add(view.data);
    for (int d = 0; d < Rank; ++d) add(view.extents[d]).add(view.strides[d]);
    return *this;
  }

  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

/// Runs work(), which asks only kernels of the backend: no copies to or from the host, no memory. A
/// backend whose launches cost time may offer an overload that records them.
template <class Backend>
void run_recorded(Backend&, const RecordKey& /*key*/, auto&& work) {
  work();
}

/// The multiple to which a recorded pass rounds the number of keys that it attends to, so that
/// passes are alike.
template <class Backend>
constexpr Index recorded_keys(const Backend&) {
  return 1;
}

}  // namespace dsv3
