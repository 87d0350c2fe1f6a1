#include <doctest/doctest.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <dsv3/backend/host.hpp>
#include <dsv3/io/training_state.hpp>

#include "folder.hpp"

using namespace dsv3;

namespace {

// What saving and resuming see of a model and its trainer: tensors of several types.
struct FakeModel {
  ModelConfig sizes = load_config(DSV3_TEST_DATA "/golden/v3/config.json");
  mutable HostMemory memory;
  int refreshed = 0;

  const ModelConfig& config() const { return sizes; }
  HostMemory& backend() const { return memory; }
  void refresh_operands() { ++refreshed; }
};

struct FakeTrainer {
  struct P {
    static constexpr const char* name = "fake";
  };
  mutable FakeModel network;
  TrainOptions run;
  Progress counters;
  mutable std::vector<float> weight;
  mutable std::vector<double> moment;
  mutable std::vector<std::int64_t> count;

  explicit FakeTrainer(int value = 0, std::size_t size = 6)
      : weight(size, float(value)), moment(size, double(value)), count(2, value) {
    counters = {value, value, value * 100, 0};
  }

  FakeModel& model() const { return network; }
  const TrainOptions& options() const { return run; }
  const Progress& progress() const { return counters; }
  void set_progress(const Progress& p) { counters = p; }
  void for_each_state_tensor(auto&& f) const {
    f("w", View<float, 2>(weight.data(), {static_cast<Index>(weight.size()) / 2, 2}));
    f("adamw.v.w", View<double, 1>(moment.data(), {static_cast<Index>(moment.size())}));
    f("count", View<std::int64_t, 1>(count.data(), {2}));
  }
  bool operator==(const FakeTrainer& o) const {
    return weight == o.weight && moment == o.moment && count == o.count && counters == o.counters &&
           network.refreshed == o.network.refreshed;
  }
  // True where every tensor and counter is that of one step.
  bool is_of(Index step) const {
    const auto all = [&](const auto& values) {
      return std::all_of(values.begin(), values.end(),
                         [&](auto v) { return double(v) == double(step); });
    };
    return all(weight) && all(moment) && all(count) && counters.step == step;
  }
};

std::string metadata_of(const std::string& path) {
  return SafetensorsFile(path).metadata().at("dsv3.training_state");
}

}  // namespace

TEST_CASE("A training state comes back bit for bit") {
  TestFolder folder;
  FakeTrainer a(3);
  a.weight = {0.1f, -0.0f, 1e-45f, 3.4e38f, 1, 2};
  a.moment = {0.1, 1e-320, 1, 2, 3, 4};
  a.count = {std::numeric_limits<std::int64_t>::min(), (std::int64_t{1} << 53) + 1};
  a.counters = {7, 5, std::int64_t{1} << 60, 2};
  a.run.schedule = Schedule{}.scaled(1000, 0.1, 7);
  a.run.groups = {{.pattern = "norm", .lr_factor = 0.1, .weight_decay = 0.3}};
  a.run.clip_norm = std::numeric_limits<double>::infinity();
  save_training_state(a, folder.path("s"));
  FakeTrainer b;
  b.run = a.run;
  b.run.recompute = true;  // changes no bit of a run, so it may differ
  load_training_state(b, folder.path("s"));
  CHECK(std::memcmp(a.weight.data(), b.weight.data(), 6 * sizeof(float)) == 0);
  CHECK(b.moment == a.moment);
  CHECK(b.count == a.count);
  CHECK(b.counters == a.counters);
  CHECK(b.network.refreshed == 1);
  save_training_state(b, folder.path("again"));
  CHECK(TestFolder::read(folder.path("again")) == TestFolder::read(folder.path("s")));
}

TEST_CASE("A state of another run is refused, and nothing changes") {
  TestFolder folder;
  const std::string path = folder.path("s");
  save_training_state(FakeTrainer(3), path);
  const auto refuses = [&](auto change, const std::string& text) {
    FakeTrainer trainer(9);
    change(trainer);
    const FakeTrainer before = trainer;
    CHECK_THROWS_WITH_AS(load_training_state(trainer, path),
                         ("load_training_state: '" + path + "': " + text).c_str(),
                         std::invalid_argument);
    CHECK(trainer == before);
  };
  const auto resized = [](std::size_t n) { return [=](FakeTrainer& t) { t = FakeTrainer(9, n); }; };
  refuses([](FakeTrainer& t) { t.run.peak_lr = 0.5; },
          "options.peak_lr (0.00022) must equal the trainer's (0.5)");
  refuses([](FakeTrainer& t) { t.run.groups = {{.pattern = "x", .frozen = true}}; },
          "options.groups ([]) must equal the trainer's "
          "([{\"frozen\":true,\"lr_factor\":1.0,\"pattern\":\"x\",\"weight_decay\":null}])");
  refuses([](FakeTrainer& t) { t.network.sizes.hidden_size = 64; },
          "config.hidden_size (32) must equal the trainer's (64)");
  refuses([](FakeTrainer& t) { t.network.sizes.mtp_hidden = MtpHidden::pre_norm; },
          "missing key 'config.mtp_hidden'");
  refuses(resized(8), "tensor 'w': shape ([3, 2]) must equal the trainer's ([4, 2])");
}

