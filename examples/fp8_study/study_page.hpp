// The study as one self-contained HTML page.
#pragma once

#include <dsv3/io/atomic_file.hpp>
#include <dsv3/plan.hpp>

#include "grid.hpp"
#include "study.hpp"

namespace example {

/// Everything on the page that is not a number of the study.
struct StudyFacts {
  std::string subtitle;
  std::vector<Table> tables;
};

/// Draws a study that has at least one run of BF16.
class StudyPage {
 public:
  StudyPage(const Study& study, const StudyFacts& facts) : study_(study), facts_(facts) {
    for (std::size_t i = 0; i < study.results.size(); ++i)
      if (!study.results[i].runs.empty()) done_.push_back({&study.results[i], static_cast<int>(i)});
  }

  /// Writes the page to `path`, replacing what was there.
  /// Errors   std::runtime_error where it cannot be written.
  void write(const std::string& path) {
    begin_page(out_,
               "FP8 variants beside BF16: a DeepSeek-V3 with " +
                   grouped(dsv3::plan::total_parameters(config_)) + " parameters",
               facts_.subtitle, study_style);
    part("What this shows, and what it cannot");
    limits();
    part("Losses");
    losses();
    part("Products of codes");
    products();
    part("Codes");
    codes();
    part("Variant by variant");
    for (const auto& [result, color] : done_)
      if (!looks(*result).empty()) details(*result);
    part("The runs");
    tables(out_, facts_.tables);
    out_ << end_of_page;
    dsv3::AtomicFile file(path);
    file.write(out_.str());
    file.commit();
  }

 private:
  struct Done {
    const Result* result;
    int color;
  };

  static const std::vector<Measurements>& looks(const Result& r) {
    return r.runs.front().measurements;
  }

  void part(const char* title) { out_ << "<h2 class=\"part\">" << title << "</h2>\n"; }
  void note(const std::string& text) { out_ << "<p class=\"note\">" << escaped(text) << "</p>\n"; }
  void item(const char* lead, const std::string& text) {
    out_ << "<li><b>" << lead << "</b> " << escaped(text) << "</li>\n";
  }

  const Result* find(const char* name) const {
    for (const Done& d : done_)
      if (d.result->variant.name == name) return d.result;
    return nullptr;
  }

  void limits() {
    const StudyOptions& o = study_.options;
    const Index features = std::max({o.hidden, o.q_rank, o.kv_rank, o.heads * o.v_dim, o.ffn});
    const Result* fp32 = find("fp32");
    out_ << "<ul>";
    item("Shown:",
         "errors of products, codes, underflow and largest values, measured inside "
         "training steps on this model's own tensors. An error compares a product of "
         "codes with the product in double of the same values before they were "
         "quantised: it holds quantising and accumulating, not the rounding of the "
         "output.");
    item("Noise:", "runs that differ by rounding alone drift apart too. " +
                       (fp32 ? "FP32 ends " + signed_percent(study_.gap(*fp32).mean, 2) +
                                   " from BF16 here: a gap of that size says nothing."
                             : std::string("Add fp32 to --variants to see by how much: a gap of "
                                           "that size says nothing.")) +
                       (o.seeds == 1 ? " --seeds tells luck from effect." : ""));
    item("Not shown:",
         "what a large model does over a long run. DeepSeek-V3 found losses within "
         "0.25 % of BF16's on models of 16 and 230 billion parameters over about "
         "10^12 tokens, and a 16B model that diverged after 3 10^11 tokens with "
         "128 x 128 blocks of gradients. This model has " +
             number(double(dsv3::plan::total_parameters(config_)), 2) + " parameters and sees " +
             number(double(o.steps * o.batch * o.sequence), 2) +
             " tokens: it has none of the outliers that fine groups are for, and "
             "none of the time in which small errors add up.");
    item("Sums are short:", "at most " + grouped(features) + " products along features and " +
                                grouped(o.batch * o.sequence) +
                                " along tokens; DeepSeek-V3's are 512 to 18 432 long. An "
                                "accumulation interval, or a tile, that is longer than a sum "
                                "changes nothing.");
    out_ << "</ul>\n";
  }

