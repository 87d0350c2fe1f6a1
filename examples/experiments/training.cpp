// The training run that the experiments share: the only file of theirs that compiles a model.
#include <algorithm>

#include "trained.hpp"

namespace experiment {

namespace {

using Model = dsv3::Model<dsv3::Bf16, dsv3::Cpu>;

// MaxVio of the loads of all domains together.
double max_violation(const std::vector<std::vector<Index>>& load, Index experts) {
  if (load.empty() || load.front().empty()) return 0;
  const Index layers = static_cast<Index>(load.front().size()) / experts;
  double total = 0;
  for (Index l = 0; l < layers; ++l) {
    double most = 0, all = 0;
    for (Index e = 0; e < experts; ++e) {
      double tokens = 0;
      for (const auto& domain : load)
        tokens += static_cast<double>(domain[static_cast<std::size_t>(l * experts + e)]);
      most = std::max(most, tokens);
      all += tokens;
    }
    total += most / (all / static_cast<double>(experts)) - 1;
  }
  return total / static_cast<double>(layers);
}

Evaluation evaluate(dsv3::Trainer<Model>& trainer, const Domains& domains, bool last) {
  const dsv3::ModelConfig& c = trainer.model().config();
  Evaluation e;
  std::vector<std::int32_t> storage(
      static_cast<std::size_t>(Domains::held_out_rows * (domains.row_length() + 1)));
  const View<std::int32_t, 2> rows(storage.data(),
                                   {Domains::held_out_rows, domains.row_length() + 1});
  for (Index d = 0; d < domains.size(); ++d) {
    domains.held_out_batch(d, rows);
    const auto report = trainer.evaluate(rows);
    e.domain_loss.push_back(report.loss);
    e.load.push_back(report.load);
    if (last) {
      const auto nodes = static_cast<std::size_t>(c.groups());
      e.copies.nodes.resize(nodes + 1);
      e.copies.between.resize(nodes);
      e.copies.inside.resize(nodes);
      trainer.model().losses(
          dsv3::next_token_batch(rows), [&](const std::string& what, Index, auto view) {
            if constexpr (std::is_same_v<decltype(view), View<const std::int32_t, 2>>)
              if (what == "topk_idx")
                e.copies.add(view, c.n_routed_experts, d * Domains::held_out_rows,
                             domains.row_length());
          });
    }
    e.loss += report.loss / static_cast<double>(domains.size());
  }
  e.max_violation = max_violation(e.load, c.n_routed_experts);
  return e;
}

}  // namespace

Run train(const Recipe& recipe, const std::vector<DomainText>& texts, Index steps, Index looks,
          std::uint64_t seed, int threads, const std::function<void(Index step)>& progress,
          const std::function<void(Trained&)>& after, const Trained* from) {
  const Domains domains(texts, recipe.length, seed, recipe.pieces);
  dsv3::Cpu backend(threads);
  Model model(backend, recipe.config, {.seed = seed, .init_std = 0.03});
  if (from) copy_weights(from->model, model);
  dsv3::TrainOptions options;
  options.schedule =
      dsv3::Schedule{}.scaled(steps * recipe.batch * recipe.length, recipe.peak_lr, steps / 20 + 1);
  if (recipe.constant_lr) options.schedule = options.schedule->constant_lr(recipe.peak_lr);
  options.schedule->bias_gamma_first = recipe.bias_gamma;
  options.balance_alpha = recipe.balance_alpha;
  dsv3::Trainer trainer(model, options);
  std::vector<std::int32_t> storage(static_cast<std::size_t>(recipe.batch * (recipe.length + 1)));
  const View<std::int32_t, 2> rows(storage.data(), {recipe.batch, recipe.length + 1});
  Run run;
  for (Index step = 1; step <= steps; ++step) {
    domains.training_batch((step - 1) * recipe.batch, rows);
    const dsv3::StepReport report = trainer.step(rows);
    run.loss.push_back(report.loss);
    run.max_violation.push_back(report.max_violation);
    run.seconds += report.seconds;
    if (step == steps || step * looks / steps > (step - 1) * looks / steps) {
      run.evaluations.push_back(evaluate(trainer, domains, step == steps));
      run.evaluations.back().step = step;
    }
    progress(step);
  }
  if (after) {
    Trained trained{model, domains};
    after(trained);
  }
  return run;
}

}  // namespace experiment
