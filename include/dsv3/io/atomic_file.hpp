// AtomicFile, AtomicFolder: what is written appears under its name whole, or not at all, whenever
// the process or the machine stops.
#pragma once

#include <dsv3/core/view.hpp>
#include <dsv3/io/posix.hpp>
#include <filesystem>

namespace dsv3 {

namespace detail {

enum class Locked {
  yes,   // by this object
  no,    // somebody else holds it
  gone,  // the path names another file by now, or none
};

// Takes the lock on the open file or folder that `path` names. A lock ends with its process, so an
// unlocked temporary file is one that a crash has left.
inline Locked lock(const FileDescriptor& file, const char* who, const std::string& path) {
  while (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return Locked::no;
    if (errno != EINTR) fail_system(who, "flock", path, errno);
  }
  struct stat open, named;
  if (::fstat(file.get(), &open) != 0) fail_system(who, "fstat", path, errno);
  if (::lstat(path.c_str(), &named) != 0) return Locked::gone;
  return open.st_dev == named.st_dev && open.st_ino == named.st_ino ? Locked::yes : Locked::gone;
}

[[noreturn]] inline void fail_in_use(const char* who, const std::string& path) {
  throw std::runtime_error(std::string(who) + ": " + in_quotes(path) +
                           " is being written by somebody else");
}

// Makes a new temporary file or folder at `path`, locked. `make` makes it and says whether it did
// (else errno), `open` opens what is there, `remove` removes what a crashed process left.
FileDescriptor make_temporary(const char* who, const std::string& path, auto make, auto open,
                              auto remove) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    const bool made = make();
    if (!made && errno != EEXIST) fail_system(who, "create", path, errno);
    FileDescriptor file = open();
    if (!file && errno == ENOENT) continue;
    if (!file) fail_system(who, "open", path, errno);
    const Locked locked = detail::lock(file, who, path);
    if (locked == Locked::no) fail_in_use(who, path);
    if (locked == Locked::gone) continue;
    if (made) return file;
    remove();
  }
  fail_in_use(who, path);
}

inline void flush(const char* who, const FileDescriptor& file, const std::string& path) {
  // EINVAL: this kind of file has nothing to flush (some file systems say so of folders).
  if (::fsync(file.get()) != 0 && errno != EINVAL) fail_system(who, "fsync", path, errno);
}

inline void flush(const char* who, const std::string& path) {
  const FileDescriptor file = open_file(path, O_RDONLY | O_NONBLOCK);
  if (!file) fail_system(who, "open", path, errno);
  flush(who, file, path);
}

}  // namespace detail

/// A file that is written as `PATH.tmp` beside its place and takes the place in commit(). Without
/// commit() the destructor removes `PATH.tmp`; what was at PATH before stays. The `.tmp` of a
/// crashed process is replaced, that of a running one is an error.
///
/// Errors   std::runtime_error "AtomicFile: operation 'path': reason"; std::invalid_argument where
///          the path is empty.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path) : path_(std::move(path)) {
    detail::check_path(who, path_);
    temporary_ = path_ + ".tmp";
    file_ = detail::make_temporary(
        who, temporary_,
        [&] { return bool(detail::open_file(temporary_, O_WRONLY | O_CREAT | O_EXCL, 0666)); },
        [&] { return detail::open_file(temporary_, O_WRONLY | O_NOFOLLOW | O_NONBLOCK); },
        [&] {
          if (::unlink(temporary_.c_str()) != 0)
            detail::fail_system(who, "unlink", temporary_, errno);
        });
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() {
    if (file_) ::unlink(temporary_.c_str());  // before the lock ends
  }

  /// Appends bytes.
  void write(const void* data, Index bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::write(file_.get(), from, static_cast<std::size_t>(bytes));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) detail::fail_system(who, "write", temporary_, errno);
      from += n;
      bytes -= n;
    }
  }

  /// Appends text.
  void write(std::string_view text) { write(text.data(), static_cast<Index>(text.size())); }

  /// Brings everything to the disk, then takes the place of PATH. To be called once, at the end.
  /// A symbolic link at PATH is replaced, not followed. Where the very last step fails, flushing
  /// the folder, PATH is already the new file.
  void commit() {
    detail::flush(who, file_, temporary_);
    const std::string folder = detail::folder_of(path_);
    const detail::FileDescriptor parent = detail::open_file(folder, O_RDONLY | O_DIRECTORY);
    if (!parent) detail::fail_system(who, "open", folder, errno);
    if (::rename(temporary_.c_str(), path_.c_str()) != 0)
      detail::fail_system(who, "rename to", path_, errno);
    detail::FileDescriptor(std::move(file_));  // closed: nothing is left to remove
    detail::flush(who, parent, folder);
  }

 private:
  static constexpr const char* who = "AtomicFile";

  std::string path_, temporary_;
  detail::FileDescriptor file_;
};

