#include <doctest/doctest.h>
#include <unistd.h>

#include <fstream>

#include "../../examples/entropy.hpp"

using namespace example;
namespace fs = std::filesystem;

namespace {

struct File {
  std::string path =
      (fs::temp_directory_path() / ("dsv3_entropy_" + std::to_string(::getpid()))).string();
  explicit File(const std::string& content) { std::ofstream(path) << content; }
  ~File() { fs::remove(path); }
};

}  // namespace

TEST_CASE("entropies of a text of one letter are what the formulas say") {
  // 10 rows of 4 letters, one of them held out; the end of the document is cut off.
  const File file(std::string(40, 'a'));
  const dsv3::TextData data({file.path}, {.row_length = 3, .held_out = 0.1});
  REQUIRE(data.held_out_rows() == 1);
  REQUIRE(data.training_rows() == 9);
  const Entropies e = count_entropies(data, 1);
  const double p = 37.0 / (36 + 257);  // 36 training letters, all 'a'
  CHECK(e.unigram == doctest::Approx(-std::log(p)).epsilon(1e-14));
  CHECK(e.bigram == doctest::Approx(-std::log((27 + p) / 28)).epsilon(1e-13));  // 27 pairs
  CHECK(e.bytes_per_token == 1);
  CHECK(e.bits_per_byte(std::log(2.0)) == 1);
}

TEST_CASE("a pair never seen in training still has a finite cost") {
  // Rows "xy" are held out, all others are "ab": the labels are 'y' after 'x'.
  std::string text;
  for (int i = 0; i < 10; ++i) text += i == 5 ? "xy" : "ab";
  const File file(text);
  const dsv3::TextData data({file.path}, {.row_length = 1, .held_out = 0.1});
  const Entropies e = count_entropies(data, 1);
  const double p = 1.0 / (18 + 257);
  CHECK(e.unigram == doctest::Approx(-std::log(p)).epsilon(1e-14));
  CHECK(e.bigram == doctest::Approx(-std::log(p)).epsilon(1e-14));  // (0 + p) / (0 + 1)
}

TEST_CASE("entropies of alternating letters: the pair is certain, the letter is not") {
  std::string text;
  for (int i = 0; i < 4000; ++i) text += i % 2 ? 'b' : 'a';
  const File file(text);
  const dsv3::TextData data({file.path}, {.row_length = 7, .held_out = 0.1});
  const Entropies e = count_entropies(data, data.held_out_rows());
  CHECK(e.unigram == doctest::Approx(std::log(2.0)).epsilon(0.12));  // 257 / 3600 by add-one
  CHECK(e.bigram < 0.001);
}
