#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <dsv3/io/text_data.hpp>
#include <fstream>
#include <map>

using namespace dsv3;
namespace fs = std::filesystem;

namespace {

// A folder of its own, removed at the end.
struct Folder {
  fs::path at;
  Folder() : at(fs::temp_directory_path() / ("dsv3_text_data_" + std::to_string(::getpid()))) {
    fs::remove_all(at);
    fs::create_directories(at);
  }
  ~Folder() { fs::remove_all(at); }
  std::string write(const std::string& name, const std::string& content) const {
    fs::create_directories((at / name).parent_path());
    std::ofstream(at / name, std::ios::binary) << content;
    return (at / name).string();
  }
  std::string path(const std::string& name) const { return (at / name).string(); }
};

// Bytes 0, 1, 2, ..., each row of a different beginning (251 is prime).
std::string ramp(int n) {
  std::string s;
  for (int i = 0; i < n; ++i) s += static_cast<char>(i % 251);
  return s;
}

using Row = std::vector<std::int32_t>;

Row training(const TextData& data, Index position) {
  Row row(static_cast<std::size_t>(data.options().row_length + 1));
  data.training_batch(position, {row.data(), {1, data.options().row_length + 1}});
  return row;
}

Row held_out(const TextData& data, Index index) {
  Row row(static_cast<std::size_t>(data.options().row_length + 1));
  data.held_out_batch(index, {row.data(), {1, data.options().row_length + 1}});
  return row;
}

}  // namespace

TEST_CASE("TextData joins files, ends each document, and cuts disjoint rows of T + 1") {
  Folder folder;
  const auto a = folder.write("a", "abcd"), b = folder.write("b", "efg");
  // a b c | d <end> e | f g <end>
  const TextData data({a, b}, {.row_length = 2, .held_out = 0});
  CHECK(data.tokens() == 9);
  CHECK(data.bytes() == 7);
  CHECK(data.training_rows() == 3);
  std::map<Index, Row> rows;
  for (Index p = 0; p < 3; ++p) rows[data.row_at(p)] = training(data, p);
  CHECK(rows[0] == Row{'a', 'b', 'c'});
  CHECK(rows[1] == Row{'d', 256, 'e'});
  CHECK(rows[2] == Row{'f', 'g', 256});
}

TEST_CASE("TextData visits every training row once an epoch, in another order each epoch") {
  Folder folder;
  for (const int rows : {1, 2, 5, 37, 300}) {
    const auto file = folder.write("text", ramp(rows * 4 - 1));
    const TextData data({file}, {.row_length = 3, .held_out = 0, .seed = 7});
    REQUIRE(data.training_rows() == rows);
    std::vector<std::vector<Index>> orders;
    for (Index epoch = 0; epoch < 2; ++epoch) {
      std::vector<Index> order;
      for (Index i = 0; i < rows; ++i) order.push_back(data.row_at(epoch * rows + i));
      orders.push_back(order);
      std::sort(order.begin(), order.end());
      for (Index i = 0; i < rows; ++i) REQUIRE(order[static_cast<std::size_t>(i)] == i);
    }
    if (rows > 5) CHECK(orders[0] != orders[1]);
  }
}

TEST_CASE("TextData's order is spread like a random permutation") {
  Folder folder;
  const auto file = folder.write("text", ramp(1000 * 4 - 1));
  const TextData data({file}, {.row_length = 3, .held_out = 0, .seed = 3});
  // The mean displacement of a random permutation of n is (n - 1/n) / 3, its standard deviation
  // about sqrt(2 n / 45) = 6.7; five of them.
  double moved = 0;
  for (Index p = 0; p < 1000; ++p) moved += std::abs(static_cast<double>(data.row_at(p) - p));
  CHECK(std::abs(moved / 1000 - 333.3) < 5 * 6.7);
}