/// What a folder that is already there means.
enum class IfExists {
  replace,  ///< it is exchanged with the new one in one step, then removed
  refuse,   ///< an error
};

/// A folder that is filled as `PATH.tmp/` and takes its place in commit(), as AtomicFile does.
/// Where PATH exists, both are exchanged in one step (Linux, renameat2), so that PATH is a whole
/// folder at every moment.
///
/// Errors   std::runtime_error "AtomicFolder: operation 'path': reason"; std::invalid_argument
///          where the path is empty, names a file, or exists and IfExists::refuse was asked for.
class AtomicFolder {
 public:
  explicit AtomicFolder(std::string path, IfExists if_exists = IfExists::replace)
      : path_(std::move(path)), if_exists_(if_exists) {
    while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
    detail::check_path(who, path_);
    check_target();
    temporary_ = path_ + ".tmp";
    folder_ = detail::make_temporary(
        who, temporary_, [&] { return ::mkdir(temporary_.c_str(), 0777) == 0; },
        [&] { return detail::open_file(temporary_, O_RDONLY | O_DIRECTORY | O_NOFOLLOW); },
        [&] { remove(temporary_); });
  }
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  ~AtomicFolder() {
    std::error_code ignored;
    if (folder_) std::filesystem::remove_all(temporary_, ignored);
  }

  /// Where a file of this name is to be written until commit().
  std::string file(const std::string& name) const { return temporary_ + "/" + name; }

  /// Brings every file and folder inside to the disk, then takes the place of PATH.
  void commit() {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(temporary_))
      if (entry.is_regular_file() || entry.is_directory())
        detail::flush(who, entry.path().string());
    detail::flush(who, folder_, temporary_);
    const std::string parent_path = detail::folder_of(path_);
    const detail::FileDescriptor parent = detail::open_file(parent_path, O_RDONLY | O_DIRECTORY);
    if (!parent) detail::fail_system(who, "open", parent_path, errno);
    detail::FileDescriptor old;
    if (check_target()) {
      // Locked, so that nobody takes the old folder, once it is PATH.tmp, for a crashed one.
      old = detail::open_file(path_, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      if (!old) detail::fail_system(who, "open", path_, errno);
      if (detail::lock(old, who, path_) != detail::Locked::yes) detail::fail_in_use(who, path_);
      if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) != 0)
        detail::fail_system(who, "exchange", path_, errno);
    } else if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
      detail::fail_system(who, "rename to", path_, errno);
    }
    detail::FileDescriptor(std::move(folder_));  // closed: what is PATH.tmp now is not ours
    detail::flush(who, parent, parent_path);
    if (old) remove(temporary_);
  }

 private:
  static constexpr const char* who = "AtomicFolder";

  // True where PATH is a folder that may be replaced.
  bool check_target() const {
    struct stat status;
    if (::lstat(path_.c_str(), &status) != 0) {
      if (errno == ENOENT) return false;
      detail::fail_system(who, "lstat", path_, errno);
    }
    const std::string name = std::string(who) + ": " + detail::in_quotes(path_);
    if (!S_ISDIR(status.st_mode)) throw std::invalid_argument(name + " exists and is no folder");
    if (if_exists_ == IfExists::refuse) throw std::invalid_argument(name + " exists already");
    return true;
  }

  static void remove(const std::string& folder) {
    std::error_code error;
    std::filesystem::remove_all(folder, error);
    if (error) detail::fail_system(who, "remove", folder, error.value());
  }

  std::string path_, temporary_;
  IfExists if_exists_;
  detail::FileDescriptor folder_;
};

}  // namespace dsv3
