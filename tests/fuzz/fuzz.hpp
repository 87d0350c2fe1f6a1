// What fuzz targets share: a bound on memory, a file of the input's bytes, and which errors a
// reader may report.
#pragma once

#include <sanitizer/allocator_interface.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fuzz {

/// Ends the program, as a finding of the fuzzer.
[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

inline void require(bool condition, const char* what) {
  if (!condition) fail(what);
}

// Bytes that are allocated, and how many may be.
inline std::size_t live = 0, most = ~std::size_t{0};

inline void on_malloc(const volatile void*, std::size_t bytes) {
  live += bytes;
  if (live > most) {
    most = ~std::size_t{0};
    fail("more is allocated than twice the input and 64 MiB");
  }
}

inline void on_free(const volatile void* memory) {
  const std::size_t bytes = memory ? __sanitizer_get_allocated_size(memory) : 0;
  live = live > bytes ? live - bytes : 0;  // some were there before counting began
}

/// Runs a reader on an input: it returns or reports a documented error, and never has more than
/// twice the input and 64 MiB allocated at once.
inline void run(std::string_view input, auto read) {
  static const int installed = __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
  require(installed != 0, "allocations cannot be counted");
  const std::size_t before = live;
  most = before + 2 * input.size() + (std::size_t{64} << 20);
  try {
    read();
  } catch (const std::invalid_argument&) {
  } catch (const std::runtime_error&) {
  }
  most = ~std::size_t{0};
}

inline std::string_view text(const unsigned char* data, std::size_t size) {
  return {static_cast<const char*>(static_cast<const void*>(data)), size};
}

/// A folder in memory, removed at the end of the program.
class Folder {
 public:
  Folder() {
    const char* parent = std::getenv("DSV3_FUZZ_FOLDER");  // so that crashes leave nothing behind
    std::string pattern = std::string(parent ? parent : "/dev/shm") + "/dsv3_fuzz_XXXXXX";
    require(::mkdtemp(pattern.data()) != nullptr, "no folder in memory");
    at_ = pattern;
  }
  ~Folder() { std::filesystem::remove_all(at_); }
  Folder(const Folder&) = delete;

  std::string path(const std::string& name) const { return at_ + "/" + name; }
  std::string path() const { return at_; }
  std::string write(const std::string& name, std::string_view content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }

 private:
  std::string at_;
};

}  // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size);