TEST_CASE("TextData's order depends on seed and position, not on the batch") {
  Folder folder;
  const auto file = folder.write("text", ramp(997));
  const TextOptions options{.row_length = 6, .seed = 11};
  const TextData data({file}, options), again({file}, options);
  std::vector<std::int32_t> batch(5 * 7);
  again.training_batch(136, {batch.data(), {5, 7}});  // as after a resume, across an epoch's end
  REQUIRE(data.training_rows() == 139);
  for (Index b = 0; b < 5; ++b)
    CHECK(training(data, 136 + b) == Row(batch.begin() + b * 7, batch.begin() + b * 7 + 7));
  const TextData other({file}, {.row_length = 6, .seed = 12});
  bool differs = false;
  for (Index p = 0; p < 20; ++p) differs = differs || other.row_at(p) != data.row_at(p);
  CHECK(differs);
}

TEST_CASE("TextData never trains on a held-out row, whatever the seed") {
  Folder folder;
  std::string text;
  for (int i = 0; i < 200; ++i) text += {static_cast<char>(i), static_cast<char>(i), 'x', 'y'};
  const auto file = folder.write("text", text);
  for (const double share : {0.001, 0.1, 0.5}) {
    TextOptions options{.row_length = 3, .held_out = share, .seed = 1};
    const TextData data({file}, options);
    options.seed = 2;
    const TextData other({file}, options);
    const Index n = share == 0.5 ? 100 : share == 0.1 ? 20 : 1;  // never none
    REQUIRE(data.held_out_rows() == n);
    std::map<Row, int> seen;
    for (Index i = 0; i < n; ++i) {
      CHECK(held_out(data, i) == held_out(other, i));
      ++seen[held_out(data, i)];
    }
    for (Index p = 0; p < data.training_rows(); ++p) ++seen[training(data, p)];
    CHECK(seen.size() == 200);  // every row is different and is either held out or trained on
    for (Index i = 0; i < data.training_rows(); ++i) {
      Row row(4);
      data.training_row(i, {row.data(), {4}});
      ++seen[row];
    }
    CHECK(seen.size() == 200);
  }
}

TEST_CASE("TextData walks folders in sorted order and says what it leaves out") {
  Folder folder;
  folder.write("d/b/deep.txt", "22");
  folder.write("d/a.txt", "11");
  folder.write("d/c.txt", "33");
  folder.write("d/.hidden", "no");
  folder.write("d/empty", "");
  folder.write("d/image", std::string("GIF\0x", 5));
  fs::create_symlink("a.txt", folder.at / "d/link");
  const TextData data({folder.path("d")}, {.row_length = 8, .held_out = 0});
  CHECK(data.files() == 3);
  CHECK(training(data, 0) == Row{'1', '1', 256, '2', '2', 256, '3', '3', 256});
  CHECK(data.path(1) == folder.path("d/b/deep.txt"));
  std::map<std::string, std::string> skipped;
  for (const auto& s : data.skipped()) skipped[fs::path(s.path).filename().string()] = s.reason;
  CHECK(skipped == std::map<std::string, std::string>{{".hidden", "hidden"},
                                                      {"empty", "empty"},
                                                      {"image", "binary"},
                                                      {"link", "symbolic link"}});
  // Named by the caller, the same file is read: bytes are bytes.
  const TextData named({folder.path("d/image")}, {.row_length = 4, .held_out = 0});
  CHECK(training(named, 0) == Row{'G', 'I', 'F', 0, 'x'});
}

TEST_CASE("TextData reads little-endian token files of 2 and of 4 bytes") {
  Folder folder;
  const auto two = folder.write("two", std::string("\x01\x02\xff\x00\x03\x00", 6));
  CHECK(training(TextData({two}, {TextFormat::u16, 514, 2, 0}), 0) == Row{513, 255, 3});
  const auto four = folder.write("four", std::string("\x01\x02\x03\x00\xff\0\0\0", 8));
  CHECK(training(TextData({four}, {TextFormat::u32, 197122, 1, 0}), 0) == Row{197121, 255});
}

