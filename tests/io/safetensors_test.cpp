#include <doctest/doctest.h>

#include <cmath>
#include <dsv3/io/safetensors_writer.hpp>

#include "folder.hpp"

using namespace dsv3;

namespace {

// The entries that write a file again.
std::vector<SafetensorsEntry> entries_of(const SafetensorsFile& file) {
  std::vector<SafetensorsEntry> entries;
  for (const SafetensorsTensor& t : file.tensors())
    entries.push_back({t.name, t.dtype, t.shape, fill_from(t.data)});
  return entries;
}

}  // namespace

TEST_CASE("save_safetensors writes the format byte for byte") {
  TestFolder folder;
  const float values[] = {1, 2};
  const std::uint16_t half = 0x3F80;
  save_safetensors(folder.path("a"),
                   {{"b", DType::bf16, {}, fill_from(&half)},
                    {"z\"", DType::f32, {2, 1}, fill_from(values)},
                    {"empty", DType::i64, {3, 0}, nullptr}},
                   {{"format", "pt"}, {"a", "\n"}});
  std::string header = R"({"__metadata__":{"a":"\n","format":"pt"},)"
                       R"("empty":{"dtype":"I64","shape":[3,0],"data_offsets":[0,0]},)"
                       R"("z\"":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                       R"("b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}})";
  while ((8 + header.size()) % 8 != 0) header += ' ';
  std::string expected(8, '\0');
  expected[0] = static_cast<char>(header.size());
  expected += header + std::string("\0\0\x80\x3f\0\0\0\x40\x80\x3f", 10);
  CHECK(TestFolder::read(folder.path("a")) == expected);
}

TEST_CASE("SafetensorsFile reads names, types, shapes, metadata and values") {
  TestFolder folder;
  const float values[] = {1, 2, 3, 4, 5, 6};
  save_safetensors(folder.path("a"),
                   {{"b", DType::f32, {2, 3}, fill_from(values)}, {"a", DType::u8, {0}, nullptr}},
                   {{"k", "v"}});
  SafetensorsFile moved(folder.path("a"));
  const SafetensorsFile file(std::move(moved));
  REQUIRE(file.tensors().size() == 2);
  CHECK(file.metadata() == std::map<std::string, std::string>{{"k", "v"}});
  const SafetensorsTensor& b = file.at("b");
  CHECK(b.shape == std::vector<Index>{2, 3});
  CHECK(b.values<double>() == std::vector<double>{1, 2, 3, 4, 5, 6});
  CHECK(file.at("a").values<std::uint8_t>().empty());
  CHECK(file.find("c") == nullptr);
  CHECK_THROWS_WITH_AS(file.at("c"),
                       ("SafetensorsFile: '" + folder.path("a") + "': no tensor 'c'").c_str(),
                       std::invalid_argument);

  double wide[8] = {};  // rows of four
  View<double, 2> all(wide, {2, 4});
  b.read(all.cols(0, 3));
  CHECK(std::vector<double>(wide, wide + 8) == std::vector<double>{1, 2, 3, 0, 4, 5, 6, 0});
  CHECK_THROWS_WITH_AS(b.read(all),
                       "SafetensorsTensor::read: 'b': shape ([2, 3]) must equal ([2, 4])",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(b.read(View<double, 1>(wide, {6})),
                       "SafetensorsTensor::read: 'b': shape ([2, 3]) must equal ([6])",
                       std::invalid_argument);
  b.read(4, wide, 2);
  CHECK(wide[1] == 6);
  CHECK_THROWS_WITH_AS(b.read(5, wide, 2),
                       "SafetensorsTensor::read: 'b': elements [5, 7) must lie in [0, 6)",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(b.values<std::int64_t>(),
                       "SafetensorsTensor::read: 'b': dtype F32 must be an integer type",
                       std::invalid_argument);
}

TEST_CASE("Every golden file is read, and written again with the same bytes") {
  TestFolder folder;
  int files = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(DSV3_TEST_DATA "/golden")) {
    if (entry.path().extension() != ".safetensors") continue;
    ++files;
    const SafetensorsFile file(entry.path().string());
    for (const SafetensorsTensor& t : file.tensors()) {
      // Casts have NaN among their inputs and results.
      if (is_integer(t.dtype) || entry.path().filename() == "casts.safetensors") continue;
      const std::vector<double> values = t.values<double>();
      CHECK(std::none_of(values.begin(), values.end(), [](double v) { return std::isnan(v); }));
    }
    save_safetensors(folder.path("again"), entries_of(file), file.metadata());
    CHECK_MESSAGE(TestFolder::read(folder.path("again")) == TestFolder::read(entry.path()),
                  entry.path());
  }
  CHECK(files >= 28);
}

TEST_CASE("save_safetensors asks for adjacent ranges of at most 4 MiB") {
  TestFolder folder;
  constexpr Index mib = Index{1} << 20;
  Index next = 0;
  const auto fill = [&](std::byte* to, Index offset, Index bytes) {
    CHECK(offset == next);
    CHECK(bytes <= 4 * mib);
    next = offset + bytes;
    std::memset(to, static_cast<int>(offset / mib), static_cast<std::size_t>(bytes));
  };
  save_safetensors(folder.path("a"), {{"a", DType::u8, {9 * mib}, fill}});
  CHECK(next == 9 * mib);
  const SafetensorsFile file(folder.path("a"));
  for (const Index at : {Index{0}, 4 * mib, 9 * mib - 1})
    CHECK(file.tensors()[0].data[at] == static_cast<std::byte>(at / (4 * mib) * 4));
}

TEST_CASE("save_safetensors refuses what it could not read again, and writes nothing") {
  TestFolder folder;
  const std::string path = folder.write("a", "old"), where = "save_safetensors: '" + path + "': ";
  using Entries = std::vector<SafetensorsEntry>;
  const auto refuses = [&](const Entries& entries, const std::string& text) {
    CHECK_THROWS_WITH_AS(save_safetensors(path, entries), (where + text).c_str(),
                         std::invalid_argument);
  };
  const SafetensorsEntry a{"a", DType::u8, {0}, nullptr};
  refuses({a, a}, "duplicate tensor 'a'");
  refuses({{"__metadata__", DType::u8, {0}, nullptr}},
          "tensor '__metadata__' has the name of the metadata");
  refuses({{"a", DType::u8, {-1}, nullptr}},
          "tensor 'a': shape ([-1]) must not be negative or too large");
  const Index large = Index{1} << 62;
  refuses({{"a", DType::f64, {large, 0}, nullptr}},
          "tensor 'a': shape ([4611686018427387904, 0]) must not be negative or too large");
  refuses({{"a", DType::u8, {large}, nullptr}, {"b", DType::u8, {large}, nullptr}},
          "tensor 'b': shape ([4611686018427387904]) must not be negative or too large");
  refuses({{"\xff", DType::u8, {0}, nullptr}}, "'\xff' must be UTF-8");
  const auto broken = [](std::byte*, Index, Index) { throw std::runtime_error("no device"); };
  CHECK_THROWS_WITH_AS(save_safetensors(path, {{"a", DType::u8, {1}, broken}}), "no device",
                       std::runtime_error);
  CHECK(folder.content() == std::map<std::string, std::string>{{"a", "old"}});
}
