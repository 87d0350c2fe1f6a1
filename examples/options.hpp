// The training example's options: one table serves the command line, the checks and --resume.
#pragma once

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <dsv3/config.hpp>
#include <dsv3/io/text_data.hpp>
#include <dsv3/train/schedule.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

namespace example {

using dsv3::Index;

struct Options {
  std::vector<std::string> text;
  std::string format = "bytes", precision = "bf16", out = "out";
  Index vocab_size = dsv3::ByteVocabulary::size;
  Index hidden = 192, layers = 4, dense_layers = 1, heads = 4, q_rank = 64, kv_rank = 48;
  Index nope_dim = 32, rope_dim = 16, v_dim = 32, ffn = 512, expert_ffn = 64;
  Index experts = 16, shared_experts = 1, top_k = 4, groups = 4, top_groups = 2, mtp = 1;
  Index steps = 500, batch = 4, sequence = 256, warmup = 20, eval_every = 50, eval_rows = 32;
  Index save_every = 100, threads = 0, seed = 1;
  double lr = 4e-3, held_out = 0.02, init_std = 0.05, mtp_lambda = 0.3, balance_alpha = 1e-4;
  double bias_gamma = 5e-3, weight_decay = 0.1;
  bool recompute = false, resume = false;
};

/// Calls f(group, name, value, help, least, most) for every option with a value that decides what
/// is computed.
void for_each_option(auto& o, auto&& f) {
  constexpr Index many = Index{1} << 38, wide = 1 << 20;
  const char* g = "Model";
  f(g, "--vocab-size", o.vocab_size, "token ids; 257 for bytes", Index{2}, Index{1} << 24);
  f(g, "--hidden", o.hidden, "width of the residual stream", Index{1}, wide);
  f(g, "--layers", o.layers, "blocks", Index{1}, Index{1024});
  f(g, "--dense-layers", o.dense_layers, "first blocks with a dense MLP", Index{0}, Index{1024});
  f(g, "--heads", o.heads, "attention heads", Index{1}, Index{4096});
  f(g, "--q-rank", o.q_rank, "latent width of queries; 0: none", Index{0}, wide);
  f(g, "--kv-rank", o.kv_rank, "latent width of keys and values", Index{1}, wide);
  f(g, "--nope-dim", o.nope_dim, "per head: query width without rotation", Index{1}, wide);
  f(g, "--rope-dim", o.rope_dim, "per head: query width with rotation", Index{2}, wide);
  f(g, "--v-dim", o.v_dim, "per head: value width", Index{1}, wide);
  f(g, "--ffn", o.ffn, "width inside a dense MLP", Index{1}, wide);
  f(g, "--expert-ffn", o.expert_ffn, "width inside an expert", Index{1}, wide);
  f(g, "--experts", o.experts, "routed experts", Index{1}, Index{65536});
  f(g, "--shared-experts", o.shared_experts, "shared experts", Index{0}, Index{1024});
  f(g, "--top-k", o.top_k, "routed experts a token uses", Index{1}, Index{65536});
  f(g, "--groups", o.groups, "groups of experts", Index{1}, Index{65536});
  f(g, "--top-groups", o.top_groups, "groups a token may use", Index{1}, Index{65536});
  f(g, "--mtp", o.mtp, "multi-token prediction modules", Index{0}, Index{64});
  f(g, "--precision", o.precision, "fp32, bf16 or fp8", Index{0}, many);
  g = "Training";
  f(g, "--steps", o.steps, "optimizer steps", Index{1}, many);
  f(g, "--batch", o.batch, "rows a step", Index{1}, wide);
  f(g, "--seq", o.sequence, "tokens a row", Index{1}, wide);
  f(g, "--lr", o.lr, "peak learning rate", 0.0, 10.0);
  f(g, "--warmup", o.warmup, "steps of linear warm-up", Index{0}, many);
  f(g, "--weight-decay", o.weight_decay, "AdamW's decoupled weight decay", 0.0, 10.0);
  f(g, "--init-std", o.init_std, "standard deviation of initial weights", 0.0, 10.0);
  f(g, "--mtp-lambda", o.mtp_lambda, "weight of the MTP losses; a third in the last third", 0.0,
    100.0);
  f(g, "--balance-alpha", o.balance_alpha, "weight of the balance loss", 0.0, 100.0);
  f(g, "--bias-gamma", o.bias_gamma, "speed of the gate-bias update", 0.0, 100.0);
  f(g, "--seed", o.seed, "of weights and order of the text", Index{0}, many);
  f(g, "--recompute", o.recompute, "keep fewer activations, compute them twice", Index{0}, many);
  g = "Text";
  f(g, "--format", o.format, "bytes, or token ids: u16, u32", Index{0}, many);
  f(g, "--held-out", o.held_out, "share of the text that is never trained on", 0.0, 0.5);
  g = "Report";
  f(g, "--eval-every", o.eval_every, "steps between held-out losses", Index{1}, many);
  f(g, "--eval-rows", o.eval_rows, "rows of a held-out loss, at most", Index{1}, many);
}

/// A bad option: what it is and what it must be.
class OptionError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

namespace detail {

inline std::string text_of(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}
inline std::string text_of(Index value) { return std::to_string(value); }

template <class T>
void check_range(const char* name, const T& value, auto least, auto most) {
  if constexpr (std::is_same_v<T, Index> || std::is_same_v<T, double>) {
    if (!(value >= static_cast<T>(least)))
      throw OptionError(std::string(name) + " (" + text_of(value) + ") must be at least " +
                        text_of(static_cast<T>(least)));
    if (!(value <= static_cast<T>(most)))
      throw OptionError(std::string(name) + " (" + text_of(value) + ") must be at most " +
                        text_of(static_cast<T>(most)));
  }
}

inline void check_choice(const char* name, const std::string& value,
                         std::initializer_list<const char*> choices) {
  std::string all;
  for (const char* choice : choices) {
    if (value == choice) return;
    all += (all.empty() ? "" : ", ") + std::string(choice);
  }
  throw OptionError(std::string(name) + " (" + value + ") must be one of " + all);
}

/// Throws unless files can be made in `folder`, which need not exist yet.
inline void check_output(const std::string& folder) {
  namespace fs = std::filesystem;
  if (folder.empty()) throw OptionError("--out must name a folder");
  fs::path at = fs::absolute(folder);
  std::error_code error;
  while (!fs::exists(at, error) && at.has_relative_path()) at = at.parent_path();
  if (!fs::is_directory(at, error))
    throw OptionError("--out: '" + at.string() + "' is not a folder");
  if (::access(at.c_str(), W_OK | X_OK) != 0)
    throw OptionError("--out: no permission to write in '" + at.string() + "'");
}

}  // namespace detail

/// The same files from wherever the program is started.
inline std::vector<std::string> absolute(const std::vector<std::string>& paths) {
  std::vector<std::string> all;
  for (const std::string& path : paths)
    all.push_back(std::filesystem::absolute(path).lexically_normal().string());
  return all;
}

/// What --resume must find again, and what it takes the rest of its options from.
inline nlohmann::ordered_json to_json(const Options& o) {
  nlohmann::ordered_json j;
  j["text"] = absolute(o.text);
  for_each_option(o, [&](auto, const char* name, const auto& value, auto...) { j[name] = value; });
  return j;
}

inline ::dsv3::TextFormat text_format(const Options& o) {
  if (o.format == "u16") return dsv3::TextFormat::u16;
  return o.format == "u32" ? dsv3::TextFormat::u32 : dsv3::TextFormat::bytes;
}

/// The model of these options: DeepSeek-V3 with other sizes.
inline dsv3::ModelConfig model_config(const Options& o) {
  dsv3::ModelConfig c = dsv3::presets::deepseek_v3;
  c.rope_scaling = {};
  c.vocab_size = o.vocab_size;
  c.hidden_size = o.hidden;
  c.num_hidden_layers = o.layers;
  c.first_k_dense_replace = o.dense_layers;
  c.num_attention_heads = c.num_key_value_heads = o.heads;
  c.q_lora_rank = o.q_rank;
  c.kv_lora_rank = o.kv_rank;
  c.qk_nope_head_dim = o.nope_dim;
  c.qk_rope_head_dim = o.rope_dim;
  c.v_head_dim = o.v_dim;
  c.intermediate_size = o.ffn;
  c.moe_intermediate_size = o.expert_ffn;
  c.n_routed_experts = o.experts;
  c.n_shared_experts = o.shared_experts;
  c.num_experts_per_tok = o.top_k;
  c.n_group = o.groups;
  c.topk_group = o.top_groups;
  c.num_nextn_predict_layers = o.mtp;
  c.max_position_embeddings = o.sequence;
  c.bos_token_id = c.eos_token_id =
      text_format(o) == dsv3::TextFormat::bytes ? dsv3::ByteVocabulary::end_of_document : 0;
  return c;
}

/// V3's schedules over this run: the same shares of its tokens.
inline dsv3::Schedule schedule(const Options& o) {
  dsv3::Schedule s = dsv3::Schedule{}.scaled(o.steps * o.batch * o.sequence, o.lr, o.warmup);
  s.mtp_lambda_first = o.mtp_lambda;
  s.mtp_lambda_last = o.mtp_lambda / 3;
  s.bias_gamma_first = o.bias_gamma;
  return s;
}

/// Checks everything that can be known without reading text.
/// Errors   OptionError, or what validate(ModelConfig) throws.
inline void check(const Options& o) {
  for_each_option(o, [](auto, const char* name, const auto& value, auto, auto least, auto most) {
    detail::check_range(name, value, least, most);
  });
  detail::check_range("--threads", o.threads, 0, 1024);
  detail::check_range("--save-every", o.save_every, 1, Index{1} << 40);
  detail::check_choice("--precision", o.precision, {"fp32", "bf16", "fp8"});
  detail::check_choice("--format", o.format, {"bytes", "u16", "u32"});
  if (o.format == "bytes" && o.vocab_size < dsv3::ByteVocabulary::size)
    throw OptionError("--vocab-size (" + std::to_string(o.vocab_size) +
                      ") must be at least 257 with --format bytes");
  if (o.held_out == 0) throw OptionError("--held-out (0) must be above 0");
  if (o.mtp >= o.sequence)
    throw OptionError("--mtp (" + std::to_string(o.mtp) + ") must be below --seq (" +
                      std::to_string(o.sequence) + ")");
  if (o.batch * o.sequence > Index{1} << 24)
    throw OptionError("--batch times --seq (" + std::to_string(o.batch * o.sequence) +
                      ") must be at most 16777216");
  validate(model_config(o));
  detail::check_output(o.out);
}

/// Throws where the machine has less memory than is planned.
inline void check_memory(Index planned) {
  const Index there = Index{::sysconf(_SC_PHYS_PAGES)} * Index{::sysconf(_SC_PAGE_SIZE)};
  if (planned > there)
    throw OptionError("memory planned (" + std::to_string(planned >> 20) +
                      " MiB) must be at most this machine's (" + std::to_string(there >> 20) +
                      " MiB): lower --batch, --seq or the model's sizes");
}

/// Text that a machine with this library's dependencies has.
inline std::vector<std::string> text_of_this_machine() {
  for (const char* folder : {"/usr/include/eigen3", "/usr/local/include/eigen3",
                             "/opt/homebrew/include/eigen3", "/usr/share/doc"})
    if (std::filesystem::is_directory(folder)) return {folder};
  throw OptionError(
      "no text: Eigen's headers, the default text, are not in /usr/include/eigen3; name files or "
      "folders to train on");
}

/// The options of an interrupted run, from the run.json in its folder. Options given on the
/// command line, too, must be the same; only threads, output folder and saving may change.
/// Errors   OptionError naming what differs or is missing.
inline Options resumed(const Options& given, const CLI::App& app) {
  const std::string path = given.out + "/run.json";
  std::ifstream file(path);
  if (!file)
    throw OptionError("--resume: '" + given.out + "' holds no run to continue (no run.json)");
  Options o = given;
  try {
    const auto j = nlohmann::json::parse(file);
    o.text = j.at("text").get<std::vector<std::string>>();
    if (!given.text.empty() && absolute(given.text) != o.text)
      throw OptionError("--resume: the text must be that of the run in '" + given.out + "'");
    for_each_option(o, [&](auto, const char* name, auto& value, auto...) {
      const auto was = j.at(name).get<std::decay_t<decltype(value)>>();
      if (app.count(name) > 0 && value != was)
        throw OptionError(std::string("--resume: ") + name + " (" + nlohmann::json(value).dump() +
                          ") must be that of the run in '" + given.out + "' (" +
                          nlohmann::json(was).dump() + ")");
      value = was;
    });
  } catch (const nlohmann::json::exception& error) {
    throw OptionError("--resume: '" + path + "': " + error.what());
  }
  return o;
}

/// The command line as options, complete and checked, or an exit code: 0 after --help, 2 where an
/// option is bad, which a line on stderr explains. Writes no file.
inline std::optional<int> parse(int argc, char** argv, Options& o) {
  CLI::App app(
      "Trains a small DeepSeek-V3 on text: multi-head latent attention, mixture of experts "
      "balanced "
      "without an auxiliary loss, multi-token prediction. Leaves a checkpoint, a training state, "
      "metrics.jsonl and report.html in the output folder.\n\n"
      "Without text it trains on the headers of the installed Eigen package.",
      "train");
  app.get_formatter()->column_width(34);
  app.add_option("text", o.text, "files or folders to train on");
  for_each_option(
      o, [&](const char* group, const char* name, auto& value, const char* help, auto, auto) {
        if constexpr (std::is_same_v<decltype(value), bool&>)
          app.add_flag(name, value, help)->group(group);
        else
          app.add_option(name, value, help)->capture_default_str()->group(group);
      });
  app.add_option("--threads", o.threads, "0: as many as the machine has")->capture_default_str();
  app.add_option("--out", o.out, "folder for everything that is written")->capture_default_str();
  app.add_option("--save-every", o.save_every, "steps between training states")
      ->capture_default_str();
  app.add_flag("--resume", o.resume, "continue the interrupted run in the output folder");
  try {
    app.parse(argc, argv);
    if (o.resume)
      o = resumed(o, app);
    else if (o.text.empty())
      o.text = text_of_this_machine();
    check(o);
    if (o.threads == 0) o.threads = std::max(1u, std::thread::hardware_concurrency());
    return std::nullopt;
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    return 0;
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "train: %s\nRun with --help for all options.\n", error.what());
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "train: %s\nRun with --help for all options.\n", error.what());
  }
  return 2;
}

}  // namespace example
