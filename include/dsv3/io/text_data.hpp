// TextData: rows of tokens from memory-mapped text or token files, in a seeded, resumable order.
#pragma once

#include <algorithm>
#include <dsv3/core/check.hpp>
#include <dsv3/core/philox.hpp>
#include <dsv3/io/mapped_file.hpp>
#include <dsv3/io/posix.hpp>
#include <filesystem>
#include <set>
#include <string>
#include <system_error>
#include <vector>

namespace dsv3 {

/// What the bytes of a file are.
enum class TextFormat {
  bytes,  ///< text: token = byte, and end_of_document after each file
  u16,    ///< token ids, raw little-endian, 2 bytes each
  u32     ///< token ids, raw little-endian, 4 bytes each
};

/// The byte vocabulary: 256 byte values, then named specials.
struct ByteVocabulary {
  static constexpr std::int32_t end_of_document = 256;
  static constexpr Index size = 257;
};

/// How files become rows.
struct TextOptions {
  TextFormat format = TextFormat::bytes;
  Index vocab_size = ByteVocabulary::size;  ///< every token id is below it
  Index row_length = 512;                   ///< T: a row holds T inputs and, one later, T labels
  double held_out = 0.02;                   ///< share of the rows that are never trained on
  std::uint64_t seed = 1;                   ///< of the order of the training rows
};

/// A corpus as rows of T + 1 tokens. All files are concatenated (text files with an
/// end-of-document token after each) and cut into disjoint rows; the remainder is dropped. The
/// held-out rows lie evenly spaced in the corpus, whatever the seed. The others are visited in a
/// random order, each once an epoch; the order is a function of seed and position alone, so one
/// counter resumes it and neither batch size nor threads change it.
///
/// Folders are walked recursively in the order of their paths. Left out, and listed in skipped():
/// entries whose name begins with a dot, symbolic links, what is not a regular file, empty files
/// and, as text, files with a zero byte among their first 8192 (binary). A file named by the
/// caller is read whatever it holds.
///
/// Files stay mapped and must not change or shrink meanwhile.
/// Errors   std::invalid_argument for bad options, paths and ids, before the object exists;
///          std::runtime_error where a file cannot be read.
class TextData {
 public:
  struct Skipped {
    std::string path, reason;
  };

  TextData(const std::vector<std::string>& paths, const TextOptions& options) : options_(options) {
    check_options();
    if (paths.empty())
      throw std::invalid_argument("TextData: paths (0) must be at least 1: nothing to read");
    for (const std::string& path : paths) add(path);
    check_ids();
    cut_rows();
  }

  const TextOptions& options() const { return options_; }
  Index tokens() const { return begin_.back(); }  ///< of all files, with ends of documents
  Index files() const { return static_cast<Index>(files_.size()); }
  Index bytes() const { return bytes_; }
  const std::string& path(Index file) const { return names_[static_cast<std::size_t>(file)]; }
  const std::vector<Skipped>& skipped() const { return skipped_; }
  Index training_rows() const { return rows_ - held_out_rows(); }
  Index held_out_rows() const { return static_cast<Index>(held_out_.size()); }

  /// The row (of all) that is number `position` of the training order.
  /// Errors   std::invalid_argument where position < 0.
  Index row_at(Index position) const {
    check_at_most("TextData::row_at", "zero", 0, "position", position);
    const Index n = training_rows();
    return row_of(permuted(position % n, position / n));
  }

  /// Fills rows [B, T + 1] with numbers position ... position + B - 1 of the training order.
  void training_batch(Index position, View<std::int32_t, 2> rows) const {
    check_equal("TextData::training_batch", "columns of rows", rows.extent(1), "row length + 1",
                options_.row_length + 1);
    check_at_most("TextData::training_batch", "zero", 0, "position", position);
    for (Index b = 0; b < rows.extent(0); ++b) read(row_at(position + b), rows[b]);
  }

  /// Fills rows [B, T + 1] with held-out rows first ... first + B - 1, in the corpus' order.
  void held_out_batch(Index first, View<std::int32_t, 2> rows) const {
    const char* caller = "TextData::held_out_batch";
    check_equal(caller, "columns of rows", rows.extent(1), "row length + 1",
                options_.row_length + 1);
    check_at_most(caller, "zero", 0, "first row", first);
    check_at_most(caller, "last row asked for + 1", first + rows.extent(0), "held-out rows",
                  held_out_rows());
    for (Index b = 0; b < rows.extent(0); ++b)
      read(held_out_[static_cast<std::size_t>(first + b)], rows[b]);
  }

  /// Training row `index` in the corpus' order, for statistics.
  void training_row(Index index, View<std::int32_t, 1> row) const {
    check_at_most("TextData::training_row", "zero", 0, "index", index);
    check_at_most("TextData::training_row", "index + 1", index + 1, "training rows",
                  training_rows());
    read(row_of(index), row);
  }

