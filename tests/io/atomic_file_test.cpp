#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <dsv3/io/atomic_file.hpp>
#include <optional>

#include "folder.hpp"

using dsv3::AtomicFile;
using dsv3::AtomicFolder;
using dsv3::IfExists;
using Content = std::map<std::string, std::string>;

namespace {

void save(const std::string& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void save_folder(const std::string& path, const Content& files,
                 IfExists if_exists = IfExists::replace) {
  AtomicFolder folder(path, if_exists);
  for (const auto& [name, text] : files) save(folder.file(name), text);
  folder.commit();
}

// Runs f in a child process and ends the child without any destructor, as a crash does.
void crash(auto f) {
  const pid_t child = ::fork();
  if (child == 0) {
    f();
    ::raise(SIGKILL);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
}

}  // namespace

TEST_CASE("AtomicFile appears whole at commit, over what was there") {
  TestFolder folder;
  folder.write("a", "old");
  AtomicFile file(folder.path("a"));
  file.write("ne");
  file.write("w", 1);
  CHECK(folder.content() == Content{{"a", "old"}, {"a.tmp", "new"}});
  file.commit();
  CHECK(folder.content() == Content{{"a", "new"}});
}

TEST_CASE("AtomicFile without commit leaves everything as it was") {
  TestFolder folder;
  folder.write("a", "old");
  { AtomicFile(folder.path("a")).write("new"); }
  CHECK(folder.content() == Content{{"a", "old"}});
}

TEST_CASE("AtomicFile replaces the rest of a crash, and only of a crash") {
  TestFolder folder;
  folder.write("a", "old");
  crash([&] { AtomicFile(folder.path("a")).write("half"), ::raise(SIGKILL); });
  CHECK(folder.content() == Content{{"a", "old"}, {"a.tmp", "half"}});
  std::optional<AtomicFile> first(folder.path("a"));
  const std::string message =
      "AtomicFile: '" + folder.path("a.tmp") + "' is being written by somebody else";
  CHECK_THROWS_WITH_AS(AtomicFile(folder.path("a")), message.c_str(), std::runtime_error);
  first->write("new");
  first->commit();
  first.reset();
  CHECK(folder.content() == Content{{"a", "new"}});
}

TEST_CASE("AtomicFile names the path, the operation and the reason") {
  TestFolder folder;
  const auto says = [&](const std::string& name, const std::string& message) {
    CHECK_THROWS_WITH_AS(save(folder.path(name), "x"), message.c_str(), std::runtime_error);
  };
  says("none/a",
       "AtomicFile: create '" + folder.path("none/a.tmp") + "': No such file or directory");
  folder.write("b.tmp/x", "");
  says("b", "AtomicFile: open '" + folder.path("b.tmp") + "': Is a directory");
  folder.write("c/x", "kept");
  says("c", "AtomicFile: rename to '" + folder.path("c") + "': Is a directory");
  CHECK_THROWS_WITH_AS(AtomicFile(""), "AtomicFile: path must not be empty", std::invalid_argument);
  CHECK(folder.content() == Content{{"b.tmp/", ""}, {"b.tmp/x", ""}, {"c/", ""}, {"c/x", "kept"}});
}

TEST_CASE("AtomicFile on a full disk leaves everything as it was") {
  TestFolder folder;
  folder.write("a", "old");
  // A limit on the size of files stands for the full disk: write fails after 1000 bytes.
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  rlimit small = before;
  small.rlim_cur = 1000;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  std::string message;
  try {
    save(folder.path("a"), std::string(5000, 'x'));
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, ignored);
  CHECK(message == "AtomicFile: write '" + folder.path("a.tmp") + "': File too large");
  CHECK(folder.content() == Content{{"a", "old"}});
}

TEST_CASE("AtomicFolder appears whole at commit, in place of what was there") {
  TestFolder folder;
  const std::string path = folder.path("x");
  save_folder(path, {{"a", "1"}, {"b", "2"}});
  CHECK(folder.content() == Content{{"x/", ""}, {"x/a", "1"}, {"x/b", "2"}});
  {
    AtomicFolder next(path + "/");  // a slash at the end changes nothing
    save(next.file("c"), "3");
    CHECK(TestFolder::read(path + "/a") == "1");
    next.commit();
  }
  CHECK(folder.content() == Content{{"x/", ""}, {"x/c", "3"}});
}

TEST_CASE("AtomicFolder without commit leaves everything as it was") {
  TestFolder folder;
  const Content before{{"x/", ""}, {"x/a", "old"}};
  folder.write("x/a", "old");
  {
    AtomicFolder next(folder.path("x"));
    save(next.file("a"), "new");
  }
  CHECK(folder.content() == before);
  CHECK_THROWS_WITH_AS(save_folder(folder.path("x"), {{"a", "new"}}, IfExists::refuse),
                       ("AtomicFolder: '" + folder.path("x") + "' exists already").c_str(),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      save_folder(folder.path("x/a"), {}),
      ("AtomicFolder: '" + folder.path("x/a") + "' exists and is no folder").c_str(),
      std::invalid_argument);
  CHECK(folder.content() == before);
}

TEST_CASE("AtomicFolder refuses a target that came into being while it was written") {
  TestFolder folder;
  AtomicFolder next(folder.path("x"), IfExists::refuse);
  folder.write("x/a", "theirs");
  CHECK_THROWS_WITH_AS(next.commit(),
                       ("AtomicFolder: '" + folder.path("x") + "' exists already").c_str(),
                       std::invalid_argument);
  CHECK(TestFolder::read(folder.path("x/a")) == "theirs");
}

TEST_CASE("AtomicFolder replaces the rest of a crash, and only of a crash") {
  TestFolder folder;
  folder.write("x/a", "old");
  crash([&] {
    AtomicFolder next(folder.path("x"));
    save(next.file("b"), "half");
    ::raise(SIGKILL);
  });
  CHECK(TestFolder::read(folder.path("x.tmp/b")) == "half");
  {
    AtomicFolder next(folder.path("x"));
    CHECK(std::filesystem::is_empty(folder.path("x.tmp")));
    CHECK_THROWS_WITH_AS(
        AtomicFolder(folder.path("x")),
        ("AtomicFolder: '" + folder.path("x.tmp") + "' is being written by somebody else").c_str(),
        std::runtime_error);
    save(next.file("c"), "new");
    next.commit();
  }
  CHECK(folder.content() == Content{{"x/", ""}, {"x/c", "new"}});
}
