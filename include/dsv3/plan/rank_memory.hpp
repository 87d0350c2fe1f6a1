// Plan: what one GPU of a layout holds in memory.
#pragma once

#include <dsv3/core/moment.hpp>
#include <dsv3/plan/activations.hpp>
#include <dsv3/plan/layout.hpp>
#include <dsv3/plan/parameters.hpp>

namespace dsv3::plan {

/// Parameters that one GPU holds of some blocks, by how they are stored and shared.
struct RankParameters {
  Index plain = 0;    ///< norms, gates, embedding, head, eh_proj: never FP8
  Index coded = 0;    ///< projections of attention, dense MLPs and shared experts
  Index experts = 0;  ///< projections of this GPU's routed experts

  constexpr RankParameters& operator+=(const RankParameters& o) {
    plain += o.plain;
    coded += o.coded;
    experts += o.experts;
    return *this;
  }
  constexpr Index total() const { return plain + coded + experts; }
};

/// Parameters of block `layer` on one GPU, where its routed experts lie on `ep`.
constexpr RankParameters block_rank_parameters(const ModelConfig& c, Index layer, Index ep) {
  RankParameters p;
  p.plain = block_plain_parameters(c, layer);
  p.coded = block_parameters(c, layer, 0) - p.plain;
  if (c.is_moe(layer)) p.experts = c.n_routed_experts / ep * expert_parameters(c);
  return p;
}

/// Parameters of pipeline stage `stage` on one GPU. The head is on the last stage, with MTP's
/// module and, for that, a copy of the embedding where the first stage is not on the same GPU.
constexpr RankParameters stage_parameters(const ModelConfig& c, const Layout& o, Index stage) {
  RankParameters p;
  for (Index l = o.first_block(c, stage); l < o.first_block(c, stage + 1); ++l)
    p += block_rank_parameters(c, l, o.ep);
  if (stage == 0) p.plain += embedding_parameters(c);
  if (stage < o.pp - 1) return p;
  p.plain += embedding_parameters(c) + c.hidden_size;
  for (Index k = 0; k < c.num_nextn_predict_layers; ++k) {
    p += block_rank_parameters(c, c.num_hidden_layers + k, o.ep);
    p.plain += mtp_parameters(c) - block_parameters(c, c.num_hidden_layers);
  }
  const bool has_embedding = o.pp == 1 || o.schedule == PipelineSchedule::dual_pipe;
  if (c.num_nextn_predict_layers > 0 && !has_embedding) p.plain += embedding_parameters(c);
  return p;
}

/// Bytes that one GPU holds.
struct RankMemory {
  double copies = 0;       ///< weights as products read them
  double gradients = 0;    ///< of all of them
  double masters = 0;      ///< its share
  double moments = 0;      ///< its share of AdamW's two
  double activations = 0;  ///< of all micro-batches in flight, without working memory

  constexpr double total() const { return copies + gradients + masters + moments + activations; }
};

namespace detail {

// Bytes of one micro-batch's activations in one stage.
template <class P>
constexpr double stage_activation_bytes(const ModelConfig& c, const Layout& o, Index stage,
                                        Keep keep, ExpertInputs inputs) {
  const auto tokens = static_cast<double>(o.tokens_of_pass());
  double bytes = 0;
  for (Index l = o.first_block(c, stage); l < o.first_block(c, stage + 1); ++l)
    bytes += saved_bytes_per_token<P>(c, l, keep, inputs);
  if (stage == o.pp - 1)  // MTP's blocks, and the two hidden states that each begins with
    bytes += static_cast<double>(c.num_nextn_predict_layers) *
             (saved_bytes_per_token<P>(c, c.num_hidden_layers, keep, inputs) +
              static_cast<double>(2 * c.hidden_size) * sizeof(typename P::activation));
  return bytes * tokens;
}

// Bytes of one parameter's copy for products: plain, and in FP8 with a scale for each block.
template <class P>
constexpr double coded_copy_bytes() {
  if constexpr (QuantizedPolicy<P>)
    return static_cast<double>(sizeof(typename P::code)) +
           (P::block > 0 ? 4.0 / (static_cast<double>(P::block) * P::block) : 0);
  return sizeof(typename P::weight);
}

}  // namespace detail

/// Memory of the GPUs of pipeline rank `rank` with ZeRO-1: masters and moments are cut over the
/// data-parallel GPUs that hold the same parameters (dp, of routed experts dp / ep), copies and
/// gradients are whole. DualPipe's rank holds the stages `rank` and pp - 1 - rank.
/// Units    bytes, without what a pass needs for its own work, without fragmentation.
/// Source   spec 10.1, 10.3, 10.4 and 7.7.
template <class P>
constexpr RankMemory rank_memory(const ModelConfig& c, const Layout& o, Index rank, Keep keep,
                                 ExpertInputs inputs = ExpertInputs::gathered) {
  RankParameters p = stage_parameters(c, o, rank);
  const auto held = [&](Index stage) {
    return static_cast<double>(micro_batches_in_flight(stage, o.pp, o.micro_batches())) *
           detail::stage_activation_bytes<P>(c, o, stage, keep, inputs);
  };
  RankMemory m;
  m.activations = held(rank);
  if (o.schedule == PipelineSchedule::dual_pipe) {
    p += stage_parameters(c, o, o.pp - 1 - rank);
    m.activations += held(o.pp - 1 - rank);
  }
  const auto shared = static_cast<double>(p.plain + p.coded);
  const auto experts = static_cast<double>(p.experts);
  const double share = shared / static_cast<double>(o.dp) +
                       experts * static_cast<double>(o.ep) / static_cast<double>(o.dp);
  m.copies = static_cast<double>(p.plain) * sizeof(typename P::weight) +
             static_cast<double>(p.coded + p.experts) * detail::coded_copy_bytes<P>();
  m.gradients = (shared + experts) * sizeof(typename P::master);
  m.masters = share * sizeof(typename P::master);
  m.moments = share * (sizeof(typename P::moment) + sizeof(second_moment_t<P>));
  return m;
}

/// The rank that holds most.
template <class P>
constexpr Index fullest_rank(const ModelConfig& c, const Layout& o, Keep keep,
                             ExpertInputs inputs = ExpertInputs::gathered) {
  Index fullest = 0;
  double most = 0;
  for (Index r = 0; r < o.pp; ++r) {
    const double total = rank_memory<P>(c, o, r, keep, inputs).total();
    if (total > most) most = total, fullest = r;
  }
  return fullest;
}

}  // namespace dsv3::plan
