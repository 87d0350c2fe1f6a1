#include "generation_case.hpp"

#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/infer/generate.hpp>
#include <dsv3/io/checkpoint.hpp>
#include <nlohmann/json.hpp>

namespace golden {
namespace {

using dsv3::Index;

void line(const std::string& path, const std::string& name, double error, double tolerance,
          Counts& counts) {
  const bool ok = error <= tolerance;
  ++(ok ? counts.passed : counts.failed);
  std::printf("%s %s %.3g %.3g %s\n", path.c_str(), name.c_str(), error, tolerance,
              ok ? "ok" : "FAIL");
}

// How many tokens differ, a missing one included.
double differences(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
  const std::size_t common = std::min(a.size(), b.size());
  double count = static_cast<double>(std::max(a.size(), b.size()) - common);
  for (std::size_t i = 0; i < common; ++i) count += a[i] != b[i];
  return count;
}

template <class P, class Backend>
void check_model(const std::string& path, const std::string& name, const nlohmann::json& entry,
                 Backend& backend, Counts& counts) {
  const std::string folder = (std::filesystem::path(path).parent_path() / name).string();
  dsv3::Model<P, Backend> model(backend, dsv3::load_config(folder + "/config.json"));
  dsv3::load_weights(model, folder);
  const auto prompt = entry.at("prompt").get<std::vector<std::int32_t>>();
  const auto greedy = entry.at("greedy").get<std::vector<std::int32_t>>();
  dsv3::GenerateOptions options;
  options.max_tokens = static_cast<Index>(greedy.size());
  options.ignore_eos = true;
  line(path, name + ".greedy", differences(generate(model, prompt, options), greedy), 0, counts);
  if (model.config().num_nextn_predict_layers == 0) return;
  options.speculative = true;
  line(path, name + ".greedy (speculative)", differences(generate(model, prompt, options), greedy),
       0, counts);
}

template <class A>
void check_sampling(const std::string& path, const nlohmann::json& sampling, double tolerance,
                    Counts& counts) {
  const auto logits = sampling.at("logits").get<std::vector<A>>();
  std::size_t number = 0;
  for (const auto& entry : sampling.at("cases")) {
    for (const auto& [key, value] : entry.items())
      if (key != "temperature" && key != "top_k" && key != "top_p" && key != "min_p" &&
          key != "probs")
        throw std::invalid_argument(path + ": sampling: unknown option \"" + key + "\"");
    dsv3::SamplingOptions options;
    options.temperature = entry.at("temperature").get<double>();
    options.top_k = entry.at("top_k").get<Index>();
    options.top_p = entry.at("top_p").get<double>();
    options.min_p = entry.at("min_p").get<double>();
    options.validate();
    std::vector<double> ours;
    dsv3::Sampler().distribution(logits.data(), static_cast<Index>(logits.size()), options, {},
                                 ours);
    const auto theirs = entry.at("probs").get<std::vector<double>>();
    double worst = ours.size() == theirs.size() ? 0 : INFINITY, largest = 0;
    for (std::size_t i = 0; i < std::min(ours.size(), theirs.size()); ++i) {
      worst = std::max(worst, std::abs(ours[i] - theirs[i]));
      largest = std::max(largest, theirs[i]);
    }
    line(path, "sampling." + std::to_string(number++), worst / largest, tolerance, counts);
  }
}

template <class Backend>
void check(const std::string& path, const std::string& precision, Backend& backend,
           Counts& counts) {
  const dsv3::MappedFile text(path);
  const auto json = nlohmann::json::parse(text.data(), text.data() + text.size(), nullptr, false);
  if (!json.is_object() || json.empty())
    throw std::invalid_argument(path + ": must be a JSON object with entries");
  for (const auto& [name, entry] : json.items())
    if (name == "sampling" && precision == "fp64")
      check_sampling<double>(path, entry, 1e-12, counts);
    else if (name == "sampling")
      check_sampling<float>(path, entry, 1e-6, counts);
    else if (precision == "fp64")
      check_model<dsv3::Fp64>(path, name, entry, backend, counts);
    else
      check_model<dsv3::Fp32>(path, name, entry, backend, counts);
}

}  // namespace

void check_generation(const std::string& path, const std::string& precision, dsv3::Cpu& backend,
                      Counts& counts) {
  check(path, precision, backend, counts);
}
void check_generation(const std::string& path, const std::string& precision,
                      dsv3::EigenCpu& backend, Counts& counts) {
  check(path, precision, backend, counts);
}

}  // namespace golden