TEST_CASE("A file that is no whole training state is refused, and nothing changes") {
  TestFolder folder;
  const std::string path = folder.path("s");
  save_training_state(FakeTrainer(3), path);
  const std::string good = TestFolder::read(path), state = metadata_of(path);
  const float f[6] = {};
  const double d[6] = {};
  const std::int64_t l[2] = {};
  const std::vector<SafetensorsEntry> all = {{"w", DType::f32, {3, 2}, fill_from(f)},
                                             {"adamw.v.w", DType::f64, {6}, fill_from(d)},
                                             {"count", DType::i64, {2}, fill_from(l)}};
  const auto refuses = [&](const std::string& message) {
    FakeTrainer trainer(9);
    const auto before = folder.content();
    CHECK_THROWS_WITH_AS(load_training_state(trainer, path), message.c_str(),
                         std::invalid_argument);
    CHECK(trainer == FakeTrainer(9));
    CHECK(folder.content() == before);
  };
  const std::string where = "load_training_state: '" + path + "': ";
  const auto refuses_state = [&](const std::string& text, const std::string& message) {
    save_safetensors(path, all, {{"dsv3.training_state", text}});
    refuses(where + message);
  };
  const auto with = [&](auto change) {
    auto json = nlohmann::json::parse(state);
    change(json);
    return json.dump();
  };
  refuses_state("{", "__metadata__: not valid JSON at byte 2");
  refuses_state("[]", "state must be an object, found an array");
  refuses_state("{}", "missing key 'schema'");
  refuses_state("{\"schema\":2}", "schema (2) must be 1: written by another version");
  refuses_state("{\"schema\":1}", "missing key 'progress'");
  refuses_state(with([](auto& j) { j["progress"] = 3; }),
                "progress must be an object, found an integer");
  refuses_state(with([](auto& j) { j["progress"].erase("tokens"); }),
                "missing key 'progress.tokens'");
  refuses_state(with([](auto& j) { j["progress"]["tokens"] = "7"; }),
                "progress.tokens must be an integer, found a string");
  refuses_state(with([](auto& j) { j["progress"]["tokens"] = -7; }),
                "progress.tokens (-7) must be at least 0");
  refuses_state(with([](auto& j) { j["progress"]["updates"] = 4; }),
                "progress.step (3) must equal updates (4) + skipped (0)");
  refuses_state(with([](auto& j) { j["precision"] = "bf16"; }),
                "precision (\"bf16\") must equal the trainer's (\"fake\")");
  refuses_state(with([](auto& j) { j.erase("options"); }), "missing key 'options'");
  refuses_state(with([](auto& j) { j["options"]["new"] = 1; }), "unknown key 'options.new'");
  const auto refuses_tensor = [&](std::size_t i, SafetensorsEntry entry,
                                  const std::string& message) {
    auto changed = all;
    changed[i] = std::move(entry);
    save_safetensors(path, changed, {{"dsv3.training_state", state}});
    refuses(where + message);
  };
  refuses_tensor(2, {"counts", DType::i64, {2}, fill_from(l)}, "missing tensor 'count'");
  refuses_tensor(0, {"w", DType::bf16, {3, 2}, fill_from(f)},
                 "tensor 'w': dtype (BF16) must equal the trainer's (F32)");
  save_safetensors(path, all);
  refuses(where + "is no training state of dsv3");
  auto more = all;
  more.push_back({"x", DType::f32, {1}, fill_from(f)});
  save_safetensors(path, more, {{"dsv3.training_state", state}});
  refuses(where + "unknown tensor 'x'");
  folder.write("s", good.substr(0, good.size() - 1));
  refuses("SafetensorsFile: '" + path +
          "': tensor 'w': end (88) must be at most the data's bytes (87)");
}

TEST_CASE("A process killed at any of 250 moments leaves a whole state, never an older one") {
  TestFolder folder;
  const std::string path = folder.path("s");
  constexpr std::size_t size = 40'000;  // half a megabyte a state
  FakeTrainer trainer(1, size);
  const auto start = std::chrono::steady_clock::now();
  save_training_state(trainer, path);
  const std::chrono::duration<double, std::micro> one_save =
      std::chrono::steady_clock::now() - start;
  std::uint32_t random = 1;
  Index last = 1, interrupted = 0;
  for (int kill = 0; kill < 250; ++kill) {
    int started[2];
    REQUIRE(::pipe(started) == 0);
    const pid_t child = ::fork();
    if (child == 0) {  // saves one step after the other until it is killed
      for (int step = static_cast<int>(last) + 1;; ++step) {
        const FakeTrainer next(step, size);
        if (::write(started[1], "", 1) != 1) ::_exit(1);
        save_training_state(next, path);
      }
    }
    char byte;
    REQUIRE(::read(started[0], &byte, 1) == 1);
    random = random * 1664525u + 1013904223u;
    ::usleep(static_cast<useconds_t>(3 * one_save.count() * double(random >> 16) / 65536));
    ::kill(child, SIGKILL);
    REQUIRE(::waitpid(child, nullptr, 0) == child);
    ::close(started[0]);
    ::close(started[1]);
    interrupted += std::filesystem::exists(path + ".tmp");
    load_training_state(trainer, path);
    REQUIRE(trainer.is_of(trainer.progress().step));
    REQUIRE(trainer.progress().step >= last);
    last = trainer.progress().step;
  }
  CHECK(last > 1);         // some saves ended
  CHECK(interrupted > 0);  // some did not
  save_training_state(trainer, path);
  CHECK(folder.content().size() == 1);
  MESSAGE(last << " states, " << interrupted << " of 250 kills in the middle of one");
}
