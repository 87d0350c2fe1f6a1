#include <doctest/doctest.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <dsv3/io/checkpoint.hpp>
#include <dsv3/model.hpp>

#include "folder.hpp"
#include "small_model.hpp"

using namespace dsv3;

namespace {

// Every weight of the model is this number.
void set_all(const Model<Fp32, EigenCpu>& model, float value) {
  model.for_each_tensor([&](const std::string&, const auto& view) {
    for (Index i = 0; i < view.size(); ++i) view.data[i] = value;
  });
}

// The number that every weight is, or -1 where they are mixed.
float all_of(const Model<Fp32, EigenCpu>& model) {
  const float value = model.masters().norm(0);
  bool equal = true;
  model.for_each_tensor([&](const std::string&, const auto& view) {
    for (Index i = 0; i < view.size(); ++i) equal = equal && view.data[i] == value;
  });
  return equal ? value : -1;
}

}  // namespace

TEST_CASE("A process killed at any of 200 moments leaves a whole checkpoint, never an older one") {
  TestFolder folder;
  const std::string path = folder.path("x");
  EigenCpu backend;
  Model<Fp32, EigenCpu> model(backend, small::config());
  const SaveOptions options = {.dtype = DType::f32, .shard_bytes = 100'000};  // several files
  const auto start = std::chrono::steady_clock::now();
  set_all(model, 1);
  save_checkpoint(model, path, options);
  const std::chrono::duration<double, std::micro> one_save =
      std::chrono::steady_clock::now() - start;
  CHECK(CheckpointIndex(path + "/model.safetensors.index.json").files().size() >= 3);
  std::uint32_t random = 1;
  int interrupted = 0;
  float last = 1;
  for (int kill = 0; kill < 200; ++kill) {
    int started[2];
    REQUIRE(::pipe(started) == 0);
    const pid_t child = ::fork();
    if (child == 0) {  // saves one state after the other until it is killed
      for (float value = last + 1;; ++value) {
        set_all(model, value);
        if (::write(started[1], "", 1) != 1) ::_exit(1);
        save_checkpoint(model, path, options);
      }
    }
    char byte;
    REQUIRE(::read(started[0], &byte, 1) == 1);
    random = random * 1664525u + 1013904223u;
    ::usleep(static_cast<useconds_t>(2 * one_save.count() * double(random >> 16) / 65536));
    ::kill(child, SIGKILL);
    REQUIRE(::waitpid(child, nullptr, 0) == child);
    ::close(started[0]);
    ::close(started[1]);
    interrupted += std::filesystem::exists(path + ".tmp");
    load_weights(model, path);
    REQUIRE(all_of(model) >= last);
    last = all_of(model);
  }
  CHECK(last > 1);         // some saves ended
  CHECK(interrupted > 0);  // some did not
  save_checkpoint(model, path, options);
  CHECK_FALSE(std::filesystem::exists(path + ".tmp"));
  MESSAGE(last << " checkpoints, " << interrupted << " of 200 kills in the middle of one");
}
