// The study's options: those of the training example that a comparison needs, and its own.
#pragma once

#include <algorithm>
#include <set>
#include <sstream>

#include "../options.hpp"

namespace example {

struct StudyOptions : Options {
  std::string variants = "fp8,e5m2_gradients,gradient_blocks,per_tensor,ue8m0,fp32";
  Index seeds = 2, probe_every = 20;

  // Wide enough for several tiles of 128 in a row.
  StudyOptions() {
    out = "out/fp8_study";
    hidden = 256, layers = 3, q_rank = 128, kv_rank = 128, ffn = 512;
    experts = 8, expert_ffn = 128, top_k = 2, groups = 2, top_groups = 1, mtp = 0;
    steps = 200, lr = 1e-3;
  }
};

/// A name of --variants and what it stands for.
using VariantName = std::pair<std::string, std::string>;

/// The names in --variants, each once, in the order given; BF16, which all are compared with,
/// comes first whether it is named or not.
/// Errors   OptionError naming the one that is unknown.
inline std::vector<std::string> chosen(const StudyOptions& o,
                                       const std::vector<VariantName>& known) {
  std::vector<std::string> names{"bf16"};
  const auto add = [&](const std::string& name) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  };
  std::istringstream list(o.variants);
  for (std::string name; std::getline(list, name, ',');) {
    if (name == "all") {
      for (const auto& [each, what] : known) add(each);
      continue;
    }
    std::string all = "all";
    bool found = false;
    for (const auto& [each, what] : known) {
      found |= each == name;
      all += ", " + each;
    }
    if (!found) throw OptionError("--variants (" + name + ") must be one of " + all);
    add(name);
  }
  if (names.size() < 2)
    throw OptionError("--variants (" + o.variants + ") must name one beside bf16");
  return names;
}

namespace detail {

// Options of the training example that the study does not have.
inline bool is_left_out(const std::string& name) {
  const std::set<std::string> names = {"--precision", "--recompute", "--held-out", "--eval-every",
                                       "--eval-rows"};
  return names.count(name) > 0;
}

}  // namespace detail

/// Every option that decides what is computed, as it is kept beside the results.
inline nlohmann::ordered_json to_json(const StudyOptions& o) {
  nlohmann::ordered_json j;
  j["text"] = absolute(o.text);
  for_each_option(o, [&](auto, const char* name, const auto& value, auto...) {
    if (!detail::is_left_out(name)) j[name] = value;
  });
  j["--variants"] = o.variants;
  j["--seeds"] = o.seeds;
  j["--probe-every"] = o.probe_every;
  return j;
}

/// The command line as options, complete and checked, or an exit code: 0 after --help, 2 where an
/// option is bad, which a line on stderr explains. Writes no file.
inline std::optional<int> parse(int argc, char** argv, const std::vector<VariantName>& known,
                                StudyOptions& o) {
  CLI::App app(
      "Trains the same small DeepSeek-V3 in BF16 and in variants of its FP8 recipe, on the same "
      "text in the same order from the same weights, and looks into the products of codes on the "
      "way. Leaves fp8_study.html and fp8_study.json in the output folder.\n\n"
      "Without text it trains on the headers of the installed Eigen package.",
      "fp8_study");
  app.get_formatter()->column_width(34);
  app.add_option("text", o.text, "files or folders to train on");
  app.add_option("--variants", o.variants, "names from the list below, with commas, or all")
      ->capture_default_str()
      ->group("Study");
  app.add_option("--seeds", o.seeds, "runs of each variant, from --seed on")
      ->capture_default_str()
      ->group("Study");
  app.add_option("--probe-every", o.probe_every,
                 "steps between looks into the products of the first seed; 0: none")
      ->capture_default_str()
      ->group("Study");
  for_each_option(
      o, [&](const char* group, const char* name, auto& value, const char* help, auto, auto) {
        if constexpr (!std::is_same_v<decltype(value), bool&>)
          if (!detail::is_left_out(name))
            app.add_option(name, value, help)->capture_default_str()->group(group);
      });
  app.add_option("--threads", o.threads, "0: as many as the machine has")->capture_default_str();
  app.add_option("--out", o.out, "folder for the page and its numbers")->capture_default_str();
  std::string list = "Variants\n";
  for (const auto& [name, what] : known)
    list += "  " + name + std::string(name.size() < 18 ? 18 - name.size() : 1, ' ') + what + "\n";
  app.footer(list);
  try {
    app.parse(argc, argv);
    if (o.text.empty()) o.text = text_of_this_machine();
    check(o);
    detail::check_range("--seeds", o.seeds, 1, 1000);
    detail::check_range("--probe-every", o.probe_every, 0, Index{1} << 38);
    chosen(o, known);
    if (o.threads == 0) o.threads = std::max(1u, std::thread::hardware_concurrency());
    return std::nullopt;
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fp8_study: %s\nRun with --help for all options.\n", error.what());
  }
  return 2;
}

}  // namespace example
