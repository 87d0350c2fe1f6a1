// One self-contained HTML page about a training run. Its plots are inline SVG, drawn below.
#pragma once

#include <algorithm>
#include <array>
#include <sstream>
#include <utility>

#include "metrics.hpp"

namespace example {

/// A heading and rows of name and value.
struct Table {
  std::string title;
  std::vector<std::pair<std::string, std::string>> rows;
};

/// What the page says besides the metrics.
struct Report {
  std::string title, subtitle;
  std::vector<std::pair<std::string, std::string>> tiles;  ///< name and value, in large letters
  std::optional<double> unigram, bigram;                   ///< nats a token
  std::vector<std::string> layer_names;                    ///< of the rows of Metrics::load
  std::vector<Table> tables;
};

/// A number with `digits` significant digits, as short as it gets: 0.0022, 1.2e-05, 3200.
inline std::string number(double value, int digits = 3) {
  char text[40];
  std::snprintf(text, sizeof text, "%.*g", digits, value);
  return text;
}

/// A number with `digits` digits after the point.
inline std::string decimal(double value, int digits) {
  char text[400];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

namespace detail {

inline std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  return out;
}

struct Point {
  double x, y;
};

struct Curve {
  std::string name;
  int color;  // 0 to 5, a class of the style sheet
  std::vector<Point> points;
  bool faint = false, dots = false;  // faint: drawn behind, without a legend
};

struct Level {  // a horizontal line across the plot
  std::string name;
  double y;
};

/// At most `most` points, each the mean of equally many; points that are not finite are left out.
inline std::vector<Point> thinned(const std::vector<Point>& points, std::size_t most) {
  std::vector<Point> finite, out;
  for (const Point& p : points)
    if (std::isfinite(p.y)) finite.push_back(p);
  const std::size_t group = (finite.size() + most - 1) / most;
  for (std::size_t i = 0; i < finite.size(); i += group) {
    Point mean{0, 0};
    const std::size_t n = std::min(group, finite.size() - i);
    for (std::size_t k = i; k < i + n; ++k) {
      mean.x += finite[k].x / static_cast<double>(n);
      mean.y += finite[k].y / static_cast<double>(n);
    }
    out.push_back(mean);
  }
  return out;
}

/// The mean over `window` points before and after each, as far as there are any.
inline std::vector<Point> smoothed(const std::vector<Point>& points, std::size_t window) {
  std::vector<Point> out;
  for (std::size_t i = 0; i < points.size(); ++i) {
    const std::size_t first = i - std::min(window, i);
    const std::size_t end = std::min(i + window + 1, points.size());
    double sum = 0;
    for (std::size_t k = first; k < end; ++k) sum += points[k].y;
    out.push_back({points[i].x, sum / static_cast<double>(end - first)});
  }
  return out;
}

/// The largest of 1, 2 and 5 times a power of ten that divides `range` into at least `least`.
inline double tick_step(double range, int least) {
  const double power = std::pow(10.0, std::floor(std::log10(range / least)));
  for (const double factor : {5.0, 2.0})
    if (range / (factor * power) >= least) return factor * power;
  return power;
}

/// A line plot in a box of the given size.
inline void plot(std::ostream& out, const std::string& title, const std::string& x_label,
                 const std::string& y_label, std::vector<Curve> curves,
                 const std::vector<Level>& levels, double width, double height,
                 bool from_zero = false) {
  const double left = 58, right = 16, top = 46, bottom = 40;
  double x0 = 0, x1 = 1, y0 = from_zero ? 0 : INFINITY, y1 = -INFINITY;
  for (Curve& c : curves) {
    c.points = thinned(c.points, 500);
    for (const Point& p : c.points) {
      x1 = std::max(x1, p.x);
      y0 = std::min(y0, p.y);
      y1 = std::max(y1, p.y);
    }
  }
  for (const Level& l : levels) y0 = std::min(y0, l.y), y1 = std::max(y1, l.y);
  out << "<figure><svg viewBox=\"0 0 " << width << ' ' << height << "\" role=\"img\" aria-label=\""
      << escaped(title) << "\">\n<text class=\"title\" x=\"4\" y=\"18\">" << escaped(title)
      << "</text>\n";
  if (!(y1 >= y0)) {  // nothing finite to draw
    out << "<text x=\"" << left << "\" y=\"" << height / 2 << "\">no data</text></svg></figure>\n";
    return;
  }
  if (y1 - y0 < 1e-12 * std::max(1.0, std::abs(y1)) || y1 == y0)
    y1 = y0 + std::max(std::abs(y0) * 0.1, 1e-6);
  const double margin = (y1 - y0) * 0.05;
  y1 += margin;
  if (!from_zero) y0 -= margin;
  const auto px = [&](double x) { return left + (x - x0) / (x1 - x0) * (width - left - right); };
  const auto py = [&](double y) {
    return height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom);
  };
  const auto xy = [&](const Point& p) { return decimal(px(p.x), 1) + ' ' + decimal(py(p.y), 1); };

  const double dy = tick_step(y1 - y0, 4), dx = tick_step(x1 - x0, width > 700 ? 8 : 4);
  for (double k = std::ceil(y0 / dy); k * dy <= y1; ++k) {
    const double y = k * dy;
    out << "<path class=\"grid\" d=\"M" << left << ' ' << decimal(py(y), 1) << 'H' << width - right
        << "\"/><text class=\"tick\" text-anchor=\"end\" x=\"" << left - 6 << "\" y=\""
        << decimal(py(y) + 4, 1) << "\">" << number(std::abs(y) < 1e-9 * dy ? 0 : y, 6)
        << "</text>\n";
  }
  for (double k = std::ceil(x0 / dx); k * dx <= x1 * 1.0001; ++k)
    out << "<text class=\"tick\" text-anchor=\"middle\" x=\"" << decimal(px(k * dx), 1) << "\" y=\""
        << height - bottom + 16 << "\">" << number(k * dx, 6) << "</text>\n";
  out << "<path class=\"axis\" d=\"M" << left << ' ' << height - bottom << 'H' << width - right
      << "\"/><text class=\"label\" text-anchor=\"end\" x=\"" << width - right << "\" y=\""
      << height - 6 << "\">" << escaped(x_label) << "</text><text class=\"label\" x=\"4\" y=\""
      << 36 << "\">" << escaped(y_label) << "</text>\n";
  for (const Level& l : levels)
    out << "<path class=\"level\" d=\"M" << left << ' ' << decimal(py(l.y), 1) << 'H'
        << width - right << "\"/><text class=\"level-name\" text-anchor=\"end\" x=\""
        << width - right - 4 << "\" y=\"" << decimal(py(l.y) - 5, 1) << "\">" << escaped(l.name)
        << "</text>\n";
  for (const Curve& c : curves) {
    if (c.points.empty()) continue;
    out << "<path class=\"curve c" << c.color << (c.faint ? " faint" : "") << "\" d=\"M";
    for (std::size_t i = 0; i < c.points.size(); ++i) out << (i ? "L" : "") << xy(c.points[i]);
    out << "\"/>\n";
    if (c.dots)
      for (const Point& p : c.points)
        out << "<circle class=\"f" << c.color << "\" r=\"3\" cx=\"" << decimal(px(p.x), 1)
            << "\" cy=\"" << decimal(py(p.y), 1) << "\"/>";
  }
  double at = width - right;  // the legend, right to left, beside the title
  for (auto c = curves.rbegin(); c != curves.rend(); ++c) {
    if (c->faint || c->name.empty() || c->points.empty()) continue;
    at -= 6.6 * static_cast<double>(c->name.size()) + 30;
    out << "<path class=\"curve c" << c->color << "\" d=\"M" << decimal(at, 0)
        << " 14h16\"/><text class=\"label\" x=\"" << decimal(at + 21, 0) << "\" y=\"18\">"
        << escaped(c->name) << "</text>\n";
  }
  out << "</svg></figure>\n";
}

/// Load of each expert (rows, grouped by layer) over the steps (columns), relative to its layer's
/// mean: class u8 is no token at all, o8 twice the mean or more.
inline void heat_map(std::ostream& out, const std::vector<Metrics>& metrics,
                     const std::vector<std::string>& layer_names, double width) {
  if (metrics.empty() || metrics.back().load.empty()) return;
  const auto& shape = metrics.back().load;
  std::size_t rows = 0;
  for (const auto& layer : shape) rows += layer.size();
  if (rows == 0) return;
  const std::size_t columns = std::min<std::size_t>(metrics.size(), 96);
  const double left = 96, right = 16, top = 58, gap = 10;
  const double cell = std::clamp(420.0 / static_cast<double>(rows), 1.5, 12.0);
  const double height =
      top + 40 + cell * static_cast<double>(rows) + gap * static_cast<double>(shape.size());
  const double step = (width - left - right) / static_cast<double>(columns);
  std::array<std::string, 17> cells;  // 8 is balanced and stays background
  double y = top;
  out << "<figure><svg viewBox=\"0 0 " << width << ' ' << decimal(height, 0)
      << "\" role=\"img\" aria-label=\"Expert load\">\n<text class=\"title\" x=\"4\" y=\"18\">"
         "Expert load</text><text class=\"label\" x=\"4\" y=\"36\">one row per expert, relative "
         "to the mean of its layer</text>\n";
  for (std::size_t l = 0; l < shape.size(); ++l) {
    const std::size_t experts = shape[l].size();
    out << "<rect class=\"back\" x=\"" << left << "\" y=\"" << decimal(y, 1) << "\" width=\""
        << width - left - right << "\" height=\"" << decimal(cell * static_cast<double>(experts), 1)
        << "\"/><text class=\"label\" text-anchor=\"end\" x=\"" << left - 8 << "\" y=\""
        << decimal(y + cell * static_cast<double>(experts) / 2 + 4, 1) << "\">"
        << escaped(l < layer_names.size() ? layer_names[l] : "layer " + std::to_string(l))
        << "</text>\n";
    for (std::size_t c = 0; c < columns; ++c) {
      std::vector<double> load(experts);
      double total = 0;
      for (std::size_t m = c * metrics.size() / columns; m < (c + 1) * metrics.size() / columns;
           ++m) {
        if (metrics[m].load.size() != shape.size() || metrics[m].load[l].size() != experts)
          continue;
        for (std::size_t e = 0; e < experts; ++e) {
          load[e] += static_cast<double>(metrics[m].load[l][e]);
          total += static_cast<double>(metrics[m].load[l][e]);
        }
      }
      if (total == 0) continue;
      for (std::size_t e = 0; e < experts; ++e) {
        const double relative = load[e] * static_cast<double>(experts) / total;
        const auto level = static_cast<std::size_t>(std::min(relative, 2.0) * 8 + 0.5);
        cells[level] += 'M' + decimal(left + step * static_cast<double>(c), 1) + ' ' +
                        decimal(y + cell * static_cast<double>(e), 1) + 'h' + decimal(step, 1) +
                        'v' + decimal(cell, 1) + "h-" + decimal(step, 1) + 'z';
      }
    }
    y += cell * static_cast<double>(experts) + gap;
  }
  for (std::size_t i = 0; i < cells.size(); ++i)
    if (i != 8 && !cells[i].empty())
      out << "<path class=\"" << (i < 8 ? 'u' : 'o') << (i < 8 ? 8 - i : i - 8) << "\" d=\""
          << cells[i] << "\"/>\n";
  const double x1 = static_cast<double>(metrics.back().step);
  const double x0 = static_cast<double>(metrics.front().step - 1), dx = tick_step(x1 - x0, 8);
  for (double k = std::ceil(x0 / dx); k * dx <= x1; ++k)
    out << "<text class=\"tick\" text-anchor=\"middle\" x=\""
        << decimal(left + (k * dx - x0) / (x1 - x0) * (width - left - right), 1) << "\" y=\""
        << decimal(y + 8, 1) << "\">" << number(k * dx, 6) << "</text>\n";
  out << "<text class=\"label\" text-anchor=\"end\" x=\"" << width - right << "\" y=\""
      << decimal(y + 26, 1) << "\">step</text>\n";
  const double key = width - right - 17 * 14;  // the legend
  for (int i = 0; i < 17; ++i)
    out << "<rect class=\""
        << (i < 8   ? "u" + std::to_string(8 - i)
            : i > 8 ? "o" + std::to_string(i - 8)
                    : "back")
        << "\" x=\"" << key + 14 * i << "\" y=\"8\" width=\"14\" height=\"12\"/>";
  out << "<text class=\"tick\" x=\"" << key
      << "\" y=\"34\">0</text><text class=\"tick\" "
         "text-anchor=\"middle\" x=\""
      << key + 119 << "\" y=\"34\">1 = mean</text><text class=\"tick\" text-anchor=\"end\" x=\""
      << width - right << "\" y=\"34\">2 or more</text></svg></figure>\n";
}

inline constexpr const char* style = R"(
:root{--page:#f6f6f4;--card:#fff;--text:#1c1d20;--dim:#63666d;--line:#e4e4e0;--axis:#a2a5ab;
--c0:#2563c9;--c1:#d9480f;--c2:#0b8a5f;--c3:#8a3ffc;--c4:#b5831a;--c5:#c2255c;--under:#2563c9;
--over:#d9480f;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--page:#141518;--card:#1d1f23;--text:#ececee;--dim:#a4a7ae;
--line:#33363c;--axis:#6c7078;--c0:#6aa5ff;--c1:#ff8a5c;--c2:#3ecf97;--c3:#b794ff;--c4:#e3b341;
--c5:#ff7aa8;--under:#6aa5ff;--over:#ff8a5c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:28px 20px 48px;background:var(--page);color:var(--text);
font:15px/1.45 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:25px;margin:0}h2{font-size:16px;margin:0 0 8px}p{margin:4px 0 20px;color:var(--dim)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.tiles div,figure,section{background:var(--card);border:1px solid var(--line);border-radius:8px}
.tiles div{padding:10px 14px;color:var(--dim);font-size:13px}
.tiles b{display:block;color:var(--text);font-size:21px;font-weight:600}
figure{margin:12px 0 0;padding:12px}svg{display:block;width:100%;height:auto}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:0 12px}
.tables{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:12px;
margin-top:12px;align-items:start}section{padding:14px}
table{border-collapse:collapse;width:100%;font-size:13.5px}
td{padding:3px 0;border-top:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
td:first-child{color:var(--dim);padding-right:14px;white-space:nowrap}
td:last-child{text-align:right;font-variant-numeric:tabular-nums}
text{fill:var(--text);font-size:12px}text.title{font-size:14px;font-weight:600}
text.tick,text.label{fill:var(--dim)}text.level-name{fill:var(--dim)}
path{fill:none}.grid{stroke:var(--line)}.axis{stroke:var(--axis)}
.level{stroke:var(--dim);stroke-dasharray:5 4}.curve{stroke-width:2;stroke-linejoin:round}
.curve.faint{stroke-width:1;opacity:.5}.back{fill:var(--line);fill-opacity:.35}
)";

}  // namespace detail

