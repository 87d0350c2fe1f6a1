#include <doctest/doctest.h>

#include <cstring>
#include <dsv3/io/mapped_file.hpp>

#include "folder.hpp"

using dsv3::MappedFile;

TEST_CASE("MappedFile shows the bytes of a file, and lives on after the name is gone") {
  TestFolder folder;
  const std::string path = folder.write("a", std::string("x\0y", 3));
  const MappedFile file(path);
  std::filesystem::remove(path);
  REQUIRE(file.size() == 3);
  CHECK(std::memcmp(file.data(), "x\0y", 3) == 0);
}

TEST_CASE("MappedFile of an empty file has no bytes") {
  TestFolder folder;
  const MappedFile file(folder.write("a", ""));
  CHECK(file.size() == 0);
  CHECK(file.data() == nullptr);
}

TEST_CASE("MappedFile is moved without being mapped again") {
  TestFolder folder;
  MappedFile a(folder.write("a", "one")), b(folder.write("b", "three"));
  const std::byte* address = a.data();
  MappedFile c(std::move(a));
  CHECK(c.data() == address);
  b = std::move(c);
  CHECK(b.data() == address);
  CHECK(b.size() == 3);
  b = MappedFile();
  CHECK(b.size() == 0);
}

TEST_CASE("MappedFile names the path, the operation and the reason") {
  TestFolder folder;
  const std::string none = folder.path("none");
  CHECK_THROWS_WITH_AS(MappedFile{none},
                       ("MappedFile: open '" + none + "': No such file or directory").c_str(),
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(MappedFile{folder.at.string()},
                       ("MappedFile: '" + folder.at.string() + "' must be a regular file").c_str(),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(MappedFile{""}, "MappedFile: path must not be empty", std::invalid_argument);
  CHECK_THROWS_WITH_AS(MappedFile{std::string("a\0b", 3)},
                       "MappedFile: path 'a\\x00b' must not hold a zero byte",
                       std::invalid_argument);
}

TEST_CASE("MappedFile refuses a pipe instead of waiting for it") {
  TestFolder folder;
  const std::string pipe = folder.path("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK_THROWS_WITH_AS(MappedFile{pipe},
                       ("MappedFile: '" + pipe + "' must be a regular file").c_str(),
                       std::invalid_argument);
}
