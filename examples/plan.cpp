// The planner: what a model and its training cost, before they exist. Run with --help.
#include <dsv3/io/atomic_file.hpp>
#include <sstream>

#include "plan/tables.hpp"

namespace {

using namespace example;

// Memory of the GPUs of each pipeline rank.
template <class P>
void memory_plot(std::ostream& out, const Planned& p) {
  std::vector<Curve> curves{{"total", 0, {}, false, true},
                            {"activations", 1, {}, false, true},
                            {"gradients", 2, {}, false, true},
                            {"masters and moments", 3, {}, false, true},
                            {"weights for products", 4, {}, false, true}};
  for (Index r = 0; r < p.layout.pp; ++r) {
    const dsv3::plan::RankMemory m = p.rank<P>(r);
    const double parts[] = {m.total(), m.activations, m.gradients, m.masters + m.moments, m.copies};
    for (std::size_t i = 0; i < curves.size(); ++i)
      curves[i].points.push_back({static_cast<double>(r), parts[i] * 1e-9});
  }
  plot(out, "Memory of a GPU", "pipeline rank", "GB, without working memory", curves, {}, 1080, 320,
       true);
}

template <class P>
std::string page(const Planned& p, const Sheet& sheet) {
  std::ostringstream out;
  const auto& json = sheet.json();
  const auto value = [&](const char* table, const char* key) {
    return json.at(table).at(key).template get<double>();
  };
  begin_page(out, "Plan of " + p.options.model,
             grouped(p.layout.gpus) + " GPUs, " + P::name + ", " + number(p.options.tokens, 4) +
                 " tokens");
  tiles(out, {{"parameters", number(value("parameters", "total"), 4)},
              {"activated per token", number(value("parameters", "activated"), 4)},
              {"GFLOP to train a token", number(value("flops", "training") * 1e-9, 5)},
              {"GB on the fullest GPU", number(value("gpu_memory", "total") * 1e-9, 3)},
              {"GPU-hours", number(value("cost", "hours"), 4)}});
  memory_plot<P>(out, p);
  tables(out, sheet.tables());
  out << end_of_page;
  return out.str();
}

void write(const std::string& path, const std::string& text) {
  dsv3::AtomicFile file(path);
  file.write(text);
  file.commit();
}

template <class P>
void run(const Planned& p) {
  const Sheet sheet = planned_sheet<P>(p);
  std::fputs(sheet.text().c_str(), stdout);
  if (p.options.out.empty()) return;
  const std::string html = p.options.out + "/plan.html", json = p.options.out + "/plan.json";
  std::filesystem::create_directories(p.options.out);
  write(html, page<P>(p, sheet));
  write(json, sheet.json().dump(1) + '\n');
  std::printf("\npage     %s\nnumbers  %s\n", html.c_str(), json.c_str());
}

void run(const PlanOptions& options) {
  check(options);
  Planned p{options, config_of(options.model), {}};
  p.layout = layout_of(options, p.config);
  if (options.policy == "fp32") return run<dsv3::Fp32>(p);
  if (options.policy == "bf16") return run<dsv3::Bf16>(p);
  run<dsv3::Fp8>(p);
}

}  // namespace

int main(int argc, char** argv) {
  PlanOptions options;
  CLI::App app(
      "Counts what a model and its training cost: parameters, FLOPs, cache, memory of each GPU, "
      "idle time of pipelines, bytes to the experts and back, hours and dollars. The defaults are "
      "DeepSeek-V3 and its own run.",
      "plan");
  add_options(app, options);
  try {
    app.parse(argc, argv);
    run(options);
    return 0;
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    return 0;
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "plan: %s\nRun with --help for all options.\n", error.what());
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "plan: %s\nRun with --help for all options.\n", error.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "plan: %s\n", error.what());
    return 1;
  }
  return 2;
}
