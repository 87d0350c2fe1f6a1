// Plan: pipeline schedules: idle time, and what each holds in memory.
#pragma once

#include <dsv3/core/view.hpp>

namespace dsv3::plan {

/// One forward, one backward; zero bubble 1 with a backward in two halves; two pipelines in
/// opposite directions; the same folded in a V onto half as many devices.
enum class PipelineSchedule { one_f_one_b, zb1p, dual_pipe, dual_pipe_v };

/// True where micro-batches enter at both ends.
constexpr bool is_bidirectional(PipelineSchedule s) {
  return s == PipelineSchedule::dual_pipe || s == PipelineSchedule::dual_pipe_v;
}

/// Times of one micro-batch in one stage, in any one unit.
struct ChunkTimes {
  double forward = 1;
  double backward = 2;          ///< all of it
  double backward_weights = 1;  ///< its half for the weights
  double overlapped = 3;        ///< a forward and a backward that hide each other's transfers
};

/// What a schedule of PP stages costs. Counts of one device's stages and micro-batches.
struct PipelineCost {
  double bubble;           ///< idle time of a device in a step, in units of ChunkTimes
  Index parameter_copies;  ///< stages that a device holds
  Index activations;       ///< micro-batches whose activations a device holds, at most
  Index devices;
};

/// Source   DeepSeek-V3, table 2; DualPipe's repository for the V; spec 10.3.
constexpr PipelineCost pipeline_cost(PipelineSchedule schedule, Index stages,
                                     const ChunkTimes& t = {}) {
  const auto n = static_cast<double>(stages);
  switch (schedule) {
    case PipelineSchedule::one_f_one_b:
      return {(n - 1) * (t.forward + t.backward), 1, stages, stages};
    case PipelineSchedule::zb1p:
      return {(n - 1) * (t.forward + t.backward - 2 * t.backward_weights), 1, stages, stages};
    case PipelineSchedule::dual_pipe:
    case PipelineSchedule::dual_pipe_v:
      break;
  }
  return {(n / 2 - 1) * (t.overlapped + t.backward - 3 * t.backward_weights), 2, stages + 1,
          schedule == PipelineSchedule::dual_pipe ? stages : stages / 2};
}

/// The share of a step that a device idles, with so many micro-batches in the step. Where stages
/// are visited from both ends, forward and backward overlap.
constexpr double bubble_share(PipelineSchedule schedule, Index stages, Index micro_batches,
                              const ChunkTimes& t = {}) {
  const double bubble = pipeline_cost(schedule, stages, t).bubble;
  const double each = is_bidirectional(schedule) ? t.overlapped : t.forward + t.backward;
  return bubble / (bubble + each * static_cast<double>(micro_batches));
}

/// Micro-batches whose activations the device of stage `stage` holds for that stage, at most: those
/// that have passed it forward and not yet come back. There are `micro_batches` in all.
constexpr Index micro_batches_in_flight(Index stage, Index stages, Index micro_batches) {
  return stages - stage < micro_batches ? stages - stage : micro_batches;
}

/// How often the device `rank` of DualPipe runs each of its eight phases, with `micro_batches` in
/// all, half of them from either end. F0 and B0 are of the micro-batches that enter at the device's
/// nearer end, F1 and B1 of the others; W is a backward's half for the weights.
///
///     0: F0     1: F0 F1     2: B1 (inputs) W1 F1     3: F0 & B1, F1 & B0
///     4: B1, F1 & B0         5: B1 B0                 6: W, B0 (inputs)      7: W
///
/// Source   DualPipe's repository; spec 10.3.
struct DualPipePhases {
  Index count[8];

  constexpr DualPipePhases(Index rank, Index stages, Index micro_batches) : count{} {
    const Index r = rank < stages - 1 - rank ? rank : stages - 1 - rank;
    const Index rest = stages / 2 - r - 1, half = micro_batches / 2;
    const Index phases[] = {2 * rest, r + 1, rest, half - stages + r + 1, rest, r + 1, rest, r + 1};
    for (int i = 0; i < 8; ++i) count[i] = phases[i];
  }
  /// Forward passes of either kind.
  constexpr Index forward_near() const { return count[0] + count[1] + count[3]; }
  constexpr Index forward_far() const { return count[1] + count[2] + count[3] + count[4]; }
};

}  // namespace dsv3::plan