  void losses() {
    std::vector<Curve> curves, gaps;
    for (const auto& [r, color] : done_)
      curves.push_back(curve_of(r->variant.name, color, study_.losses(*r), 1, true));
    for (const auto& [r, color] : done_) {
      curves.push_back(curve_of(r->variant.name, color, study_.smoothed_losses(*r)));
      if (r != &study_.baseline())
        gaps.push_back(curve_of(r->variant.name, color, study_.gaps(*r), 100));
    }
    plot(out_, "Training loss", "step",
         "nats per token; faint: raw, full: moving average with 0.9" + seeds_text(), curves, {},
         1080, 380);
    plot(out_, "Gap to BF16", "step", "% of BF16's loss, of the moving averages" + seeds_text(),
         gaps, {{"", 0}}, 1080, 320);
    std::vector<std::vector<Cell>> rows;
    for (const auto& [r, color] : done_) {
      const Spread gap = study_.gap(*r);
      std::vector<Cell> row{{r->variant.name},
                            {decimal(study_.loss(*r).mean, 4)},
                            {r == &study_.baseline() ? "" : signed_percent(gap.mean, 3)}};
      if (study_.options.seeds > 1)
        row.push_back({r == &study_.baseline()
                           ? ""
                           : signed_percent(gap.least, 3) + " ... " + signed_percent(gap.most, 3)});
      const bool looked = !looks(*r).empty();
      for (const Role role : {Role::y, Role::dx, Role::dw})
        row.push_back({looked ? percent(looks(*r).back().mean_error(role), 2) : ""});
      double seconds = 0, tokens = 0;
      Index skipped = 0;
      for (const Run& run : r->runs) {
        seconds += run.seconds;
        tokens += static_cast<double>(run.timed_tokens);
        skipped += run.skipped;
      }
      row.push_back({seconds > 0 ? grouped(static_cast<Index>(tokens / seconds)) : ""});
      row.push_back({r->variant.what + (skipped ? "; " + std::to_string(skipped) +
                                                      " steps skipped, gradient not finite"
                                                : ""),
                     0, true});
      rows.push_back(row);
    }
    std::vector<std::string> head{"", "loss", "gap to BF16"};
    if (study_.options.seeds > 1) head.push_back("over seeds");
    for (const char* name : {"error of y", "of dX", "of dW", "tokens/s", ""}) head.push_back(name);
    grid(out_,
         "Means over the last " + std::to_string(study_.last_steps()) +
             " steps, and relative errors of products in the last step",
         head, rows);
  }

  std::string seeds_text() const {
    const Index n = study_.options.seeds;
    return n > 1 ? ", mean over " + std::to_string(n) + " seeds" : "";
  }

  void products() {
    note(
        "Relative error, in the Frobenius norm, of the three products of a linear layer: Y = X "
        "W^T, "
        "dX = dY W, dW = dY^T X. Means over all linear layers.");
    out_ << "<div class=\"three\">\n";
    for (std::size_t role = 0; role < role_names.size(); ++role) {
      std::vector<Curve> curves;
      for (const auto& [r, color] : done_) {
        Curve c = curve_of(r->variant.name, color, {});
        for (const Measurements& m : looks(*r))
          c.points.push_back({double(m.step), 100 * m.mean_error(static_cast<Role>(role))});
        curves.push_back(c);
      }
      const char* titles[] = {"Y", "dX", "dW"};
      plot(out_, titles[role], "step", "%", unnamed(curves), {}, 352, 240, true);
    }
    out_ << "</div>\n";
  }

  // Curves without a legend.
  static std::vector<Curve> unnamed(std::vector<Curve> curves) {
    for (Curve& c : curves) c.name.clear();
    return curves;
  }

  void codes() {
    note(
        "Codes of the last step by magnitude: the share of all codes of a kind that lie in each "
        "power of two. Colors as above. What is missing to 100 % are zeros.");
    out_ << "<div class=\"three\">\n";
    for (std::size_t kind = 0; kind < kind_names.size(); ++kind) {
      std::vector<Curve> curves;
      for (const auto& [r, color] : done_) {
        if (looks(*r).empty()) continue;
        Curve c = curve_of("", color, {});
        const CodeCounts& counts = looks(*r).back().kinds[kind];
        if (counts.by_exponent.empty()) continue;
        const int first = counts.by_exponent.begin()->first;
        const int last = counts.by_exponent.rbegin()->first;
        for (int e = first; e <= last; ++e) {
          const auto found = counts.by_exponent.find(e);
          const double share =
              found == counts.by_exponent.end() ? 0 : 100 * counts.share(found->second);
          c.points.push_back({double(e), share});
          c.points.push_back({double(e + 1), share});
        }
        curves.push_back(c);
      }
      plot(out_, kind_names[kind], "log2 of the code's magnitude", "% of codes", curves, {}, 352,
           220, true);
    }
    out_ << "</div>\n<div class=\"beside\">";
    shares("Underflow: values other than 0 whose code is 0",
           [](const CodeCounts& c) { return c.share(c.underflow); });
    shares("Codes that are the format's largest",
           [](const CodeCounts& c) { return c.share(c.saturated); });
    out_ << "</div>\n";
    note(
        "A scale makes the largest value of its group the format's largest, so one code in each "
        "group is that by construction: 1/128 = 0.78 % of a tile of 128. Scales that are rounded "
        "up to powers of two leave fewer.");
  }

