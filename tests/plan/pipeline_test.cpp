#include <dsv3/plan/pipeline.hpp>

#include <doctest/doctest.h>

#include <initializer_list>

using namespace dsv3;
using plan::PipelineSchedule;

namespace {

// Spec 10.3's example: 16 stages; a backward takes twice a forward, half of it for the weights.
constexpr plan::PipelineCost cost(PipelineSchedule s) { return plan::pipeline_cost(s, 16); }
static_assert(cost(PipelineSchedule::one_f_one_b).bubble == 45);
static_assert(cost(PipelineSchedule::zb1p).bubble == 15);
static_assert(cost(PipelineSchedule::dual_pipe).bubble == 14);
static_assert(cost(PipelineSchedule::dual_pipe_v).bubble == 14);
// Its table: copies of parameters, activations, devices.
static_assert(cost(PipelineSchedule::one_f_one_b).parameter_copies == 1);
static_assert(cost(PipelineSchedule::zb1p).parameter_copies == 1);
static_assert(cost(PipelineSchedule::dual_pipe).parameter_copies == 2);
static_assert(cost(PipelineSchedule::dual_pipe_v).parameter_copies == 2);
static_assert(cost(PipelineSchedule::one_f_one_b).activations == 16);
static_assert(cost(PipelineSchedule::zb1p).activations == 16);
static_assert(cost(PipelineSchedule::dual_pipe).activations == 17);
static_assert(cost(PipelineSchedule::dual_pipe_v).activations == 17);
static_assert(cost(PipelineSchedule::one_f_one_b).devices == 16);
static_assert(cost(PipelineSchedule::dual_pipe).devices == 16);
static_assert(cost(PipelineSchedule::dual_pipe_v).devices == 8);
// One device never waits for another.
static_assert(plan::pipeline_cost(PipelineSchedule::one_f_one_b, 1).bubble == 0);
// 45 idle and 120 micro-batches of 3, all in small integers: 405 in all.
static_assert(plan::bubble_share(PipelineSchedule::one_f_one_b, 16, 120) == 45.0 / 405);
static_assert(plan::bubble_share(PipelineSchedule::dual_pipe, 16, 120) == 14.0 / 374);
static_assert(plan::bubble_share(PipelineSchedule::one_f_one_b, 4, 8, {2, 3, 1, 4}) ==
              15.0 / (15 + 40));

// What a device of DualPipe holds of its two stages while it runs its phases.
struct InFlight {
  Index near = 0, far = 0, most_near = 0, most_far = 0, most = 0;

  void forward(Index& stage, Index& largest) {
    ++stage;
    if (stage > largest) largest = stage;
    if (near + far > most) most = near + far;
  }
  void forward_near() { forward(near, most_near); }
  void forward_far() { forward(far, most_far); }

  explicit InFlight(const plan::DualPipePhases& p) {
    for (Index i = 0; i < p.count[0]; ++i) forward_near();
    for (Index i = 0; i < p.count[1]; ++i) forward_near(), forward_far();
    for (Index i = 0; i < p.count[2]; ++i) --far, forward_far();
    // An overlapped pair holds both until its backward is done.
    for (Index i = 0; i < p.count[3]; ++i) forward_near(), --far, forward_far(), --near;
    for (Index i = 0; i < p.count[4]; ++i) --far, forward_far(), --near;
    for (Index i = 0; i < p.count[5]; ++i) --far, --near;
    for (Index i = 0; i < p.count[6]; ++i) --near;
  }
};

}  // namespace

TEST_CASE("DualPipe's phases run every micro-batch once and hold PP + 1 at most") {
  for (const Index stages : {2, 4, 16})
    for (const Index micro_batches : {2 * stages, 2 * stages + 2, 120 * stages})
      for (Index rank = 0; rank < stages; ++rank) {
        CAPTURE(stages);
        CAPTURE(micro_batches);
        CAPTURE(rank);
        const plan::DualPipePhases p(rank, stages, micro_batches);
        for (const Index n : p.count) CHECK(n >= 0);
        CHECK(p.forward_near() == micro_batches / 2);
        CHECK(p.forward_far() == micro_batches / 2);
        const InFlight held(p);
        CHECK(held.near == 0);
        CHECK(held.far == 0);
        // The device's own stages, the nearer end's first.
        const Index near = rank < stages / 2 ? rank : stages - 1 - rank, far = stages - 1 - near;
        CHECK(held.most_near == plan::micro_batches_in_flight(near, stages, micro_batches));
        CHECK(held.most_far == plan::micro_batches_in_flight(far, stages, micro_batches));
        CHECK(held.most == plan::pipeline_cost(PipelineSchedule::dual_pipe, stages).activations);
      }
}

TEST_CASE("a stage holds no more micro-batches than there are") {
  CHECK(plan::micro_batches_in_flight(0, 16, 3) == 3);
  CHECK(plan::micro_batches_in_flight(15, 16, 3) == 1);
}
