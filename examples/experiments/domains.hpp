// Text of several domains: what every experiment trains on and is measured by.
#pragma once

#include <dsv3/io/text_data.hpp>
#include <memory>

#include "../text.hpp"

namespace experiment {

using dsv3::Index;
using dsv3::View;

/// A name and the files or folders that are read under it.
struct DomainText {
  std::string name;
  std::vector<std::string> paths;
};

namespace detail {

// The folders of /usr/share that begin so, for packages that carry their version in the name.
inline std::vector<std::string> shared_folders(const std::string& prefix, const char* below) {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/usr/share", ignored))
    if (entry.path().filename().string().starts_with(prefix) &&
        std::filesystem::is_directory(entry.path() / below, ignored))
      found.push_back((entry.path() / below).string());
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace detail

/// What a machine has on which this library was built: licences, Eigen's headers, and the manual
/// and the modules of CMake.
inline std::vector<DomainText> installed_texts() {
  return {{"licences", {"/usr/share/common-licenses"}},
          {"C++ headers", {"/usr/include/eigen3"}},
          {"manuals", detail::shared_folders("cmake-", "Help")},
          {"CMake scripts", detail::shared_folders("cmake-", "Modules")}};
}

/// "NAME=PATH" of the command line.
/// Errors   std::invalid_argument where there is no name or no path.
inline DomainText parse_domain(const std::string& text) {
  const std::size_t at = text.find('=');
  if (at == std::string::npos || at == 0 || at + 1 == text.size())
    throw std::invalid_argument("--text: '" + text + "' must be NAME=PATH");
  return {text.substr(0, at), {text.substr(at + 1)}};
}

/// Rows of bytes of every domain. Training rows come from one domain after the other, so that all
/// have the same share, whatever their size. Text is held out in rows of pieces * row_length, of
/// which each row here is one part: lengths with the same product hold out the same text.
class Domains {
 public:
  static constexpr Index held_out_rows = 12;  ///< of each domain, evenly spaced

  /// Errors   std::invalid_argument where there are fewer than two domains, a domain has no text,
  ///          or too little of it.
  Domains(const std::vector<DomainText>& texts, Index row_length, std::uint64_t seed,
          Index pieces = 1)
      : row_length_(row_length), pieces_(pieces) {
    const Index whole = row_length * pieces;
    if (texts.size() < 2)
      throw std::invalid_argument("experiment: domains (" + std::to_string(texts.size()) +
                                  ") must be at least 2: give --text NAME=PATH for each");
    for (const DomainText& text : texts) {
      if (text.paths.empty())
        throw std::invalid_argument("experiment: domain '" + text.name +
                                    "' has no text on this machine: give --text NAME=PATH");
      names_.push_back(text.name);
      data_.push_back(std::make_unique<dsv3::TextData>(
          text.paths, dsv3::TextOptions{.row_length = whole, .held_out = 0.05, .seed = seed}));
      const Index rows = data_.back()->held_out_rows();
      if (rows < held_out_rows)
        throw std::invalid_argument("experiment: domain '" + text.name + "': held-out rows of " +
                                    std::to_string(whole) + " tokens (" + std::to_string(rows) +
                                    ") must be at least " + std::to_string(held_out_rows) +
                                    ": it has too little text");
    }
  }

  Index size() const { return static_cast<Index>(data_.size()); }
  const std::string& name(Index domain) const { return names_[static_cast<std::size_t>(domain)]; }
  Index bytes(Index domain) const { return data_[static_cast<std::size_t>(domain)]->bytes(); }
  Index row_length() const { return row_length_; }

  /// Fills rows [B, row_length + 1] with numbers position ... position + B - 1 of the order.
  void training_batch(Index position, View<std::int32_t, 2> rows) const {
    for (Index b = 0; b < rows.extent(0); ++b) {
      const Index at = position + b, index = at / size();
      take(rows[b], index, [&](View<std::int32_t, 2> whole) {
        data_[static_cast<std::size_t>(at % size())]->training_batch(index, whole);
      });
    }
  }

  /// Fills rows [held_out_rows, row_length + 1].
  void held_out_batch(Index domain, View<std::int32_t, 2> rows) const {
    const dsv3::TextData& data = *data_[static_cast<std::size_t>(domain)];
    for (Index i = 0; i < held_out_rows; ++i)
      take(rows[i], i, [&](View<std::int32_t, 2> whole) {
        data.held_out_batch(i * data.held_out_rows() / held_out_rows, whole);
      });
  }

 private:
  // Part `index` (of as many as there are, over and over) of the row that read(row) fills.
  void take(View<std::int32_t, 1> row, Index index, auto&& read) const {
    std::vector<std::int32_t> whole(static_cast<std::size_t>(row_length_ * pieces_ + 1));
    read({whole.data(), {1, row_length_ * pieces_ + 1}});
    std::copy_n(whole.begin() + index % pieces_ * row_length_, row_length_ + 1, row.data);
  }

  Index row_length_, pieces_;
  std::vector<std::string> names_;
  std::vector<std::unique_ptr<dsv3::TextData>> data_;
};

}  // namespace experiment
