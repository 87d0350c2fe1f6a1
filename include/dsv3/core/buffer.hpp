// Buffer: memory of a backend, owned.
#pragma once

#include <dsv3/core/view.hpp>
#include <utility>

namespace dsv3 {

/// Bytes allocated from a backend and returned to it by the destructor. The backend must outlive
/// it. Errors   what the backend's allocate throws.
template <class Backend>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Backend& backend, Index bytes)
      : backend_(&backend), data_(allocate(backend, bytes)), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer() {
    if (data_) deallocate(*backend_, data_, bytes_);
  }

  void* data() const { return data_; }
  Index bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  Index bytes_ = 0;
};

}  // namespace dsv3
