// The state of a training run in one file: resuming from it gives the bits of a run never stopped.
#pragma once

#include <dsv3/io/config_json.hpp>
#include <dsv3/io/tensor_transfer.hpp>
#include <dsv3/train/trainer.hpp>
#include <set>

namespace dsv3 {

namespace detail {

inline constexpr Index training_state_schema = 1;
inline constexpr const char* training_state_key = "dsv3.training_state";

// Every option that changes results. `recompute` does not.
inline Json options_to_json(const TrainOptions& o) {
  Json json = {{"peak_lr", o.peak_lr},
               {"beta1", o.beta1},
               {"beta2", o.beta2},
               {"eps", o.eps},
               {"weight_decay", o.weight_decay},
               {"clip_norm", o.clip_norm},
               {"mtp_lambda", o.mtp_lambda},
               {"balance_alpha", o.balance_alpha},
               {"bias_gamma", o.bias_gamma},
               {"center_bias_update", o.center_bias_update},
               {"schedule", nullptr},
               {"groups", Json::array()}};
  if (o.schedule) {
    const Schedule& s = *o.schedule;
    json["schedule"] = {{"peak_lr", s.peak_lr},
                        {"low_lr", s.low_lr},
                        {"last_lr", s.last_lr},
                        {"warmup_steps", s.warmup_steps},
                        {"constant_until", s.constant_until},
                        {"cosine_until", s.cosine_until},
                        {"low_until", s.low_until},
                        {"end", s.end},
                        {"mtp_lambda_first", s.mtp_lambda_first},
                        {"mtp_lambda_last", s.mtp_lambda_last},
                        {"mtp_lambda_until", s.mtp_lambda_until},
                        {"bias_gamma_first", s.bias_gamma_first},
                        {"bias_until", s.bias_until},
                        {"batch_first", s.batch_first},
                        {"batch_last", s.batch_last},
                        {"batch_until", s.batch_until}};
  }
  for (const ParameterGroup& g : o.groups) {
    Json group = {{"pattern", g.pattern},
                  {"frozen", g.frozen},
                  {"lr_factor", g.lr_factor},
                  {"weight_decay", nullptr}};
    if (g.weight_decay) group["weight_decay"] = *g.weight_decay;
    json["groups"].push_back(std::move(group));
  }
  return json;
}

// What a state says of its run, but for the counters. Numbers are as they are after reading.
template <class Trainer>
Json run_to_json(const Trainer& trainer) {
  Json json = {{"schema", training_state_schema},
               {"precision", Trainer::P::name},
               {"config", Json::parse(config_to_json(trainer.model().config()))},
               {"options", options_to_json(trainer.options())}};
  return Json::parse(json.dump());
}

inline std::string short_dump(const Json& json) {
  std::string text = json.dump();
  return text.size() > 80 ? text.substr(0, 80) + "..." : text;
}

// Fails with the first value in which the file's run differs from the trainer's.
inline void check_same(const JsonHandler& errors, const std::string& name, const Json& file,
                       const Json& own) {
  if (file == own) return;
  if (file.is_object() && own.is_object()) {
    for (const auto& [key, value] : own.items()) {
      const auto at = file.find(key);
      const std::string inner = name.empty() ? key : name + "." + key;
      if (at == file.end()) errors.fail("missing key " + in_quotes(inner));
      check_same(errors, inner, *at, value);
    }
    for (const auto& [key, value] : file.items())
      if (!own.contains(key))
        errors.fail("unknown key " + in_quotes(name.empty() ? key : name + "." + key));
  }
  errors.fail(name + " (" + short_dump(file) + ") must equal the trainer's (" + short_dump(own) +
              ")");
}

inline Progress progress_from_json(const JsonHandler& errors, const Json& json) {
  if (!json.is_object())
    errors.fail(std::string("progress must be an object, found ") + kind_of(json));
  const ConfigReader reader(json, errors.where, "progress.");
  const Progress p{reader.integer("step"), reader.integer("updates"), reader.integer("tokens"),
                   reader.integer("skipped")};
  for (const auto& [name, value] : {std::pair("step", p.step), std::pair("updates", p.updates),
                                    std::pair("tokens", p.tokens), std::pair("skipped", p.skipped)})
    if (value < 0)
      errors.fail(std::string("progress.") + name + " (" + std::to_string(value) +
                  ") must be at least 0");
  if (p.updates > p.step || p.step - p.updates != p.skipped)
    errors.fail("progress.step (" + std::to_string(p.step) + ") must equal updates (" +
                std::to_string(p.updates) + ") + skipped (" + std::to_string(p.skipped) + ")");
  return p;
}

// Throws unless the file is a state of exactly this run. Returns its counters.
template <class Trainer>
Progress check_training_state(const Trainer& trainer, const SafetensorsFile& file) {
  const JsonHandler errors{"load_training_state: " + in_quotes(file.path())};
  const auto text = file.metadata().find(training_state_key);
  if (text == file.metadata().end()) errors.fail("is no training state of dsv3");
  Json json = parse_json(text->second, errors.where + ": __metadata__");
  if (!json.is_object())
    errors.fail(std::string("state must be an object, found ") + kind_of(json));
  // Before all else: another schema may mean anything by the other keys.
  const Index schema = ConfigReader(json, errors.where).integer("schema");
  if (schema != training_state_schema)
    errors.fail("schema (" + std::to_string(schema) + ") must be " +
                std::to_string(training_state_schema) + ": written by another version");
  if (!json.contains("progress")) errors.fail("missing key 'progress'");
  const Progress progress = progress_from_json(errors, json["progress"]);
  json.erase("progress");
  check_same(errors, "", json, run_to_json(trainer));

  std::set<std::string, std::less<>> known;
  trainer.for_each_state_tensor([&]<class T, int R>(std::string_view name, View<T, R> view) {
    known.emplace(name);
    const SafetensorsTensor* tensor = file.find(name);
    if (!tensor) errors.fail("missing tensor " + in_quotes(name));
    const std::vector<Index> shape = shape_of(view);
    if (tensor->shape != shape)
      errors.fail("tensor " + in_quotes(name) + ": shape (" +
                  shape_text(tensor->shape.data(), tensor->shape.size()) +
                  ") must equal the trainer's (" + shape_text(shape.data(), shape.size()) + ")");
    if (tensor->dtype != dtype_of<T>())
      errors.fail("tensor " + in_quotes(name) + ": dtype (" + dtype_name(tensor->dtype) +
                  ") must equal the trainer's (" + dtype_name(dtype_of<T>()) + ")");
  });
  for (const SafetensorsTensor& tensor : file.tensors())
    if (!known.count(tensor.name)) errors.fail("unknown tensor " + in_quotes(tensor.name));
  return progress;
}

}  // namespace detail

/// Writes everything that the run needs to go on: masters, gate biases, moments, counters, and what
/// the run is (configuration, options, precision), which resuming compares. One safetensors file,
/// through AtomicFile: what was at `path` is whole until the new state is.
///
/// Errors   what save_safetensors throws.
template <class Trainer>
void save_training_state(const Trainer& trainer, const std::string& path) {
  std::vector<SafetensorsEntry> entries;
  auto& backend = trainer.model().backend();
  trainer.for_each_state_tensor([&]<class T, int R>(std::string_view name, View<T, R> view) {
    entries.push_back({std::string(name), dtype_of<T>(), detail::shape_of(view),
                       detail::fill_from_backend<std::remove_const_t<T>>(backend, view)});
  });
  detail::Json json = detail::run_to_json(trainer);
  const Progress& p = trainer.progress();
  json["progress"] = {
      {"step", p.step}, {"updates", p.updates}, {"tokens", p.tokens}, {"skipped", p.skipped}};
  save_safetensors(path, std::move(entries), {{detail::training_state_key, json.dump()}});
}

/// Continues the run of a state: the trainer, made with the same configuration, options (but for
/// `recompute`) and precision, goes on as the one that wrote it, bit for bit.
///
/// Errors   std::invalid_argument "load_training_state: 'path': ...": not a state, of another
///          version, or of another run (naming the first value that differs, and both values); what
///          SafetensorsFile throws. The trainer and its model are unchanged.
template <class Trainer>
void load_training_state(Trainer& trainer, const std::string& path) {
  const SafetensorsFile file(path);
  const Progress progress = detail::check_training_state(trainer, file);
  auto& backend = trainer.model().backend();
  trainer.for_each_state_tensor([&](std::string_view name, auto view) {
    detail::read_to_backend(backend, file.at(name), view);
  });
  trainer.model().refresh_operands();
  trainer.set_progress(progress);
}

}  // namespace dsv3
