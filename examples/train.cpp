// The main job: trains a small DeepSeek-V3 on text and reports how it went. Run with --help.
#include <sys/resource.h>

#include <csignal>
#include <dsv3/infer/inference_model.hpp>
#include <dsv3/io/byte_tokenizer.hpp>
#include <dsv3/io/checkpoint.hpp>
#include <dsv3/io/training_state.hpp>
#include <dsv3/model.hpp>
#include <dsv3/plan.hpp>
#include <iostream>
#include <map>

#include "entropy.hpp"
#include "options.hpp"
#include "report.hpp"
#include "sample.hpp"
#include "text.hpp"

namespace {

using namespace example;
using dsv3::View;

volatile std::sig_atomic_t stop_signal = 0;

extern "C" void ask_to_stop(int signal) { stop_signal = signal; }

// The first Ctrl-C asks for a stop after the step, the second one ends the program at once.
void listen_to_signals() {
  struct sigaction action {};
  action.sa_handler = ask_to_stop;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

Index peak_memory() {  // of this process, in bytes
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  return static_cast<Index>(usage.ru_maxrss);
#else
  return static_cast<Index>(usage.ru_maxrss) * 1024;
#endif
}

// ---- The output folder

struct Files {
  std::string folder;
  std::string run() const { return folder + "/run.json"; }
  std::string state() const { return folder + "/state.safetensors"; }
  std::string metrics() const { return folder + "/metrics.jsonl"; }
  std::string report() const { return folder + "/report.html"; }
  std::string checkpoint() const { return folder + "/checkpoint"; }
};

// Refuses to replace a run that could be continued, and to continue one that cannot.
void check_run(const Files& files, bool resume) {
  const bool state = std::filesystem::exists(files.state());
  std::ifstream file(files.run());
  const auto run = nlohmann::json::parse(file, nullptr, false);
  const bool finished = run.is_object() && run.value("finished", false);
  if (resume && finished)
    throw OptionError("--resume: the run in '" + files.folder + "' is finished");
  if (resume && !state)
    throw OptionError("--resume: the run in '" + files.folder +
                      "' stopped before its first state was saved: start it again");
  if (!resume && state && run.is_object() && !finished)
    throw OptionError("--out: '" + files.folder +
                      "' holds an interrupted run: continue it with --resume, remove the folder, "
                      "or name another one");
}

void write_run(const Files& files, const Options& o, bool finished) {
  auto run = to_json(o);
  run["finished"] = finished;
  dsv3::AtomicFile file(files.run());
  file.write(run.dump(2) + '\n');
  file.commit();
}

// ---- Training

// What is said before the run, on the terminal and in the report.
struct Facts {
  std::vector<Table> tables;

  void table(std::string title) { tables.push_back({std::move(title), {}}); }
  void add(std::string name, std::string value) {
    tables.back().rows.emplace_back(std::move(name), std::move(value));
  }
  void print() const {
    for (const Table& table : tables) {
      std::printf("%s\n", table.title.c_str());
      for (const auto& [name, value] : table.rows)
        std::printf("  %-24s %s\n", name.c_str(), value.c_str());
    }
    std::printf("\n");
  }
};

std::string both_units(const Entropies& e, double nats) {
  std::string text = decimal(nats, 3) + " nats/token";
  if (e.bytes_per_token > 0) text += " = " + decimal(e.bits_per_byte(nats), 3) + " bits/byte";
  return text;
}

template <class P>
Facts facts_of(const Options& o, const dsv3::TextData& data, const Entropies& e,
               const dsv3::ModelConfig& c, Index rows_evaluated) {
  Facts f;
  f.table("Text");
  f.add("source", joined(o.text));
  f.add("files", grouped(data.files()) + " of " + mib(data.bytes()));
  std::map<std::string, Index> skipped;
  for (const auto& s : data.skipped()) ++skipped[s.reason];
  for (const auto& [reason, count] : skipped) f.add("left out: " + reason, grouped(count));
  f.add("tokens", grouped(data.tokens()));
  f.add("rows", grouped(data.training_rows()) + " to train on, " + grouped(data.held_out_rows()) +
                    " held out (" + grouped(rows_evaluated) + " of them evaluated)");
  f.add("unigram entropy", both_units(e, e.unigram));
  f.add("bigram entropy", both_units(e, e.bigram));
  f.table("Model");
  f.add("layers", std::to_string(c.num_hidden_layers) + ", the first " +
                      std::to_string(c.first_k_dense_replace) + " dense, + " +
                      std::to_string(c.num_nextn_predict_layers) + " for MTP");
  f.add("hidden size", std::to_string(c.hidden_size));
  f.add("attention",
        std::to_string(c.num_attention_heads) + " heads of " + std::to_string(c.qk_nope_head_dim) +
            " + " + std::to_string(c.qk_rope_head_dim) + ", latents " +
            std::to_string(c.q_lora_rank) + " (q), " + std::to_string(c.kv_lora_rank) + " (k, v)");
  f.add("experts", std::to_string(c.num_experts_per_tok) + " of " +
                       std::to_string(c.n_routed_experts) + " routed + " +
                       std::to_string(c.n_shared_experts) + " shared, width " +
                       std::to_string(c.moe_intermediate_size));
  f.add("parameters", grouped(dsv3::plan::total_parameters(c)));
  f.add("activated per token", grouped(dsv3::plan::activated_parameters(c)));
  f.table("Run");
  const Index tokens = o.steps * o.batch * o.sequence;
  f.add("steps", grouped(o.steps) + " of " + grouped(o.batch) + " rows of " + grouped(o.sequence) +
                     " tokens");
  f.add("tokens", grouped(tokens) + ", " +
                      number(static_cast<double>(o.steps * o.batch) /
                                 static_cast<double>(data.training_rows()),
                             3) +
                      " epochs");
  f.add("precision", P::name);
  f.add("learning rate", "peak " + number(o.lr) + ", DeepSeek-V3's schedule");
  f.add("seed", std::to_string(o.seed));
  f.table("Machine");
  const auto features = dsv3::cpu_features();
  f.add("processor", processor());
  f.add("threads", std::to_string(o.threads));
  f.add("kernels",
        features.compiled + (features.compiled == features.best()
                                 ? ""
                                 : " (this processor could run " + features.best() + ")"));
  return f;
}

// Lets the trained model continue the beginning of a held-out row, with and without speculation,
// and says how fast.
template <class Model>
void generate_sample(const Options& o, const Model& trained, View<const std::int32_t, 1> row,
                     Facts& facts) {
  dsv3::InferenceModel<typename Model::Precision, dsv3::Cpu> model(trained.backend(),
                                                                   trained.config());
  model.take_operands(trained);
  const Index prompt_size = std::min<Index>(64, row.extent(0)), count = 256;
  const std::vector<std::int32_t> prompt(row.data, row.data + prompt_size);
  sample(model, prompt, 16, o.mtp);  // the first passes touch new memory
  const Sample plain = sample(model, prompt, count, 0);
  const bool bytes = o.format == "bytes";
  std::printf("A held-out text, and how the model goes on, greedily:\n\n%s[...]%s\n\n",
              readable(prompt, bytes).c_str(), readable(plain.tokens, bytes).c_str());
  facts.table("Generation");
  facts.add("tokens", grouped(count) + " behind " + grouped(prompt_size));
  const std::string speed = decimal(plain.tokens_per_second(), 0) + " tokens/s";
  facts.add("one token a pass", speed);
  std::printf("one token a pass        %s\n", speed.c_str());
  if (o.mtp > 0) {
    const Sample drafted = sample(model, prompt, count, o.mtp);
    if (drafted.tokens != plain.tokens)
      throw std::runtime_error("speculation changed the text: please report this");
    const std::string with = decimal(drafted.tokens_per_second(), 0) + " tokens/s, " +
                             decimal(drafted.tokens_per_second() / plain.tokens_per_second(), 2) +
                             " times as many; " + decimal(drafted.tokens_per_pass, 2) +
                             " tokens a pass";
    facts.add("with drafts of MTP", with);
    facts.add("drafts that stood", shares(drafted.stood));
    std::printf("with drafts of MTP      %s\ndrafts that stood       %s; the text is the same\n",
                with.c_str(), shares(drafted.stood).c_str());
  }
  std::printf("\n");
}

// Bytes of what training keeps in memory, the backend's workspace with the pass.
template <class P>
dsv3::plan::TrainingMemory planned_memory(const Options& o, const dsv3::ModelConfig& c) {
  const auto threads = static_cast<int>(o.threads);
  const auto keep = o.recompute ? dsv3::Keep::inputs : dsv3::Keep::all;
  auto memory = dsv3::plan::training_memory<P>(c, o.batch, o.sequence, keep, threads);
  memory.pass += dsv3::Cpu::workspace_bytes(threads);
  return memory;
}

std::string text_of(const dsv3::plan::TrainingMemory& m) {
  return mib(m.total()) + ": weights " + mib(m.weights) + ", gradients and moments " +
         mib(m.gradients + m.moments + m.counters) + ", activations and scratch " + mib(m.pass);
}

// The checkpoint, with a tokenizer.json where tokens are bytes.
template <class Model>
void save_model(const Options& o, Model& model, const Files& files) {
  dsv3::SaveOptions options;
  options.dtype = dsv3::DType::f32;
  options.repeat_shared = false;
  if (o.format == "bytes" && o.vocab_size >= dsv3::ByteVocabulary::size)
    options.texts["tokenizer.json"] = dsv3::byte_tokenizer_json();
  dsv3::save_checkpoint(model, files.checkpoint(), options);
}

template <class P>
int train(const Options& o, const dsv3::TextData& data, const Files& files) {
  const dsv3::ModelConfig config = model_config(o);
  const dsv3::plan::TrainingMemory memory = planned_memory<P>(o, config);
  check_memory(memory.total());
  const Index rows_evaluated = std::min(o.eval_rows, data.held_out_rows());
  const Entropies entropies = count_entropies(data, rows_evaluated);
  Facts facts = facts_of<P>(o, data, entropies, config, rows_evaluated);

  dsv3::Cpu backend(static_cast<int>(o.threads));
  facts.add("memory planned", text_of(memory));
  facts.print();
  std::fflush(stdout);

  dsv3::Model<P, dsv3::Cpu> model(
      backend, config, {.seed = static_cast<std::uint64_t>(o.seed), .init_std = o.init_std});
  dsv3::TrainOptions options;
  options.schedule = schedule(o);
  options.balance_alpha = o.balance_alpha;
  options.weight_decay = o.weight_decay;
  options.recompute = o.recompute;
  dsv3::Trainer trainer(model, options);

  std::vector<Metrics> history;
  if (o.resume) {
    dsv3::load_training_state(trainer, files.state());
    history = read_metrics(files.metrics(), trainer.progress().step);
    std::printf("Continuing after step %td.\n", trainer.progress().step);
  } else {
    std::filesystem::create_directories(files.folder);
    // In this order: a state must never lie beside the options of another run.
    std::filesystem::remove(files.state());
    write_run(files, o, false);
  }
  MetricsFile metrics(files.metrics(), history);

  std::vector<std::int32_t> storage(static_cast<std::size_t>(o.batch * (o.sequence + 1)));
  const View<std::int32_t, 2> rows(storage.data(), {o.batch, o.sequence + 1});

  // The evaluated held-out rows, in batches of the training size.
  std::vector<std::int32_t> held_out_storage(
      static_cast<std::size_t>(rows_evaluated * (o.sequence + 1)));
  const View<std::int32_t, 2> held_out_rows(held_out_storage.data(),
                                            {rows_evaluated, o.sequence + 1});
  for (Index i = 0; i < rows_evaluated; ++i)
    data.held_out_batch(sampled_row(data, i, rows_evaluated), held_out_rows.rows(i, 1));
  std::vector<dsv3::Batch> held_out_batches;
  for (Index first = 0; first < rows_evaluated; first += o.batch)
    held_out_batches.push_back(dsv3::next_token_batch(
        held_out_rows.rows(first, std::min(o.batch, rows_evaluated - first))));

  const auto report = [&] {
    double seconds = 0, violation = 0;
    Index tokens = 0;
    std::optional<double> held_out;
    for (const Metrics& m : history) {
      seconds += m.seconds;
      tokens += o.batch * o.sequence;
      if (m.held_out) held_out = m.held_out;
    }
    const std::size_t last = std::min<std::size_t>(history.size(), 20);
    for (std::size_t i = history.size() - last; i < history.size(); ++i)
      violation += history[i].max_violation / static_cast<double>(last);
    Report page;
    page.title = "DeepSeek-V3 with " + grouped(dsv3::plan::total_parameters(config)) +
                 " parameters, trained for " + grouped(trainer.progress().step) + " of " +
                 grouped(o.steps) + " steps";
    page.subtitle = joined(o.text) + ": " + mib(data.bytes()) + " of text, " + grouped(tokens) +
                    " tokens in " + minutes(seconds) + " min";
    if (held_out) {
      page.tiles.emplace_back("held-out loss, nats per token", decimal(*held_out, 3));
      if (entropies.bytes_per_token > 0)
        page.tiles.emplace_back("held-out, bits per byte",
                                decimal(entropies.bits_per_byte(*held_out), 3));
    }
    page.tiles.emplace_back("bigram entropy, nats per token", decimal(entropies.bigram, 3));
    page.tiles.emplace_back("unigram entropy, nats per token", decimal(entropies.unigram, 3));
    if (!history.empty())
      page.tiles.emplace_back("tokens per second",
                              grouped(static_cast<Index>(static_cast<double>(tokens) / seconds)));
    page.tiles.emplace_back("MaxVio, last " + std::to_string(last) + " steps",
                            decimal(violation, 2));
    page.unigram = entropies.unigram;
    page.bigram = entropies.bigram;
    for (Index l = 0; l < config.num_hidden_layers; ++l)
      if (config.is_moe(l)) page.layer_names.push_back("layer " + std::to_string(l));
    for (Index k = 1; k <= o.mtp; ++k) page.layer_names.push_back("MTP " + std::to_string(k));
    Facts all = facts;
    all.add("memory of the process", mib(peak_memory()) + " at its peak");
    page.tables = all.tables;
    write_report(files.report(), page, history);
  };

  const bool live = ::isatty(STDOUT_FILENO);
  const Index first_step = trainer.progress().step;
  const auto start = std::chrono::steady_clock::now();
  std::optional<double> held_out;
  for (const Metrics& m : history)
    if (m.held_out) held_out = m.held_out;
  while (trainer.progress().step < o.steps && stop_signal == 0) {
    // A step reads the next rows of the order, so the step is all that the position needs.
    data.training_batch(trainer.progress().step * o.batch, rows);
    const dsv3::StepReport r = trainer.step(rows);
    Metrics m{.step = r.step,
              .tokens = trainer.progress().tokens,
              .loss = r.loss,
              .mtp_loss = r.mtp_loss,
              .balance_loss = r.balance,
              .grad_norm = r.grad_norm,
              .max_violation = r.max_violation,
              .lr = r.lr,
              .seconds = r.seconds,
              .tokens_per_second = r.tokens_per_second,
              .skipped = r.skipped,
              .load = {},
              .held_out = {},
              .held_out_mtp = {}};
    for (auto at = r.load.begin(); at != r.load.end(); at += config.n_routed_experts)
      m.load.emplace_back(at, at + config.n_routed_experts);
    const bool last = r.step == o.steps, evaluated = last || r.step % o.eval_every == 0;
    if (evaluated) {
      const dsv3::EvaluationReport e = trainer.evaluate(held_out_batches);
      m.held_out = held_out = e.loss;
      m.held_out_mtp = e.mtp_loss;
    }
    history.push_back(m);
    metrics.add(m);
    if (r.step % o.save_every == 0 && !last) dsv3::save_training_state(trainer, files.state());
    if (live || evaluated || r.skipped) {
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
      const double left = passed.count() / static_cast<double>(r.step - first_step) *
                          static_cast<double>(o.steps - r.step);
      std::printf("%sstep %td/%td  loss %.3f  held-out %s  MaxVio %.2f  %.0f tokens/s  ETA %s%s%s",
                  live ? "\r\033[K" : "", r.step, o.steps, r.loss,
                  held_out ? decimal(*held_out, 3).c_str() : "-", r.max_violation,
                  r.tokens_per_second, minutes(left).c_str(),
                  r.skipped ? "  skipped: gradient not finite" : "",
                  !live || evaluated ? "\n" : "");
      std::fflush(stdout);
    }
  }

  const bool finished = trainer.progress().step == o.steps;
  dsv3::save_training_state(trainer, files.state());
  if (finished) {
    std::printf("\n");
    generate_sample(o, model, dsv3::as_const(held_out_rows)[0], facts);
  }
  report();
  if (!finished) {
    std::printf("\nStopped after step %td of %td. To continue, run again with --resume --out %s\n",
                trainer.progress().step, o.steps, files.folder.c_str());
    return 128 + stop_signal;
  }
  save_model(o, model, files);
  write_run(files, o, true);
  std::printf("\nheld-out loss    %s\nbigram entropy   %s\nunigram entropy  %s\n",
              both_units(entropies, *held_out).c_str(),
              both_units(entropies, entropies.bigram).c_str(),
              both_units(entropies, entropies.unigram).c_str());
  std::printf("The model is %s nats/token %s the bigram entropy.\n\n",
              decimal(std::abs(entropies.bigram - *held_out), 3).c_str(),
              *held_out < entropies.bigram ? "under" : "above");
  std::printf("report      %s\nmetrics     %s\ncheckpoint  %s/\nstate       %s\n",
              files.report().c_str(), files.metrics().c_str(), files.checkpoint().c_str(),
              files.state().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  if (const auto code = parse(argc, argv, o)) return *code;
  const Files files{o.out};
  try {
    check_run(files, o.resume);
    const auto data = [&] {
      try {
        return dsv3::TextData(o.text, {.format = text_format(o),
                                       .vocab_size = o.vocab_size,
                                       .row_length = o.sequence,
                                       .held_out = o.held_out,
                                       .seed = static_cast<std::uint64_t>(o.seed)});
      } catch (const std::runtime_error& error) {  // a file that cannot be read
        throw OptionError(error.what());
      }
    }();
    listen_to_signals();
    if (o.precision == "fp8") return train<dsv3::Fp8>(o, data, files);
    return o.precision == "bf16" ? train<dsv3::Bf16>(o, data, files)
                                 : train<dsv3::Fp32>(o, data, files);
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "train: %s\nRun with --help for all options.\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train: %s\n", error.what());
    return 1;
  }
}
