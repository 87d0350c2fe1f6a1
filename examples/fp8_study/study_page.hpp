// The study as one self-contained HTML page.
#pragma once

#include <dsv3/io/atomic_file.hpp>
#include <dsv3/plan.hpp>
#include <sstream>

#include "measurement_plots.hpp"

namespace example {

/// Everything on the page that is not a number of the study.
struct StudyFacts {
  std::string subtitle;
  std::vector<Table> tables;
};

namespace detail {

inline std::string seeds_text(const Study& study) {
  const Index n = study.options.seeds;
  return n > 1 ? ", mean over " + std::to_string(n) + " seeds" : "";
}

// What a reader must know before the first number.
inline void limits(std::ostream& out, const Study& study, const dsv3::ModelConfig& c) {
  const StudyOptions& o = study.options;
  const auto item = [&](const char* lead, const std::string& text) {
    out << "<li><b>" << lead << "</b> " << escaped(text) << "</li>\n";
  };
  std::string noise = "Add fp32 to --variants to see by how much: a gap of that size says nothing.";
  for (const Result& r : study.results) {
    if (r.variant.name != "fp32" || r.runs.empty()) continue;
    const Spread gap = study.gap(r);
    noise = "FP32 ends " + signed_percent(gap.least, 2) +
            (gap.most > gap.least ? " to " + signed_percent(gap.most, 2) : "") +
            " from BF16 here: a gap of that size says nothing.";
  }
  out << "<ul>";
  item("Shown:",
       "errors of products, codes, underflow and largest values, measured inside training steps on "
       "this model's own tensors. An error compares a product of codes with the product in double "
       "of the same values before they were quantised: it holds quantising and accumulating, not "
       "the rounding of the output.");
  item("Noise:",
       "runs that differ by rounding alone drift apart too, most where one of them happens "
       "to learn something a little earlier than the other. " +
           noise + (o.seeds < 3 ? " More --seeds tell luck from effect." : ""));
  item("Not shown:",
       "what a large model does over a long run. DeepSeek-V3 found losses within 0.25 % of BF16's "
       "on models of about 16 and 230 billion parameters over about 10^12 tokens, and a 16B model "
       "that diverged after about 3 10^11 tokens with 128 x 128 blocks of gradients. This model "
       "has " +
           number(double(dsv3::plan::total_parameters(c)), 2) + " parameters and sees " +
           number(double(o.steps * o.batch * o.sequence), 2) +
           " tokens: neither the outliers that come late in large models nor the time in which "
           "small errors add up.");
  item("Sums are short:",
       "at most " +
           grouped(std::max({o.hidden, o.q_rank, o.kv_rank, o.heads * o.v_dim, o.ffn,
                             o.expert_ffn * std::max(Index{1}, o.shared_experts)})) +
           " products along features and " + grouped(o.batch * o.sequence) +
           " along tokens; along features DeepSeek-V3's are 512 to 18 432 long. An accumulation "
           "interval, or a tile, that is longer than a sum changes nothing.");
  out << "</ul>\n";
}

inline void loss_plots(std::ostream& out, const Study& study, const std::vector<Shown>& shown) {
  std::vector<Curve> curves, gaps;
  for (const auto& [r, color] : shown)
    curves.push_back(curve_of("", color, study.losses(*r), 1, true));
  for (const auto& [r, color] : shown) {
    curves.push_back(curve_of(r->variant.name, color, study.smoothed_losses(*r)));
    if (r != &study.baseline())
      gaps.push_back(curve_of(r->variant.name, color, study.gaps(*r), 100));
  }
  plot(out, "Training loss", "step",
       "nats per token; faint: raw, full: moving average with 0.9" + seeds_text(study), curves, {},
       1080, 380);
  plot(out, "Gap to BF16", "step", "% of BF16's loss, of the moving averages" + seeds_text(study),
       gaps, {{"", 0}}, 1080, 320);
}

inline void loss_table(std::ostream& out, const Study& study, const std::vector<Shown>& shown) {
  const bool several = study.options.seeds > 1;
  std::vector<std::string> head{"", "loss", "gap to BF16"};
  if (several) head.push_back("over seeds");
  for (const char* name : {"error of Y", "of dX", "of dW", "tokens/s", ""}) head.push_back(name);
  std::vector<std::vector<Cell>> rows;
  for (const auto& [r, color] : shown) {
    const bool is_baseline = r == &study.baseline();
    const double loss = study.loss(*r).mean;
    const Spread gap = study.gap(*r);
    std::vector<Cell> row{{r->variant.name},
                          {std::isfinite(loss) ? decimal(loss, 4) : "diverged"},
                          {is_baseline ? "" : signed_percent(gap.mean, 3)}};
    if (several)
      row.push_back(
          {is_baseline ? "" : signed_percent(gap.least, 2) + " to " + signed_percent(gap.most, 2)});
    for (const Role role : {Role::y, Role::dx, Role::dw})
      row.push_back({looks(*r).empty() ? "" : percent(looks(*r).back().mean_error(role), 2)});
    double seconds = 0, tokens = 0;
    Index skipped = 0;
    for (const Run& run : r->runs) {
      seconds += run.seconds;
      tokens += static_cast<double>(run.timed_tokens);
      skipped += run.skipped;
    }
    row.push_back({seconds > 0 ? grouped(static_cast<Index>(tokens / seconds)) : ""});
    std::string what = r->variant.what;
    if (skipped) what += "; " + std::to_string(skipped) + " steps skipped: gradient not finite";
    row.push_back({what, 0, true});
    rows.push_back(row);
  }
  grid(out,
       "Means over the last " + std::to_string(study.last_steps()) +
           " steps, and relative errors of products in the last step",
       head, rows);
}

}  // namespace detail

/// Writes the page of a study that has at least one run of BF16, replacing what was there.
/// Errors   std::runtime_error where it cannot be written.
inline void write_page(const std::string& path, const Study& study, const StudyFacts& facts) {
  const dsv3::ModelConfig config = model_config(study.options);
  std::vector<Shown> all, fp8;
  for (std::size_t i = 0; i < study.results.size(); ++i) {
    const Result& r = study.results[i];
    if (r.runs.empty()) continue;
    all.push_back({&r, static_cast<int>(i)});
    if (!looks(r).empty()) fp8.push_back(all.back());
  }
  std::ostringstream out;
  const auto part = [&](const char* title) { out << "<h2 class=\"part\">" << title << "</h2>\n"; };
  begin_page(out,
             "FP8 variants beside BF16: a DeepSeek-V3 with " +
                 grouped(dsv3::plan::total_parameters(config)) + " parameters",
             facts.subtitle, study_style);
  part("What this shows, and what it cannot");
  detail::limits(out, study, config);
  part("Losses");
  detail::loss_plots(out, study, all);
  detail::loss_table(out, study, all);
  if (!fp8.empty()) {
    part("Products of codes");
    error_plots(out, fp8);
    part("Codes");
    code_plots(out, fp8);
    part("Variant by variant");
    for (const Shown& each : fp8) layer_details(out, *each.result, config);
  }
  part("The runs");
  tables(out, facts.tables);
  out << end_of_page;
  dsv3::AtomicFile file(path);
  file.write(out.str());
  file.commit();
}

}  // namespace example
