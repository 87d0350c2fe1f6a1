// The planner's options: the model, the layout, the run.
#pragma once

#include <dsv3/io/config_json.hpp>
#include <dsv3/plan/layout.hpp>
#include <numeric>

#include "../options.hpp"
#include "../text.hpp"

namespace example {

/// 0, or "auto", where a value is to be chosen.
struct PlanOptions {
  std::string model = "deepseek_v3", policy = "fp8", schedule = "auto", out;
  Index gpus = 0, pp = 0, dp = 0, ep = 0, gpus_per_node = 8;
  Index batch = 15360, micro_batch = 1, sequence = 0, threads = 1;
  double tokens = 14.8e12, tflops = 385, dollars = 2;
  bool recompute = false, keep_dispatched = false;
};

/// Calls f(group, name, value, help, least, most) for every option but the model and the folder.
void for_each_plan_option(auto& o, auto&& f) {
  constexpr Index many = Index{1} << 24;
  const char* g = "Layout";
  f(g, "--gpus", o.gpus, "GPUs in all; 0: pp * dp, 2048 where dp is 0 too", Index{0}, many);
  f(g, "--pp", o.pp, "pipeline stages; 0: 16, or what fits", Index{0}, many);
  f(g, "--dp", o.dp, "GPUs of a stage; 0: gpus / pp", Index{0}, many);
  f(g, "--ep", o.ep, "of them, those that share one copy of the experts; 0: 64, or what fits",
    Index{0}, many);
  f(g, "--gpus-per-node", o.gpus_per_node, "GPUs inside NVLink", Index{1}, many);
  f(g, "--schedule", o.schedule, "1f1b, zb1p, dualpipe; auto: dualpipe where it can run", Index{0},
    many);
  g = "Run";
  f(g, "--policy", o.policy, "fp32, bf16 or fp8", Index{0}, many);
  f(g, "--batch", o.batch, "rows of a step", Index{1}, many);
  f(g, "--micro-batch", o.micro_batch, "rows of a pass", Index{1}, many);
  f(g, "--seq", o.sequence, "tokens of a row; 0: 4096, or max_position_embeddings", Index{0}, many);
  f(g, "--recompute", o.recompute, "keep each block's input alone", Index{0}, many);
  f(g, "--keep-dispatched", o.keep_dispatched, "keep the rows that went to the experts, too",
    Index{0}, many);
  f(g, "--threads", o.threads, "of this library in one process", Index{1}, Index{1024});
  g = "Cost";
  f(g, "--tokens", o.tokens, "of the whole run", 1.0, 1e18);
  f(g, "--tflops", o.tflops, "that one GPU sustains", 1e-6, 1e6);
  f(g, "--dollars", o.dollars, "for one hour of a GPU", 0.0, 1e6);
}

/// The published models by name.
inline const std::vector<std::pair<std::string, dsv3::ModelConfig>>& presets() {
  static const std::vector<std::pair<std::string, dsv3::ModelConfig>> all = {
      {"deepseek_v3", dsv3::presets::deepseek_v3},
      {"deepseek_v2", dsv3::presets::deepseek_v2},
      {"deepseek_v2_lite", dsv3::presets::deepseek_v2_lite},
      {"moonlight", dsv3::presets::moonlight},
      {"kimi_k2", dsv3::presets::kimi_k2}};
  return all;
}

inline std::string preset_names() {
  std::vector<std::string> names;
  for (const auto& [name, config] : presets()) names.push_back(name);
  return joined(names);
}

/// A preset, or what a config.json, or the one in a folder, says.
/// Errors   OptionError where there is neither; what load_config throws.
inline dsv3::ModelConfig config_of(const std::string& model) {
  for (const auto& [name, config] : presets())
    if (name == model) return config;
  const std::filesystem::path path = model;
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return dsv3::load_config(path / "config.json");
  if (!std::filesystem::exists(path, error))
    throw OptionError("model (" + model + ") must be a config.json, a folder with one, or one of " +
                      preset_names());
  return dsv3::load_config(path);
}

namespace detail {

/// Throws for models whose plan would overflow or take minutes. 2^58 bytes leave room for sums.
inline void check_countable(const dsv3::ModelConfig& c, const dsv3::plan::Layout& layout) {
  const Index experts = c.moe_layers() * c.n_routed_experts;
  if (experts > Index{1} << 22)
    throw OptionError("experts of all layers (" + std::to_string(experts) +
                      ") must be at most 4194304");
  const auto d = [](Index n) { return static_cast<double>(n); };
  const double row = d(c.vocab_size) + 4 * d(c.hidden_size) + d(c.q_lora_rank + c.kv_lora_rank) +
                     2 * d(c.num_attention_heads) * d(c.qk_head_dim() + c.v_head_dim) +
                     3 * d(c.intermediate_size) + d(c.n_routed_experts) +
                     4 * d(c.num_experts_per_tok + c.n_shared_experts) *
                         d(c.moe_intermediate_size + c.hidden_size);
  const double bytes =
      16 * row * d(layout.tokens_of_pass()) * d(c.num_hidden_layers + c.num_nextn_predict_layers);
  if (bytes > 0x1p58)
    throw OptionError("bytes of a pass (" + text_of(bytes) + ") must be at most 2.88e+17");
}

}  // namespace detail

/// The layout that the options ask for, DeepSeek-V3's as far as they leave it open and the model
/// allows it.
/// Errors   what validate(Layout) throws.
inline dsv3::plan::Layout layout_of(const PlanOptions& o, const dsv3::ModelConfig& c) {
  using dsv3::plan::PipelineSchedule;
  dsv3::plan::Layout l;
  l.gpus_per_node = o.gpus_per_node;
  l.batch = o.batch;
  l.micro_batch = o.micro_batch;
  l.sequence = o.sequence ? o.sequence : std::min(l.sequence, c.max_position_embeddings);
  if (o.pp)
    l.pp = o.pp;
  else if (o.gpus && o.dp)
    l.pp = std::max(Index{1}, o.gpus / o.dp);
  else
    while (l.pp > c.num_hidden_layers || (o.gpus && o.gpus % l.pp)) l.pp /= 2;
  l.dp = o.dp ? o.dp : std::max(Index{1}, (o.gpus ? o.gpus : l.gpus) / l.pp);
  l.gpus = o.gpus || !o.dp ? (o.gpus ? o.gpus : l.gpus) : l.pp * l.dp;
  l.ep = o.ep ? o.ep : c.has_moe() ? std::gcd(l.ep, std::gcd(l.dp, c.n_routed_experts)) : 1;
  if (o.schedule == "1f1b") l.schedule = PipelineSchedule::one_f_one_b;
  if (o.schedule == "zb1p") l.schedule = PipelineSchedule::zb1p;
  if (o.schedule == "auto" && !can_dual_pipe(l)) l.schedule = PipelineSchedule::one_f_one_b;
  dsv3::plan::validate(l, c);
  detail::check_countable(c, l);
  return l;
}

/// Checks everything that can be known without a model.
inline void check(const PlanOptions& o) {
  for_each_plan_option(o, [](auto, const char* name, const auto& value, auto, auto least,
                             auto most) { detail::check_range(name, value, least, most); });
  detail::check_choice("--policy", o.policy, {"fp32", "bf16", "fp8"});
  detail::check_choice("--schedule", o.schedule, {"auto", "1f1b", "zb1p", "dualpipe"});
  if (!o.out.empty()) detail::check_output(o.out);
}

inline void add_options(CLI::App& app, PlanOptions& o) {
  app.get_formatter()->column_width(34);
  app.add_option("model", o.model, "a config.json, a folder with one, or " + preset_names())
      ->capture_default_str();
  for_each_plan_option(
      o, [&](const char* group, const char* name, auto& value, const char* help, auto, auto) {
        if constexpr (std::is_same_v<decltype(value), bool&>)
          app.add_flag(name, value, help)->group(group);
        else
          app.add_option(name, value, help)->capture_default_str()->group(group);
      });
  app.add_option("--out", o.out, "folder for plan.html and plan.json; none: they are not written");
}

}  // namespace example
