// What the planner says of a model and a run, table by table.
#pragma once

#include <dsv3/plan.hpp>

#include "options.hpp"
#include "sheet.hpp"

namespace example {

/// What is planned: options as given, the model and the layout that they mean.
struct Planned {
  PlanOptions options;
  dsv3::ModelConfig config;
  dsv3::plan::Layout layout;

  dsv3::Keep keep() const { return options.recompute ? dsv3::Keep::inputs : dsv3::Keep::all; }
  dsv3::plan::ExpertInputs expert_inputs() const {
    return options.keep_dispatched ? dsv3::plan::ExpertInputs::kept
                                   : dsv3::plan::ExpertInputs::gathered;
  }
  double flops_per_token() const {
    return dsv3::plan::training_flops_per_token(config, layout.sequence);
  }
  double hours(double tokens) const {
    return dsv3::plan::gpu_hours(tokens, flops_per_token(), options.tflops * 1e12);
  }
  template <class P>
  dsv3::plan::RankMemory rank(Index rank) const {
    return dsv3::plan::rank_memory<P>(config, layout, rank, keep(), expert_inputs());
  }
};

namespace detail {

inline void parameter_table(Sheet& s, const dsv3::ModelConfig& c) {
  using namespace dsv3::plan;
  s.table("parameters", "Parameters");
  s.count("total", "total, MTP included", total_parameters(c));
  s.count("main", "main model", main_parameters(c));
  s.count("activated", "activated per token: without embedding, with head",
          activated_parameters(c));
  s.count("activated_with_embedding", "activated per token, both counted",
          activated_parameters(c) + embedding_parameters(c));
  s.count("without_embedding_and_head", "main model without embedding and head",
          main_parameters(c) - 2 * embedding_parameters(c));
  s.count("attention", "attention of a layer", attention_parameters(c));
  if (c.has_moe()) s.count("expert", "one expert", expert_parameters(c));
  if (c.num_nextn_predict_layers) s.count("mtp", "one MTP module", mtp_parameters(c));
}

inline void flops_table(Sheet& s, const Planned& p) {
  using namespace dsv3::plan;
  const double length = static_cast<double>(p.layout.sequence);
  const TokenFlops f = forward_flops(p.config, mean_keys(p.layout.sequence));
  s.table("flops", "FLOPs of a token in causal rows of " + grouped(p.layout.sequence));
  s.gflop("projections", "forward: projections of attention", f.projections);
  s.gflop("scores", "forward: queries by keys, probabilities by values", f.scores);
  s.gflop("mlp", "forward: dense MLPs", f.mlp);
  s.gflop("experts", "forward: experts", f.experts);
  s.gflop("gates_head_norms", "forward: gates, head, norms", f.gates + f.head + f.norms);
  s.gflop("forward", "forward", f.total());
  s.gflop("backward", "backward", 2 * f.total());
  s.gflop("training", "training", p.flops_per_token());
  if (p.config.num_nextn_predict_layers)
    s.gflop("mtp_training", "training of one MTP module, on top",
            mtp_training_flops_per_token(p.config, p.layout.sequence));
  s.gflop("decode", "decoding behind " + grouped(p.layout.sequence) + " tokens",
          decode_flops(p.config, length).total());
}

inline void cache_table(Sheet& s, const dsv3::ModelConfig& c) {
  using namespace dsv3::plan;
  const auto row = [&](const char* key, const std::string& name, Index bytes) {
    s.add(key, name, bytes, grouped(bytes) + " B");
  };
  s.table("cache", "Cache of a token");
  row("latent_bf16", "latent, BF16", cache_bytes_per_token<dsv3::bf16>(c));
  row("latent_fp8", "latent, FP8", cache_bytes_per_token<dsv3::e4m3>(c));
  row("mqa_bf16", "for comparison, MQA, BF16", cache_bytes_per_token(multi_query(c)));
  row("gqa_8_bf16", "for comparison, GQA of 8 groups, BF16",
      cache_bytes_per_token(grouped_query(c, 8)));
  row("mha_bf16", "for comparison, MHA, BF16", cache_bytes_per_token(multi_head(c)));
  s.add("equivalent_groups", "groups of GQA with a cache of this size", equivalent_groups(c),
        number(equivalent_groups(c), 4));
}

inline void layout_table(Sheet& s, const Planned& p) {
  using namespace dsv3::plan;
  const Layout& l = p.layout;
  s.table("layout", "Layout");
  s.count("gpus", "GPUs", l.gpus);
  s.count("pp", "pipeline stages (pp)", l.pp);
  s.count("dp", "GPUs of a stage (dp)", l.dp);
  s.count("ep", "that share one copy of the experts (ep)", l.ep);
  if (p.config.has_moe())
    s.count("experts_per_gpu", "experts of a layer on a GPU", p.config.n_routed_experts / l.ep);
  s.count("micro_batches", "micro-batches of a step in a pipeline", l.micro_batches());
  const auto bubble = [&](const char* key, const std::string& name, PipelineSchedule schedule) {
    const std::string chosen = l.schedule == schedule ? ", chosen" : "";
    s.share(key, "idle in " + name + chosen, bubble_share(schedule, l.pp, l.micro_batches()));
  };
  bubble("bubble_1f1b", "1F1B", PipelineSchedule::one_f_one_b);
  bubble("bubble_zb1p", "ZB1P", PipelineSchedule::zb1p);
  if (can_dual_pipe(l)) bubble("bubble_dualpipe", "DualPipe", PipelineSchedule::dual_pipe);
}

inline void memory_table(Sheet& s, const dsv3::plan::RankMemory& m, Index rank,
                         const std::string& how) {
  s.table("gpu_memory",
          "Memory of a GPU of rank " + std::to_string(rank) + ", the fullest, in " + how);
  s.bytes("copies", "weights for products", m.copies);
  s.bytes("gradients", "gradients", m.gradients);
  s.bytes("masters", "masters, a share", m.masters);
  s.bytes("moments", "moments, a share", m.moments);
  s.bytes("activations", "activations in flight", m.activations);
  s.bytes("total", "total, without working memory", m.total());
}

inline void transfer_table(Sheet& s, const Planned& p) {
  using namespace dsv3::plan;
  const dsv3::ModelConfig& c = p.config;
  const Layout& l = p.layout;
  const Wire wire = p.options.policy == "fp8" ? Wire::fp8 : Wire::bf16;
  dsv3::ModelConfig unlimited = c;
  if (c.groups() > 1) unlimited.topk_group = c.n_group;
  const Transfer t = expected_transfer(c, l, wire), free = expected_transfer(unlimited, l, wire);
  const auto bytes = [&](const char* key, const std::string& name, double n) {
    s.add(key, name, n, grouped(static_cast<Index>(n + 0.5)) + " B");
  };
  const auto time = [&](const char* key, const std::string& name, const Transfer& of) {
    s.add(key, name, of.seconds(), decimal(of.seconds() * 1e6, 3) + " us");
  };
  s.table("transfer", "To the experts and back: a token and layer, forward and backward");
  bytes("dispatch", "dispatched row", double(row_bytes(c.hidden_size, wire)));
  bytes("combine", "combined row", double(row_bytes(c.hidden_size, Wire::bf16)));
  s.count("most_nodes", "nodes it may go to", most_target_nodes(c, l.expert_nodes()));
  s.add("nodes", "nodes it goes to, on average", expected_targets(c, l.expert_nodes()),
        decimal(expected_targets(c, l.expert_nodes()), 2));
  bytes("between_nodes", "between nodes", t.between);
  bytes("inside_nodes", "inside nodes", t.inside);
  time("seconds", "at 50 GB/s between and 160 GB/s inside", t);
  if (c.groups() == 1) return;
  bytes("between_nodes_without_limit", "between nodes without the node limit", free.between);
  time("seconds_without_limit", "time without the node limit", free);
}

inline void cost_table(Sheet& s, const Planned& p) {
  using namespace dsv3::plan;
  const PlanOptions& o = p.options;
  const double gpus = static_cast<double>(p.layout.gpus), hours = p.hours(o.tokens);
  const auto row = [&](const char* key, const std::string& name, double n, const std::string& unit,
                       int digits) { s.add(key, name, n, decimal(n, digits) + unit); };
  s.table("cost", "Cost at " + number(o.tflops) + " TFLOPS a GPU");
  s.count("tokens_per_step", "tokens of a step", p.layout.tokens_of_step());
  const double step = p.hours(static_cast<double>(p.layout.tokens_of_step())) * 3600 / gpus;
  row("seconds_per_step", "time of a step", step, " s", 2);
  s.rounded("hours_per_trillion", "GPU-hours for 10^12 tokens", p.hours(1e12));
  row("days_per_trillion", "days for 10^12 tokens", days(p.hours(1e12), gpus), "", 2);
  s.rounded("hours", "GPU-hours for " + number(o.tokens, 4) + " tokens", hours);
  row("days", "days", days(hours, gpus), "", 1);
  s.rounded("dollars", "dollars, at " + number(o.dollars) + " an hour", hours * o.dollars);
}

template <class P>
void process_table(Sheet& s, const Planned& p) {
  const dsv3::plan::Layout& l = p.layout;
  const auto m = dsv3::plan::training_memory<P>(p.config, l.micro_batch, l.sequence, p.keep(),
                                                static_cast<int>(p.options.threads));
  s.table("process", "This library in one process, passes of " + grouped(l.micro_batch) + " x " +
                         grouped(l.sequence) + " tokens, " + P::name);
  const auto bytes = [&](const char* key, const char* name, Index n) {
    s.bytes(key, name, static_cast<double>(n));
  };
  bytes("weights", "weights", m.weights);
  bytes("gradients", "gradients", m.gradients);
  bytes("moments", "moments and counters", m.moments + m.counters);
  bytes("pass", "activations and working memory", m.pass);
  bytes("total", "total", m.total());
}

}  // namespace detail

/// Every table.
template <class P>
Sheet planned_sheet(const Planned& p) {
  const dsv3::plan::Layout& l = p.layout;
  const Index rank = dsv3::plan::fullest_rank<P>(p.config, l, p.keep(), p.expert_inputs());
  Sheet s;
  detail::parameter_table(s, p.config);
  detail::flops_table(s, p);
  detail::cache_table(s, p.config);
  detail::layout_table(s, p);
  detail::memory_table(s, p.rank<P>(rank), rank, P::name);
  if (p.config.has_moe()) detail::transfer_table(s, p);
  detail::cost_table(s, p);
  detail::process_table<P>(s, p);
  return s;
}

}  // namespace example
