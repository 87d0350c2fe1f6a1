// Trains a checkpoint further on text and saves a folder that other software loads. Run with
// --help.
#include <unistd.h>

#include <dsv3/io/text_data.hpp>
#include <dsv3/plan.hpp>

#include "checkpoint_folder.hpp"
#include "text.hpp"

namespace {

using namespace example;

struct Options : CheckpointOptions {
  std::vector<std::string> text;
  std::string out, dtype = "auto", frozen;
  Index steps = 100, batch = 4, sequence = 512, warmup = 10, eval_rows = 16, seed = 1;
  double lr = 1e-5, weight_decay = 0, held_out = 0.05, mtp_lambda = 0.1, balance_alpha = 1e-4;
  double bias_gamma = 0;
  bool recompute = false, replace = false;
};

// The ids of text files in a file of their own, as TextData reads them; gone with the object.
class TokenFile {
 public:
  TokenFile(const dsv3::Tokenizer& tokenizer, const std::vector<std::string>& paths,
            Index end_of_document)
      : path_((std::filesystem::temp_directory_path() /
               ("dsv3_finetune_" + std::to_string(::getpid()) + ".u32"))
                  .string()) {
    dsv3::AtomicFile file(path_);
    for (const std::string& path : paths) {
      const dsv3::MappedFile text(path);
      auto ids = tokenizer.encode(
          {static_cast<const char*>(static_cast<const void*>(text.data())), text.size()});
      if (end_of_document >= 0) ids.push_back(static_cast<std::int32_t>(end_of_document));
      file.write({static_cast<const char*>(static_cast<const void*>(ids.data())),
                  ids.size() * sizeof(std::int32_t)});
    }
    file.commit();
  }
  TokenFile(const TokenFile&) = delete;
  TokenFile& operator=(const TokenFile&) = delete;
  ~TokenFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void check_output(const Options& o) {
  if (std::filesystem::exists(o.out) && !o.replace)
    throw std::invalid_argument("'" + o.out + "' exists: name another folder, or say --replace");
}

template <class P>
int run(const Options& o, const CheckpointFolder& folder, const dsv3::TextData& data) {
  using dsv3::View;
  const Index rows_evaluated = std::min(o.eval_rows, data.held_out_rows());
  dsv3::Cpu backend(o.thread_count());
  using Model = dsv3::Model<P, dsv3::Cpu>;
  Model model(backend, folder.config);
  dsv3::load_weights(model, folder.path);
  dsv3::TrainOptions options;
  dsv3::Schedule schedule = dsv3::Schedule{}.scaled(o.steps * o.batch * o.sequence, o.lr, o.warmup);
  schedule.mtp_lambda_first = schedule.mtp_lambda_last = o.mtp_lambda;
  schedule.bias_gamma_first = o.bias_gamma;
  options.schedule = schedule;
  options.balance_alpha = o.balance_alpha;
  options.weight_decay = o.weight_decay;
  options.recompute = o.recompute;
  if (!o.frozen.empty()) options.groups = {{.pattern = o.frozen, .frozen = true}};
  dsv3::Trainer<Model> trainer(model, options);

  std::vector<std::int32_t> storage(static_cast<std::size_t>(o.batch * (o.sequence + 1)));
  const View<std::int32_t, 2> rows(storage.data(), {o.batch, o.sequence + 1});
  std::vector<std::int32_t> held_out(static_cast<std::size_t>(rows_evaluated * (o.sequence + 1)));
  const View<std::int32_t, 2> held_out_rows(held_out.data(), {rows_evaluated, o.sequence + 1});
  data.held_out_batch(0, held_out_rows);
  std::vector<dsv3::Batch> batches;
  for (Index first = 0; first < rows_evaluated; first += o.batch)
    batches.push_back(dsv3::next_token_batch(
        held_out_rows.rows(first, std::min(o.batch, rows_evaluated - first))));
  const double before = trainer.evaluate(batches).loss;
  std::printf("%s: %s parameters, %s tokens of text\n", folder.path.c_str(),
              grouped(dsv3::plan::total_parameters(folder.config)).c_str(),
              grouped(data.tokens()).c_str());
  std::printf("held-out loss before   %.4f nats/token\n", before);
  std::fflush(stdout);

  const bool live = ::isatty(STDOUT_FILENO);
  const Clock clock;
  for (Index step = 1; step <= o.steps; ++step) {
    data.training_batch((step - 1) * o.batch, rows);
    const auto r = trainer.step(rows);
    if (!live && step != o.steps && step * 10 / o.steps == (step - 1) * 10 / o.steps) continue;
    std::printf(
        "%sstep %td/%td  loss %.4f  gradient %.3f  %.0f tokens/s  ETA %s%s%s",
        live ? "\r\033[K" : "", step, o.steps, r.loss, r.grad_norm, r.tokens_per_second,
        minutes(clock.seconds() / static_cast<double>(step) * static_cast<double>(o.steps - step))
            .c_str(),
        r.skipped ? "  skipped: gradient not finite" : "", !live || step == o.steps ? "\n" : "");
    std::fflush(stdout);
  }
  std::printf("held-out loss after    %.4f nats/token\n", trainer.evaluate(batches).loss);
  const std::string dtype = o.dtype != "auto" ? o.dtype : folder.fp8 ? "fp8" : "bf16";
  dsv3::SaveOptions save;
  save.dtype = dtype == "fp8"    ? dsv3::DType::f8_e4m3
               : dtype == "fp32" ? dsv3::DType::f32
                                 : dsv3::DType::bf16;
  save.if_exists = o.replace ? dsv3::IfExists::replace : dsv3::IfExists::refuse;
  save.companions = folder.path;
  dsv3::save_checkpoint(model, o.out, save);
  std::printf("saved                  %s (%s)\n", o.out.c_str(), dtype.c_str());
  return 0;
}

dsv3::TextData read_text(const Options& o, const CheckpointFolder& folder,
                         std::optional<TokenFile>& ids) {
  dsv3::TextOptions options;
  options.vocab_size = folder.config.vocab_size;
  options.row_length = o.sequence;
  options.held_out = o.held_out;
  options.seed = static_cast<std::uint64_t>(o.seed);
  options.format = dsv3::TextFormat::u32;
  if (!folder.tokenizer)
    throw std::invalid_argument("'" + folder.path + "' holds no tokenizer.json");
  ids.emplace(*folder.tokenizer, o.text, folder.config.eos_token_id);
  dsv3::TextData data({ids->path()}, options);
  if (data.held_out_rows() == 0 || data.training_rows() == 0)
    throw std::invalid_argument(
        "the text (" + grouped(data.tokens()) + " tokens) must fill at least one row of --seq " +
        std::to_string(o.sequence) + " to train on and one that is held out");
  return data;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Trains a checkpoint further on text and saves the result.", "finetune");
  o.add_to(app);
  app.add_option("text_and_out", o.text, "files of text, then the folder to be made")
      ->required()
      ->expected(2, 1 << 20);
  const auto option = [&](const char* name, auto& value, const char* help, auto least, auto most) {
    app.add_option(name, value, help)->check(CLI::Range(least, most))->capture_default_str();
  };
  constexpr Index many = Index{1} << 38;
  option("--steps", o.steps, "optimizer steps", Index{1}, many);
  option("--batch", o.batch, "rows a step", Index{1}, Index{1} << 20);
  option("--seq", o.sequence, "tokens a row", Index{2}, Index{1} << 20);
  option("--lr", o.lr, "peak learning rate", 0.0, 10.0);
  option("--warmup", o.warmup, "steps of linear warm-up", Index{0}, many);
  option("--weight-decay", o.weight_decay, "AdamW's decoupled weight decay", 0.0, 10.0);
  option("--mtp-lambda", o.mtp_lambda, "weight of the MTP losses", 0.0, 100.0);
  option("--balance-alpha", o.balance_alpha, "weight of the balance loss", 0.0, 100.0);
  option("--bias-gamma", o.bias_gamma, "speed of the gate-bias update", 0.0, 100.0);
  option("--held-out", o.held_out, "share of the text that is never trained on", 1e-6, 0.5);
  option("--eval-rows", o.eval_rows, "rows of a held-out loss, at most", Index{1}, many);
  option("--seed", o.seed, "of the order of the text", Index{0}, many);
  app.add_option("--freeze", o.frozen, "part of the names of tensors that stay as they are");
  app.add_flag("--recompute", o.recompute, "keep fewer activations, compute them twice");
  app.add_option("--dtype", o.dtype, "of the saved weights; auto: as in the folder")
      ->check(CLI::IsMember({"auto", "bf16", "fp32", "fp8"}))
      ->capture_default_str();
  app.add_flag("--replace", o.replace, "replace the output folder where it exists");
  return run_program("finetune", app, argc, argv, [&] {
    o.out = o.text.back();
    o.text.pop_back();
    check_output(o);
    const CheckpointFolder folder(o.folder);
    std::optional<TokenFile> ids;
    const dsv3::TextData data = read_text(o, folder, ids);
    return o.with_precision(
        folder, [&]<class P>(std::type_identity<P>) { return run<P>(o, folder, data); });
  });
}