/// Writes the page to `path`, replacing what was there.
/// Errors   std::runtime_error where it cannot be written.
inline void write_report(const std::string& path, const Report& report,
                         const std::vector<Metrics>& metrics) {
  using detail::Curve;
  std::ostringstream out;
  out << "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
         "content=\"width=device-width,initial-scale=1\">\n<title>"
      << detail::escaped(report.title) << "</title>\n<style>" << detail::style;
  for (int i = 0; i < 6; ++i)
    out << ".c" << i << "{stroke:var(--c" << i << ")}.f" << i << "{fill:var(--c" << i << ")}";
  for (int i = 1; i <= 8; ++i)
    out << ".u" << i << "{fill:var(--under);fill-opacity:" << i / 8.0 << "}.o" << i
        << "{fill:var(--over);fill-opacity:" << i / 8.0 << '}';
  out << "</style></head>\n<body><h1>" << detail::escaped(report.title) << "</h1><p>"
      << detail::escaped(report.subtitle) << "</p>\n<div class=\"tiles\">";
  for (const auto& [name, value] : report.tiles)
    out << "<div><b>" << detail::escaped(value) << "</b>" << detail::escaped(name) << "</div>";
  out << "</div>\n";

  const auto curve = [&](auto value) {
    std::vector<detail::Point> points;
    for (const Metrics& m : metrics) points.push_back({static_cast<double>(m.step), value(m)});
    return points;
  };
  const auto loss = curve([](const Metrics& m) { return m.loss; });
  const std::size_t window = metrics.size() / 60;
  std::vector<Curve> losses{{"", 0, loss, true}, {"train (smoothed)", 0, smoothed(loss, window)}};
  const std::size_t depths = metrics.empty() ? 0 : metrics.back().mtp_loss.size();
  for (std::size_t d = 0; d < depths; ++d)
    losses.push_back({"MTP depth " + std::to_string(d + 1), 2 + static_cast<int>(d % 4),
                      smoothed(curve([d](const Metrics& m) {
                                 return d < m.mtp_loss.size() ? m.mtp_loss[d] : NAN;
                               }),
                               window)});
  Curve held_out{"held-out", 1, {}, false, true};
  for (const Metrics& m : metrics)
    if (m.held_out) held_out.points.push_back({static_cast<double>(m.step), *m.held_out});
  losses.push_back(held_out);
  std::vector<detail::Level> levels;
  if (report.unigram)
    levels.push_back({"unigram entropy " + decimal(*report.unigram, 3), *report.unigram});
  if (report.bigram)
    levels.push_back({"bigram entropy " + decimal(*report.bigram, 3), *report.bigram});
  detail::plot(out, "Loss", "step", "nats per token", losses, levels, 1080, 380);

  out << "<div class=\"pair\">\n";
  const auto small = [&](const char* title, const char* unit, auto value, int color, bool zero) {
    detail::plot(out, title, "step", unit, {{"", color, curve(value)}}, {}, 528, 230, zero);
  };
  small(
      "Learning rate", "per step", [](const Metrics& m) { return m.lr; }, 0, true);
  small(
      "Load imbalance: MaxVio", "(max - mean) / mean, mean over layers",
      [](const Metrics& m) { return m.max_violation; }, 1, true);
  small(
      "Throughput", "tokens per second", [](const Metrics& m) { return m.tokens_per_second; }, 2,
      true);
  small(
      "Gradient norm", "L2, before clipping", [](const Metrics& m) { return m.grad_norm; }, 3,
      true);
  out << "</div>\n";
  detail::heat_map(out, metrics, report.layer_names, 1080);

  out << "<div class=\"tables\">";
  for (const Table& table : report.tables) {
    out << "<section><h2>" << detail::escaped(table.title) << "</h2><table>";
    for (const auto& [name, value] : table.rows)
      out << "<tr><td>" << detail::escaped(name) << "</td><td>" << detail::escaped(value)
          << "</td></tr>";
    out << "</table></section>\n";
  }
  out << "</div></body></html>\n";

  dsv3::AtomicFile file(path);
  file.write(out.str());
  file.commit();
}

}  // namespace example
