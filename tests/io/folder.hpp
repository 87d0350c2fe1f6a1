// A folder of its own for each test, removed at the end.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

struct TestFolder {
  std::filesystem::path at;

  TestFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "dsv3_test_XXXXXX").string();
    if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed");
    at = pattern;
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  ~TestFolder() { std::filesystem::remove_all(at); }

  std::string path(const std::string& name) const { return (at / name).string(); }

  std::string write(const std::string& name, const std::string& content) const {
    std::filesystem::create_directories((at / name).parent_path());
    std::ofstream(at / name, std::ios::binary) << content;
    return path(name);
  }

  static std::string read(const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }

  /// Every file below, by its path from here, with its content; folders end in a slash.
  std::map<std::string, std::string> content() const {
    std::map<std::string, std::string> all;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(at)) {
      const std::string name = std::filesystem::relative(entry.path(), at).string();
      all[entry.is_directory() ? name + "/" : name] =
          entry.is_directory() ? "" : read(entry.path());
    }
    return all;
  }
};
