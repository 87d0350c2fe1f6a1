// One training run of one variant.
#pragma once

#include <dsv3/model.hpp>
#include <functional>

#include "options.hpp"
#include "probe.hpp"
#include "variant.hpp"

namespace example {

/// Trains a new model with policy P; where `probed`, looks into its products on the first step,
/// every o.probe_every steps, and on the last one.
template <class P>
Run train(const StudyOptions& o, const dsv3::TextData& data, Index seed, bool probed,
          const std::function<void(Index step, double loss)>& progress) {
  Probe backend(static_cast<int>(o.threads));
  dsv3::Model<P, Probe> model(backend, model_config(o),
                              {.seed = static_cast<std::uint64_t>(seed), .init_std = o.init_std});
  dsv3::TrainOptions options;
  options.schedule = schedule(o);
  options.balance_alpha = o.balance_alpha;
  options.weight_decay = o.weight_decay;
  dsv3::Trainer trainer(model, options);
  std::vector<std::int32_t> storage(static_cast<std::size_t>(o.batch * (o.sequence + 1)));
  const View<std::int32_t, 2> rows(storage.data(), {o.batch, o.sequence + 1});
  Run run;
  for (Index step = 1; step <= o.steps; ++step) {
    data.training_batch((step - 1) * o.batch, rows);
    bool looks = false;
    if constexpr (dsv3::QuantizedPolicy<P>) {
      looks = probed && o.probe_every > 0 &&
              (step == 1 || step == o.steps || step % o.probe_every == 0);
      if (looks) backend.start<P>(model.masters(), model.writable_operands(), trainer.gradients());
    }
    const dsv3::StepReport report = trainer.step(rows);
    if (looks) {
      run.measurements.push_back(backend.finish());
      run.measurements.back().step = step;
    }
    run.loss.push_back(report.loss);
    run.skipped += report.skipped;
    if (!looks) run.seconds += report.seconds, run.timed_tokens += report.tokens;
    progress(step, report.loss);
  }
  return run;
}

/// An entry of a list of variants.
template <class P>
Variant variant(std::string what) {
  return {P::name, std::move(what), dsv3::QuantizedPolicy<P>, &train<P>};
}

}  // namespace example