TEST_CASE("document_offsets starts a document after each end and at each row") {
  const std::int32_t rows[] = {5, 256, 7,   8,  // row 0: documents at 0 and 2
                               1, 2,   256, 9};
  CHECK(document_offsets({rows, {2, 4}}, 256) == std::vector<std::int32_t>{0, 2, 3, 6});
  CHECK(document_offsets({rows, {2, 4}}, 1000) == std::vector<std::int32_t>{0, 3, 6});
}

TEST_CASE("TextData refuses bad input with a message that names it") {
  Folder folder;
  const auto text = folder.write("text", ramp(100));
  const auto make = [](std::vector<std::string> paths, TextOptions options) {
    TextData data(paths, options);
  };
  const auto message = [&](std::vector<std::string> paths, TextOptions options) {
    try {
      make(std::move(paths), options);
    } catch (const std::invalid_argument& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  const TextOptions small{.row_length = 8};
  CHECK(message({}, small) == "TextData: paths (0) must be at least 1: nothing to read");
  CHECK(message({folder.path("none")}, small) ==
        "TextData: no such file or folder: '" + folder.path("none") + "'");
  CHECK(message({"/dev/null"}, small) == "TextData: neither a file nor a folder: '/dev/null'");
  const auto empty = folder.write("empty", "");
  CHECK(message({empty}, small) == "TextData: '" + empty + "' is empty");
  folder.write("binaries/a", std::string(1, '\0'));
  CHECK(message({folder.path("binaries")}, small) ==
        "TextData: no text file in folder '" + folder.path("binaries") + "' (1 entries skipped)");
  CHECK(message({text, folder.path("./text")}, small) ==
        "TextData: '" + folder.path("./text") + "' is given twice");
  CHECK(message({folder.write("short", "abc")}, small) ==
        "TextData: tokens (4) must be at least those of 2 rows (18)");
  CHECK(message({folder.path("short")}, {.row_length = 4, .held_out = 0}) ==
        "TextData: tokens (4) must be at least those of 1 row (5)");
  CHECK(message({text}, {.row_length = 0}) == "TextData: one (1) must be at most row length (0)");
  CHECK(message({text}, {.row_length = 20'000'000}) ==
        "TextData: row length (20000000) must be at most 16777216 (16777216)");
  CHECK(message({text}, {.held_out = 0.75}) ==
        "TextData: held-out share (0.750000) must be in [0, 0.5]");
  CHECK(message({text}, {.held_out = std::nan("")}) ==
        "TextData: held-out share (nan) must be in [0, 0.5]");
  CHECK(message({text}, {.vocab_size = 256}) ==
        "TextData: least vocab_size of this format (257) must be at most vocab_size (256)");
  const auto odd = folder.write("odd", "12345");
  CHECK(message({odd}, {TextFormat::u16, 100, 1, 0}) ==
        "TextData: size of '" + odd + "' (5 bytes) must be a multiple of 2");
  CHECK(message({odd}, {TextFormat::u32, 100, 1, 0}) ==
        "TextData: size of '" + odd + "' (5 bytes) must be a multiple of 4");
  const auto large = folder.write("large", std::string("\x05\0\x2c\x01", 4));
  CHECK(message({large}, {TextFormat::u16, 257, 1, 0}) ==
        "TextData: id of token 1 of '" + large + "' (300) must be below vocab_size (257)");
  const auto huge = folder.write("huge", "\xff\xff\xff\xff");
  CHECK(message({huge}, {TextFormat::u32, 257, 1, 0}) ==
        "TextData: id of token 0 of '" + huge + "' (4294967295) must be below vocab_size (257)");

  const TextData data({text}, small);
  std::vector<std::int32_t> rows(18);
  CHECK_THROWS_WITH_AS(
      data.training_batch(0, {rows.data(), {2, 8}}),
      "TextData::training_batch: columns of rows (8) must equal row length + 1 (9)",
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(data.training_batch(-1, {rows.data(), {2, 9}}),
                       "TextData::training_batch: zero (0) must be at most position (-1)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      data.held_out_batch(0, {rows.data(), {2, 9}}),
      "TextData::held_out_batch: last row asked for + 1 (2) must be at most held-out rows (1)",
      std::invalid_argument);
}
