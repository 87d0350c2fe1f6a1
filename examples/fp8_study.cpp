// The FP8 study: what the parts of DeepSeek-V3's FP8 recipe do, beside BF16. Run with --help.
#include "fp8_study/study_page.hpp"

namespace {

using namespace example;

// One line on a terminal that says how far the study is.
class ProgressLine {
 public:
  ProgressLine(const StudyOptions& o, std::size_t variants)
      : steps_(o.steps), runs_(static_cast<Index>(variants) * o.seeds) {}

  void next(const std::string& name, Index seed) {
    ++run_;
    name_ = name + (seed > 0 ? ", seed " + std::to_string(seed) : "");
  }

  void step(Index step, double loss) {
    const bool last = step == steps_;
    if (!live_ && !last) return;
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start_;
    const auto done = static_cast<double>((run_ - 1) * steps_ + step);
    const double left = passed.count() / done * (static_cast<double>(runs_ * steps_) - done);
    std::printf("%srun %td/%td  %s  step %td/%td  loss %.3f  ETA %s%s", live_ ? "\r\033[K" : "",
                run_, runs_, name_.c_str(), step, steps_, loss, minutes(left).c_str(),
                !live_ || last ? "\n" : "");
    std::fflush(stdout);
  }

 private:
  bool live_ = ::isatty(STDOUT_FILENO);
  Index steps_, runs_, run_ = 0;
  std::string name_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

StudyFacts facts_of(const StudyOptions& o, const dsv3::TextData& data) {
  const dsv3::ModelConfig c = model_config(o);
  const Index tokens = o.steps * o.batch * o.sequence;
  StudyFacts facts;
  facts.subtitle = joined(o.text) + ": " + grouped(tokens) + " tokens in " + grouped(o.steps) +
                   " steps" + (o.seeds > 1 ? ", " + std::to_string(o.seeds) + " seeds" : "");
  facts.tables = {
      {"Model",
       {{"layers", std::to_string(c.num_hidden_layers) + ", the first " +
                       std::to_string(c.first_k_dense_replace) + " dense, + " +
                       std::to_string(c.num_nextn_predict_layers) + " for MTP"},
        {"hidden size", std::to_string(c.hidden_size)},
        {"attention",
         std::to_string(c.num_attention_heads) + " heads of " + std::to_string(c.qk_nope_head_dim) +
             " + " + std::to_string(c.qk_rope_head_dim) + ", latents " +
             std::to_string(c.q_lora_rank) + " (q), " + std::to_string(c.kv_lora_rank) + " (k, v)"},
        {"width of an MLP, an expert",
         std::to_string(c.intermediate_size) + ", " + std::to_string(c.moe_intermediate_size)},
        {"experts", std::to_string(c.num_experts_per_tok) + " of " +
                        std::to_string(c.n_routed_experts) + " routed + " +
                        std::to_string(c.n_shared_experts) + " shared"},
        {"activated per token", grouped(dsv3::plan::activated_parameters(c))}}},
      {"Run",
       {{"text", mib(data.bytes())},
        {"steps", grouped(o.steps) + " of " + grouped(o.batch) + " rows of " + grouped(o.sequence) +
                      " tokens"},
        {"learning rate", "peak " + number(o.lr) + ", DeepSeek-V3's schedule"},
        {"seed", std::to_string(o.seed)},
        {"processor", processor()},
        {"threads", std::to_string(o.threads)},
        {"kernels", dsv3::cpu_features().compiled}}}};
  return facts;
}

void write_numbers(const std::string& path, const Study& study) {
  dsv3::AtomicFile file(path);
  file.write(to_json(study).dump(1) + '\n');
  file.commit();
}

void print(const Study& study) {
  std::printf(
      "\nMeans over the last %td steps; errors of products in the last step\n%-18s %8s %10s",
      study.last_steps(), "", "loss", "gap");
  std::printf("%s %8s %8s %8s\n", study.options.seeds > 1 ? "           over seeds" : "", "Y", "dX",
              "dW");
  for (const Result& r : study.results) {
    const Spread gap = study.gap(r);
    std::printf("%-18s %8.4f %+9.3f%%", r.variant.name.c_str(), study.loss(r).mean, 100 * gap.mean);
    if (study.options.seeds > 1)
      std::printf(" %+8.3f ... %+7.3f%%", 100 * gap.least, 100 * gap.most);
    if (!r.runs.front().measurements.empty())
      for (const Role role : {Role::y, Role::dx, Role::dw})
        std::printf(" %7.2f%%", 100 * r.runs.front().measurements.back().mean_error(role));
    std::printf("\n");
  }
}

void run(const StudyOptions& o, const std::vector<Variant>& variants) {
  Study study{o, {}};
  for (const Variant& variant : variants) study.results.push_back({variant, {}});
  const std::string page = o.out + "/fp8_study.html", numbers = o.out + "/fp8_study.json";
  std::optional<StudyFacts> facts;
  ProgressLine progress(o, variants.size());
  for (Index seed = o.seed; seed < o.seed + o.seeds; ++seed) {
    const dsv3::TextData data(o.text, {.format = text_format(o),
                                       .vocab_size = o.vocab_size,
                                       .row_length = o.sequence,
                                       .held_out = o.held_out,
                                       .seed = static_cast<std::uint64_t>(seed)});
    if (!facts) facts = facts_of(o, data);
    std::filesystem::create_directories(o.out);
    for (Result& result : study.results) {
      progress.next(result.variant.name, o.seeds > 1 ? seed : 0);
      result.runs.push_back(
          result.variant.train(o, data, seed, seed == o.seed,
                               [&](Index step, double loss) { progress.step(step, loss); }));
      write_page(page, study, *facts);  // a long study can be looked at before its end
      write_numbers(numbers, study);
    }
  }
  print(study);
  std::printf("\npage     %s\nnumbers  %s\n", page.c_str(), numbers.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<Variant> all = all_variants();
  std::vector<VariantName> names;
  for (const Variant& v : all) names.emplace_back(v.name, v.what);
  StudyOptions o;
  if (const auto code = parse(argc, argv, names, o)) return *code;
  try {
    std::vector<Variant> variants;
    for (const std::string& name : chosen(o, names))
      for (const Variant& v : all)
        if (v.name == name) variants.push_back(v);
    run(o, variants);
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "fp8_study: %s\nRun with --help for all options.\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fp8_study: %s\n", error.what());
    return 1;
  }
}
