// How measurements look on the page: errors of products, histograms of codes, largest values.
#pragma once

#include "grid.hpp"
#include "study.hpp"

namespace example {

/// A variant that has run, and the number of its color.
struct Shown {
  const Result* result;
  int color;
};

/// What was measured in its products.
inline const std::vector<Measurements>& looks(const Result& r) {
  return r.runs.front().measurements;
}

inline std::string percent(double share, int digits) {
  return std::isfinite(share) ? decimal(100 * share, digits) + " %" : "-";
}
inline std::string signed_percent(double share, int digits) {
  return (share > 0 ? "+" : "") + percent(share, digits);
}

/// Values at steps 1, 2, ... in color number `index`; from the seventh on the colors come again,
/// dashed.
inline Curve curve_of(const std::string& name, int index, const std::vector<double>& values = {},
                      double factor = 1, bool faint = false) {
  Curve c{name, index % 6, {}, faint};
  c.dashed = index >= 6;
  for (std::size_t i = 0; i < values.size(); ++i)
    c.points.push_back({static_cast<double>(i + 1), factor * values[i]});
  return c;
}

namespace detail {

inline void note(std::ostream& out, const std::string& text) {
  out << "<p class=\"note\">" << escaped(text) << "</p>\n";
}

// The colors of several plots.
inline void color_key(std::ostream& out, const std::vector<Shown>& shown) {
  out << "<div class=\"key\">";
  for (const auto& [r, color] : shown)
    out << "<span><svg viewBox=\"0 0 20 4\"><path class=\"curve c" << color % 6
        << (color >= 6 ? " dashed" : "") << "\" d=\"M0 2h20\"/></svg>" << escaped(r->variant.name)
        << "</span>";
  out << "</div>\n";
}

// The outline of a histogram over exponents.
inline std::vector<Point> outline(const CodeCounts& counts) {
  std::vector<Point> points;
  if (counts.by_exponent.empty()) return points;
  const int last = counts.by_exponent.rbegin()->first;
  for (int e = counts.by_exponent.begin()->first; e <= last; ++e) {
    const auto found = counts.by_exponent.find(e);
    const double share = found == counts.by_exponent.end() ? 0 : 100 * counts.share(found->second);
    points.push_back({double(e), share});
    points.push_back({double(e + 1), share});
  }
  return points;
}

// share(codes of a kind) for each kind and variant, in the last step.
inline void share_grid(std::ostream& out, const char* caption, const std::vector<Shown>& shown,
                       auto&& share) {
  std::vector<std::string> head{""};
  for (const auto& [r, color] : shown) head.push_back(r->variant.name);
  std::vector<std::vector<Cell>> rows;
  for (std::size_t kind = 0; kind < kind_names.size(); ++kind) {
    std::vector<Cell> row{{kind_names[kind]}};
    for (const auto& [r, color] : shown) {
      const double value = share(looks(*r).back().kinds[kind]);
      row.push_back({percent(value, 3), value * 20});
    }
    rows.push_back(row);
  }
  grid(out, caption, head, rows);
}

// One product's error in every linear layer.
inline void layer_grid(std::ostream& out, const std::string& caption, const Measurements& m,
                       std::size_t role, const dsv3::ModelConfig& config) {
  std::vector<std::string> names, head{""};
  std::vector<Index> layers;
  for (const auto& l : m.layers) {
    if (std::find(names.begin(), names.end(), l.place.name()) == names.end())
      names.push_back(l.place.name());
    if (layers.empty() || layers.back() != l.place.layer) {
      layers.push_back(l.place.layer);
      const Index depth = l.place.layer - config.num_hidden_layers + 1;
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
  grid(out, caption, head, rows);
}

// Largest values over time of consecutive kinds, named without what they have in common.
inline void amax_plot(std::ostream& out, const Result& r, const char* title, Kind first, Kind last,
                      const std::string& common) {
  std::vector<Curve> curves;
  for (auto k = static_cast<std::size_t>(first); k <= static_cast<std::size_t>(last); ++k) {
    std::string name = kind_names[k];
    if (const auto at = name.find(common); at != std::string::npos) name.erase(at, common.size());
    Curve c = curve_of(name, static_cast<int>(k - static_cast<std::size_t>(first)));
    for (const Measurements& m : looks(r))
      c.points.push_back({double(m.step), std::log2(m.kinds[k].amax)});
    curves.push_back(c);
  }
  plot(out, title, "step", "log2 of the largest magnitude in any layer", curves, {}, 528, 250);
}

}  // namespace detail

/// Errors of products over time.
inline void error_plots(std::ostream& out, const std::vector<Shown>& shown) {
  detail::note(out,
               "Relative error, in the Frobenius norm, of the three products of a linear layer, "
               "Y = X W^T, dX = dY W and dW = dY^T X: means over all linear layers.");
  detail::color_key(out, shown);
  out << "<div class=\"three\">\n";
  const char* titles[] = {"Y", "dX", "dW"};
  for (const Role role : {Role::y, Role::dx, Role::dw}) {
    std::vector<Curve> curves;
    for (const auto& [r, color] : shown) {
      curves.push_back(curve_of("", color));
      for (const Measurements& m : looks(*r))
        curves.back().points.push_back({double(m.step), 100 * m.mean_error(role)});
    }
    plot(out, titles[static_cast<int>(role)], "step", "%", curves, {}, 352, 240, true);
  }
  out << "</div>\n";
}

/// Histograms of codes, underflow and saturation, in the last step.
inline void code_plots(std::ostream& out, const std::vector<Shown>& shown) {
  detail::note(
      out,
      "Codes of the last step by magnitude: the share of all codes of a kind in each power "
      "of two. What is missing to 100 % are zeros.");
  detail::color_key(out, shown);
  out << "<div class=\"three\">\n";
  for (std::size_t kind = 0; kind < kind_names.size(); ++kind) {
    std::vector<Curve> curves;
    for (const auto& [r, color] : shown) {
      curves.push_back(curve_of("", color));
      curves.back().points = detail::outline(looks(*r).back().kinds[kind]);
    }
    plot(out, kind_names[kind], "log2 of the code's magnitude", "% of codes", curves, {}, 352, 220,
         true);
  }
  out << "</div>\n";
  detail::share_grid(out, "Underflow: values other than 0 whose code is 0", shown,
                     [](const CodeCounts& c) { return c.share(c.underflow); });
  detail::share_grid(out, "Saturation: codes that are the format's largest", shown,
                     [](const CodeCounts& c) { return c.share(c.saturated); });
  detail::note(out,
               "A scale makes the largest value of its group the format's largest, so that is one "
               "code in each group by construction: 1/128 = 0.78 % of a tile of 128. Scales that "
               "are rounded up to powers of two leave fewer; scales that follow from the steps "
               "before clip what is larger now.");
}

/// A variant's errors layer by layer, and its largest values over time.
inline void layer_details(std::ostream& out, const Result& r, const dsv3::ModelConfig& config) {
  const Measurements& last = looks(r).back();
  out << "<details" << (r.variant.name == "fp8" ? " open" : "") << "><summary>"
      << escaped(r.variant.name) << " <span>" << escaped(r.variant.what)
      << "</span></summary>\n<div class=\"beside\">";
  const char* titles[] = {"Y", "dX", "dW"};
  for (std::size_t role = 0; role < role_names.size(); ++role)
    detail::layer_grid(
        out,
        std::string("Relative error of ") + titles[role] + ", step " + std::to_string(last.step),
        last, role, config);
  out << "</div>\n<div class=\"pair\">\n";
  detail::amax_plot(out, r, "Largest inputs", Kind::input_of_a, Kind::input_of_down, "input of ");
  detail::amax_plot(out, r, "Largest weights and gradients", Kind::weights,
                    Kind::gradients_along_features, " along features");
  out << "</div>";
  if (last.unknown)
    detail::note(out, std::to_string(last.unknown) +
                          " products were not measured: what their operands were before they were "
                          "quantised is not known.");
  out << "</details>\n";
}

}  // namespace example
