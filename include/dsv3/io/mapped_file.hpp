// MappedFile: a file's bytes as memory, read when they are touched.
#pragma once

#include <sys/mman.h>
#include <dsv3/core/view.hpp>
#include <dsv3/io/posix.hpp>

namespace dsv3 {

namespace detail {

// Tells the system what comes next for the pages of a mapping that hold these bytes. Advice only:
// it may refuse.
inline void advise(const std::byte* data, Index bytes, int advice) {
  if (bytes <= 0) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto from = reinterpret_cast<std::uintptr_t>(data) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(data) + static_cast<std::uintptr_t>(bytes);
  (void)::madvise(reinterpret_cast<void*>(from), end - from, advice);
}

}  // namespace detail

/// A regular file mapped for reading. The bytes have the address data() as long as the object, or
/// what it was moved to, lives. The file must not shrink meanwhile: the system ends a program that
/// reads a page which is no longer there.
///
/// Errors   std::runtime_error "MappedFile: operation 'path': reason" where a system call fails,
///          std::invalid_argument where the path is empty or names no regular file.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path) {
    const char* who = "MappedFile";
    detail::check_path(who, path);
    // Not blocking: opening a pipe would wait for a writer.
    const detail::FileDescriptor file = detail::open_file(path, O_RDONLY | O_NONBLOCK);
    if (!file) detail::fail_system(who, "open", path, errno);
    struct stat status;
    if (::fstat(file.get(), &status) != 0) detail::fail_system(who, "fstat", path, errno);
    if (!S_ISREG(status.st_mode))
      throw std::invalid_argument("MappedFile: " + detail::in_quotes(path) +
                                  " must be a regular file");
    if (status.st_size == 0) return;  // mmap refuses an empty range
    const auto size = static_cast<std::size_t>(status.st_size);
    void* const memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (memory == MAP_FAILED) detail::fail_system(who, "mmap", path, errno);
    data_ = static_cast<const std::byte*>(memory);
    size_ = size;
  }
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MappedFile() {
    if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
  }

  /// The first byte; null where the file is empty. Aligned to a page.
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace dsv3
