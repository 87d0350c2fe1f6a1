// What the file headers share: owned file descriptors, and errors of system calls.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace dsv3::detail {

/// Text from outside, fit for a message: in quotes, control characters as \xNN, cut to 120 bytes.
inline std::string in_quotes(std::string_view text) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out = "'";
  std::size_t kept = text.size();
  if (kept > 120) {
    kept = 120;
    while (kept > 0 && (static_cast<unsigned char>(text[kept]) & 0xC0u) == 0x80u) --kept;
  }
  for (const char c : text.substr(0, kept)) {
    const auto u = static_cast<unsigned char>(c);
    if (u >= 0x20 && u != 0x7F)
      out += c;
    else
      (((out += "\\x") += digits[u >> 4]) += digits[u & 15]);
  }
  return out + (kept < text.size() ? "...'" : "'");
}

/// Throws std::runtime_error "who: operation 'path': what errno says".
[[noreturn]] inline void fail_system(const char* who, const char* operation,
                                     const std::string& path, int error) {
  throw std::runtime_error(std::string(who) + ": " + operation + " " + in_quotes(path) + ": " +
                           std::generic_category().message(error));
}

/// An open file or folder, closed by the destructor.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

/// open(2), again where a signal interrupted it. Not open where it failed: see errno.
inline FileDescriptor open_file(const std::string& path, int flags, mode_t mode = 0) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return FileDescriptor(fd);
}

/// A path that may hold no zero byte: system calls would read only what stands before it.
inline void check_path(const char* who, const std::string& path) {
  if (path.empty()) throw std::invalid_argument(std::string(who) + ": path must not be empty");
  if (path.find('\0') != std::string::npos)
    throw std::invalid_argument(std::string(who) + ": path " + in_quotes(path) +
                                " must not hold a zero byte");
}

/// The folder in which `path` lies.
inline std::string folder_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace dsv3::detail