 private:
  [[noreturn]] static void fail(const std::string& text) {
    throw std::invalid_argument("TextData: " + text);
  }
  static std::string quoted(const std::string& path) { return detail::in_quotes(path); }

  void check_options() const {
    check_at_most("TextData", "one", 1, "row length", options_.row_length);
    check_at_most("TextData", "row length", options_.row_length, "16777216", 16777216);
    if (!(options_.held_out >= 0 && options_.held_out <= 0.5))
      fail("held-out share (" + std::to_string(options_.held_out) + ") must be in [0, 0.5]");
    check_at_most("TextData", "least vocab_size of this format",
                  options_.format == TextFormat::bytes ? ByteVocabulary::size : 1, "vocab_size",
                  options_.vocab_size);
  }

  Index token_bytes() const {
    return options_.format == TextFormat::bytes ? 1 : options_.format == TextFormat::u16 ? 2 : 4;
  }

  void add(const std::string& path) {
    namespace fs = std::filesystem;
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (status.type() == fs::file_type::not_found) fail("no such file or folder: " + quoted(path));
    if (error) throw std::runtime_error("TextData: " + quoted(path) + ": " + error.message());
    if (fs::is_regular_file(status)) {
      if (fs::file_size(path) == 0) fail(quoted(path) + " is empty");
      add_file(path);
    } else if (fs::is_directory(status)) {
      const std::size_t files = files_.size(), skipped = skipped_.size();
      add_folder(path);
      if (files_.size() == files)
        fail("no text file in folder " + quoted(path) + " (" +
             std::to_string(skipped_.size() - skipped) + " entries skipped)");
    } else {
      fail("neither a file nor a folder: " + quoted(path));
    }
  }

