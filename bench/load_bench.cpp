// Loading a checkpoint beside plain reading of its files, all in the page cache, and the memory
// that it takes beside the weights.
//   load_bench [--mib N] [--threads N] [--no-head]     N: size of the files, default 2048
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <dsv3/io/checkpoint.hpp>
#include <dsv3/model.hpp>
#include <dsv3/plan.hpp>

#include "../tests/anonymous_memory.hpp"
#include "table.hpp"

namespace {

using namespace dsv3;

double seconds(auto&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Matrices of DeepSeek-V2-Lite's order of size, and as many experts as fill the files.
ModelConfig config_of(Index file_bytes, DType storage) {
  ModelConfig c = presets::deepseek_v2_lite;
  c.vocab_size = 8192;
  c.num_hidden_layers = 3;
  c.n_routed_experts = 8;
  const Index expert = plan::expert_parameters(c) * dtype_bytes(storage);
  const Index rest =
      (plan::main_parameters(c) - 16 * plan::expert_parameters(c)) * dtype_bytes(storage);
  c.n_routed_experts = std::max<Index>(8, (file_bytes - rest) / expert / 2);
  return c;
}

// Reads every shard into memory as large as all of them; returns the bytes.
Index read_plainly(const std::string& folder, std::vector<std::byte>& memory) {
  constexpr Index most = Index{4} << 20;
  Index total = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    const detail::FileDescriptor file = detail::open_file(entry.path().string(), O_RDONLY);
    for (ssize_t n = 1; n > 0; total += n) {
      if (static_cast<Index>(memory.size()) < total + most)
        memory.resize(static_cast<std::size_t>(total + most));
      n = ::read(file.get(), memory.data() + total, most);
    }
  }
  return total;
}

// A folder of the given size and type, with random weights; gone with the object.
class Folder {
 public:
  Folder(Cpu& backend, const ModelConfig& config, DType storage) {
    if (!::mkdtemp(path_.data())) throw std::runtime_error("mkdtemp failed");
    Model<Fp32, Cpu> model(backend, config, {.init_std = 0.02});
    save_checkpoint(model, checkpoint(), {.dtype = storage, .shard_bytes = Index{1} << 29});
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string checkpoint() const { return path_ + "/x"; }

 private:
  std::string path_ = (std::filesystem::temp_directory_path() / "dsv3_load_XXXXXX").string();
};

// TheModel is Model or InferenceModel of policy P.
template <class P, class TheModel>
void measure(bench::Table& table, const char* name, Index file_bytes, int threads, DType storage,
             double goal) {
  const ModelConfig config = config_of(file_bytes, storage);
  Cpu backend(threads);
  const Folder folder(backend, config, storage);
  const std::string checkpoint = folder.checkpoint();
  TheModel model(backend, config);
  std::vector<std::byte> buffer;
  Index bytes = read_plainly(checkpoint, buffer);  // warms the cache, whatever saving left there
  double plain = 1e9, loading = 1e9;
  for (int round = 0; round < 5; ++round) {
    plain = std::min(plain, seconds([&] { bytes = read_plainly(checkpoint, buffer); }));
    loading = std::min(loading, seconds([&] { load_weights(model, checkpoint); }));
  }
  std::vector<std::byte>().swap(buffer);
  const Index peak = peak_of([&] { load_weights(model, checkpoint); });
  const double gb = static_cast<double>(bytes) * 1e-9;
  const std::string what = std::string(P::name) + " " + name + " from " +
                           std::to_string(bytes >> 20) + " MiB of " + dtype_name(storage) +
                           ", threads " + std::to_string(threads);
  table.at_least(what, gb / loading, "GB/s", "plain read, GB/s", gb / plain, goal);
  double weights = static_cast<double>(plan::weight_bytes<P>(config));
  if constexpr (requires { model.bytes(); }) weights = static_cast<double>(model.bytes());
  const double allowed = weights + 64.0 * (1 << 20) / 1.05;
  table.at_most("  RssAnon at the peak of loading", static_cast<double>(peak) * 0x1p-20, "MiB",
                "weights + 61, MiB", allowed * 0x1p-20, 1.05);
}

}  // namespace

int main(int argc, char** argv) {
  Index mib = 2048;
  int threads = 2;
  bool no_head = false;
  CLI::App app("Loading checkpoints beside plain reading of their files.");
  app.add_option("--mib", mib, "of a checkpoint's files")->check(CLI::Range(64, 1 << 20));
  app.add_option("--threads", threads)->check(CLI::Range(1, 1024));
  app.add_flag("--no-head", no_head);
  CLI11_PARSE(app, argc, argv);
  bench::Table table(!no_head);
  const auto inference = [&]<class P>(std::type_identity<P>, DType storage, double goal) {
    measure<P, InferenceModel<P, Cpu>>(table, "for inference", mib << 20, threads, storage, goal);
  };
  inference(std::type_identity<Bf16>(), DType::bf16, 0.7);
  inference(std::type_identity<Fp8>(), DType::f8_e4m3, 0.7);
  inference(std::type_identity<Fp32>(), DType::bf16, 0);  // writes 4 bytes for 2 that are read
  // With masters: 6 bytes are written for 2 that are read, then 5 for 1.
  const auto training = [&]<class P>(std::type_identity<P>, DType storage) {
    measure<P, Model<P, Cpu>>(table, "with masters", mib << 20, threads, storage, 0);
  };
  training(std::type_identity<Bf16>(), DType::bf16);
  training(std::type_identity<Fp8>(), DType::f8_e4m3);
  return table.status();
}