  void shares(const char* caption, auto&& share) {
    std::vector<std::string> head{""};
    std::vector<const Measurements*> columns;
    for (const auto& [r, color] : done_)
      if (!looks(*r).empty()) {
        head.push_back(r->variant.name);
        columns.push_back(&looks(*r).back());
      }
    std::vector<std::vector<Cell>> rows;
    for (std::size_t kind = 0; kind < kind_names.size(); ++kind) {
      std::vector<Cell> row{{kind_names[kind]}};
      for (const Measurements* m : columns) {
        const double value = share(m->kinds[kind]);
        row.push_back({percent(value, 2), value * 20});
      }
      rows.push_back(row);
    }
    if (!columns.empty()) grid(out_, caption, head, rows);
  }

  void details(const Result& r) {
    const Measurements& last = looks(r).back();
    out_ << "<details" << (r.variant.name == "fp8" ? " open" : "") << "><summary>"
         << escaped(r.variant.name) << " <span>" << escaped(r.variant.what)
         << "</span></summary>\n<div class=\"beside\">";
    const char* titles[] = {"Y", "dX", "dW"};
    for (std::size_t role = 0; role < role_names.size(); ++role)
      layer_grid(
          std::string("Relative error of ") + titles[role] + ", step " + std::to_string(last.step),
          last, role);
    out_ << "</div>\n<div class=\"pair\">\n";
    amax_plot(r, "Largest values of inputs", Kind::input_of_a, Kind::input_of_down);
    amax_plot(r, "Largest values of weights and gradients", Kind::weights,
              Kind::gradients_along_features);
    out_ << "</div>";
    if (last.unknown)
      note(std::to_string(last.unknown) +
           " products were not measured: what their operands were before is not known.");
    out_ << "</details>\n";
  }

  void layer_grid(const std::string& caption, const Measurements& m, std::size_t role) {
    std::vector<std::string> names, head{""};
    std::vector<Index> layers;
    for (const auto& l : m.layers) {
      if (std::find(names.begin(), names.end(), l.place.name()) == names.end())
        names.push_back(l.place.name());
      if (layers.empty() || layers.back() != l.place.layer) {
        layers.push_back(l.place.layer);
        const Index depth = l.place.layer - config_.num_hidden_layers + 1;
        head.push_back(depth > 0 ? "MTP " + std::to_string(depth)
                                 : "layer " + std::to_string(l.place.layer));
      }
    }
    std::vector<std::vector<Cell>> rows;
    for (const std::string& name : names) {
      std::vector<Cell> row{{name}};
      for (const Index layer : layers) {
        Cell cell;
        for (const auto& l : m.layers)
          if (l.place.layer == layer && l.place.name() == name) {
            const double error = l.products[role].relative();
            cell = {percent(error, 2), error * 10};
          }
        row.push_back(cell);
      }
      rows.push_back(row);
    }
    grid(out_, caption, head, rows);
  }

  void amax_plot(const Result& r, const char* title, Kind first, Kind last) {
    std::vector<Curve> curves;
    for (auto k = static_cast<std::size_t>(first); k <= static_cast<std::size_t>(last); ++k) {
      Curve c{kind_names[k], static_cast<int>(k - static_cast<std::size_t>(first)), {}};
      for (const Measurements& m : looks(r))
        c.points.push_back({double(m.step), std::log2(m.kinds[k].amax)});
      curves.push_back(c);
    }
    plot(out_, title, "step", "log2 of the largest magnitude in any layer", curves, {}, 528, 250);
  }

  // A curve of values at steps 1, 2, ...
  static Curve curve_of(const std::string& name, int index, const std::vector<double>& values,
                        double factor = 1, bool faint = false) {
    Curve c{name, index % 6, {}, faint};
    c.dashed = index >= 6;
    for (std::size_t i = 0; i < values.size(); ++i)
      c.points.push_back({static_cast<double>(i + 1), factor * values[i]});
    return c;
  }

  const Study& study_;
  const StudyFacts& facts_;
  const dsv3::ModelConfig config_ = model_config(study_.options);
  std::vector<Done> done_;
  std::ostringstream out_;
};

}  // namespace example