  void add_folder(const std::string& folder) {
    namespace fs = std::filesystem;
    std::error_code error;
    std::vector<fs::path> entries;
    for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error))
      entries.push_back(at->path());
    if (error) throw std::runtime_error("TextData: " + quoted(folder) + ": " + error.message());
    std::sort(entries.begin(), entries.end());
    for (const fs::path& entry : entries) {
      const std::string name = entry.string();
      const fs::file_status status = fs::symlink_status(entry);
      if (entry.filename().string().front() == '.')
        skipped_.push_back({name, "hidden"});
      else if (fs::is_symlink(status))
        skipped_.push_back({name, "symbolic link"});
      else if (fs::is_directory(status))
        add_folder(name);
      else if (!fs::is_regular_file(status))
        skipped_.push_back({name, "not a regular file"});
      else if (fs::file_size(entry) == 0)
        skipped_.push_back({name, "empty"});
      else
        add_file(name, true);
    }
  }

  void add_file(const std::string& path, bool skip_binary = false) {
    MappedFile file(path);
    const auto size = static_cast<Index>(file.size());
    const unsigned char* data = bytes_of(file);
    const Index looked_at = size < 8192 ? size : 8192;
    if (options_.format == TextFormat::bytes && skip_binary &&
        std::find(data, data + looked_at, 0) != data + looked_at) {
      skipped_.push_back({path, "binary"});
      return;
    }
    // A file that is there twice would be trained on where it is held out.
    if (!canonical_.insert(std::filesystem::canonical(path).string()).second)
      fail(quoted(path) + " is given twice");
    if (size % token_bytes() != 0)
      fail("size of " + quoted(path) + " (" + std::to_string(size) +
           " bytes) must be a multiple of " + std::to_string(token_bytes()));
    files_.push_back(std::move(file));
    names_.push_back(path);
    bytes_ += size;
    begin_.push_back(begin_.back() + size / token_bytes() +
                     (options_.format == TextFormat::bytes ? 1 : 0));
  }

  static const unsigned char* bytes_of(const MappedFile& file) {
    return static_cast<const unsigned char*>(static_cast<const void*>(file.data()));
  }

  // Token `at` of one file, as unsigned as the file has it.
  std::uint32_t id(const unsigned char* data, Index at) const {
    const unsigned char* p = data + at * token_bytes();
    if (options_.format == TextFormat::bytes) return p[0];
    const std::uint32_t low = p[0] | static_cast<std::uint32_t>(p[1]) << 8;
    if (options_.format == TextFormat::u16) return low;
    return low | static_cast<std::uint32_t>(p[2]) << 16 | static_cast<std::uint32_t>(p[3]) << 24;
  }

  // Reads every token file once: a bad id must not stop a run in its third hour.
  void check_ids() const {
    if (options_.format == TextFormat::bytes) return;
    for (std::size_t f = 0; f < files_.size(); ++f) {
      const unsigned char* data = bytes_of(files_[f]);
      const Index n = begin_[f + 1] - begin_[f];
      for (Index i = 0; i < n; ++i)
        if (static_cast<Index>(id(data, i)) >= options_.vocab_size)
          fail("id of token " + std::to_string(i) + " of " + quoted(names_[f]) + " (" +
               std::to_string(id(data, i)) + ") must be below vocab_size (" +
               std::to_string(options_.vocab_size) + ")");
    }
  }

  void cut_rows() {
    const Index width = options_.row_length + 1, needed = options_.held_out > 0 ? 2 : 1;
    rows_ = tokens() / width;
    if (rows_ < needed)
      fail("tokens (" + std::to_string(tokens()) + ") must be at least those of " +
           std::to_string(needed) + (needed == 1 ? " row (" : " rows (") +
           std::to_string(needed * width) + ")");
    if (options_.held_out == 0) return;
    const auto share = static_cast<Index>(options_.held_out * static_cast<double>(rows_) + 0.5);
    const Index n = share < 1 ? 1 : share;
    held_out_.resize(static_cast<std::size_t>(n));
    for (Index i = 0; i < n; ++i)  // the middle of each n-th part; distinct, as n <= rows / 2
      held_out_[static_cast<std::size_t>(i)] = static_cast<Index>(
          (static_cast<double>(i) + 0.5) * static_cast<double>(rows_) / static_cast<double>(n));
  }

  // The index-th row that is not held out: before held_out_[i] lie held_out_[i] - i of those.
  Index row_of(Index index) const {
    Index low = 0, high = held_out_rows();
    while (low < high) {
      const Index middle = (low + high) / 2;
      if (held_out_[static_cast<std::size_t>(middle)] - middle <= index)
        low = middle + 1;
      else
        high = middle;
    }
    return index + low;
  }

  // The place of `index` in a random permutation of [0, training_rows()): a Feistel network with
  // Philox as its round function permutes [0, 4^half); walking along a cycle until it re-enters
  // the smaller range permutes that, without storing anything.
  Index permuted(Index index, Index epoch) const {
    const Index n = training_rows();
    int half = 1;
    while ((Index{1} << (2 * half)) < n) ++half;
    const std::uint64_t mask = (std::uint64_t{1} << half) - 1;
    const Philox philox(options_.seed,
                        hash_name("order of training rows") + static_cast<std::uint64_t>(epoch));
    auto x = static_cast<std::uint64_t>(index);
    do {
      std::uint64_t left = x >> half, right = x & mask;
      for (std::uint64_t round = 0; round < 8; ++round) {
        const std::uint64_t next = left ^ (philox(round << 32 | right).word[0] & mask);
        left = right;
        right = next;
      }
      x = left << half | right;
    } while (static_cast<Index>(x) >= n);
    return static_cast<Index>(x);
  }

  void read(Index row, View<std::int32_t, 1> out) const {
    Index at = row * (options_.row_length + 1), done = 0;
    auto f = static_cast<std::size_t>(std::upper_bound(begin_.begin(), begin_.end(), at) -
                                      begin_.begin() - 1);
    for (; done < out.extent(0); ++f) {
      const unsigned char* data = bytes_of(files_[f]);
      const bool text = options_.format == TextFormat::bytes;
      const Index stored = begin_[f + 1] - begin_[f] - (text ? 1 : 0);
      for (; at < begin_[f + 1] && done < out.extent(0); ++at, ++done) {
        const Index i = at - begin_[f];
        out(done) =
            i < stored ? static_cast<std::int32_t>(id(data, i)) : ByteVocabulary::end_of_document;
      }
    }
  }

  TextOptions options_;
  std::vector<MappedFile> files_;
  std::vector<std::string> names_;
  std::set<std::string> canonical_;  // names_ without links
  std::vector<Index> begin_ = {0};   // first token of each file, then all tokens
  std::vector<Index> held_out_;      // rows, ascending
  std::vector<Skipped> skipped_;
  Index rows_ = 0, bytes_ = 0;
};

/// Where documents begin among the B * T inputs of rows [B, T + 1], then B * T: after every
/// end-of-document token and at the start of every row.
inline std::vector<std::int32_t> document_offsets(View<const std::int32_t, 2> rows,
                                                  std::int32_t end_of_document) {
  const Index batch = rows.extent(0), length = rows.extent(1) - 1;
  std::vector<std::int32_t> offsets;
  for (Index b = 0; b < batch; ++b)
    for (Index t = 0; t < length; ++t)
      if (t == 0 || rows(b, t - 1) == end_of_document)
        offsets.push_back(static_cast<std::int32_t>(b * length + t));
  offsets.push_back(static_cast<std::int32_t>(batch * length));
  return offsets;
}

}  // namespace dsv3
