// Plan: how a training run is cut over GPUs, and the rules that a cut must keep.
#pragma once

#include <dsv3/config.hpp>
#include <dsv3/plan/pipeline.hpp>
#include <initializer_list>

namespace dsv3::plan {

/// A training run over many GPUs: pp stages, each on dp GPUs that share its attention, dense and
/// shared parts, ep of which hold one copy of its routed experts between them.
///
/// The defaults are DeepSeek-V3's pre-training.
/// Source   DeepSeek-V3, sections 3.1, 3.2 and 4.2; spec 10.1.
struct Layout {
  Index gpus = 2048;
  Index pp = 16, dp = 128, ep = 64;
  Index gpus_per_node = 8;
  PipelineSchedule schedule = PipelineSchedule::dual_pipe;
  Index batch = 15360;    ///< rows of a step
  Index micro_batch = 1;  ///< rows of one pass on one GPU
  Index sequence = 4096;  ///< tokens of a row

  /// Nodes that hold one copy of the experts.
  constexpr Index expert_nodes() const { return ep > gpus_per_node ? ep / gpus_per_node : 1; }
  /// Micro-batches that go through one pipeline in a step.
  constexpr Index micro_batches() const { return batch / (dp * micro_batch); }
  constexpr Index tokens_of_step() const { return batch * sequence; }
  constexpr Index tokens_of_pass() const { return micro_batch * sequence; }

  /// Blocks [first_block(s), first_block(s + 1)) are on stage s: as even as they can be. MTP's are
  /// on the last stage with the head, the embedding is on the first. (DeepSeek-V3's own placement
  /// is not published.)
  constexpr Index first_block(const ModelConfig& c, Index stage) const {
    return c.num_hidden_layers * stage / pp;
  }
};

namespace detail {

// Throws "Layout: name (a) must relation (b)" unless the rule holds.
constexpr void require(bool holds, const char* name, Index a, const char* must, Index b) {
  if (holds) return;
  throw std::invalid_argument(std::string("Layout: ") + name + " (" + std::to_string(a) + ") " +
                              must + " (" + std::to_string(b) + ")");
}

}  // namespace detail

/// True where DualPipe can run: an even number of stages, and of micro-batches at least two for
/// each stage.
/// Source   DualPipe's repository; spec 10.3.
constexpr bool can_dual_pipe(const Layout& o) {
  return o.pp % 2 == 0 && o.micro_batches() % 2 == 0 && o.micro_batches() >= 2 * o.pp;
}

/// Throws unless the model can be trained with this layout. In a constant expression a broken rule
/// does not compile.
/// Errors   std::invalid_argument naming the first broken rule and both values; what
///          validate(ModelConfig) throws.
constexpr void validate(const Layout& o, const ModelConfig& c) {
  using detail::require;
  dsv3::validate(c);
  constexpr Index most = Index{1} << 24;
  const auto in_range = [](const char* name, Index value) {
    require(value >= 1, name, value, "must be at least", 1);
    require(value <= most, name, value, "must be at most", most);
  };
  in_range("gpus", o.gpus);
  in_range("pp", o.pp);
  in_range("dp", o.dp);
  in_range("ep", o.ep);
  in_range("gpus_per_node", o.gpus_per_node);
  in_range("batch", o.batch);
  in_range("micro_batch", o.micro_batch);
  in_range("sequence", o.sequence);
  require(o.gpus == o.pp * o.dp, "gpus", o.gpus, "must equal pp * dp", o.pp * o.dp);
  require(o.pp <= c.num_hidden_layers, "pp", o.pp, "must be at most num_hidden_layers",
          c.num_hidden_layers);
  require(o.dp % o.ep == 0, "ep", o.ep, "must divide dp", o.dp);
  if (c.has_moe())
    require(c.n_routed_experts % o.ep == 0, "ep", o.ep, "must divide n_routed_experts",
            c.n_routed_experts);
  else
    require(o.ep == 1, "ep", o.ep, "must be 1, because there are no experts: n_routed_experts",
            c.n_routed_experts);
  require(o.ep <= o.gpus_per_node || o.ep % o.gpus_per_node == 0, "ep", o.ep,
          "above gpus_per_node must be a multiple of it", o.gpus_per_node);
  for (const Index parts : {o.ep, o.expert_nodes()})  // else a GPU or a node holds parts of groups
    require(parts % c.groups() == 0 || c.groups() % parts == 0,
            parts == o.ep ? "ep" : "nodes of ep", parts,
            "must divide n_group or be a multiple of it", c.groups());
  require(o.sequence <= c.max_position_embeddings, "sequence", o.sequence,
          "must be at most max_position_embeddings", c.max_position_embeddings);
  require(o.micro_batch * o.sequence <= most, "micro_batch * sequence", o.micro_batch * o.sequence,
          "must be at most", most);
  require(o.batch % (o.dp * o.micro_batch) == 0, "batch", o.batch,
          "must be a multiple of dp * micro_batch", o.dp * o.micro_batch);
  if (!is_bidirectional(o.schedule)) return;
  require(o.schedule == PipelineSchedule::dual_pipe, "schedule dual_pipe_v with pp", o.pp,
          "is not planned in memory: use dual_pipe with pp", o.pp);
  require(o.pp % 2 == 0, "pp", o.pp, "must be even for dual_pipe: a multiple of", 2);
  require(o.micro_batches() % 2 == 0, "micro-batches of a step", o.micro_batches(),
          "must be even for dual_pipe: a multiple of", 2);
  require(can_dual_pipe(o), "micro-batches of a step", o.micro_batches(),
          "must be at least 2 * pp for dual_pipe", 2 * o.pp);
}

}  // namespace dsv3::plan
