// What the examples' HTML pages are made of: numbers as text, line plots as inline SVG, one style.
#pragma once

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "text.hpp"

namespace example {

/// A heading and rows of name and value.
struct Table {
  std::string title;
  std::vector<std::pair<std::string, std::string>> rows;
};

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
  bool dashed = false;
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

/// Where the legend of a plot writes each curve's name: right to left beside the title, or, where
/// the plot is narrow, left to right below it; in as many lines as that takes.
struct Legend {
  struct Entry {
    const Curve* curve;
    double x;
    int line;
  };
  std::vector<Entry> entries;
  int lines = 1;

  static double width_of(const Curve& c) {
    if (c.faint || c.name.empty() || c.points.empty()) return 0;
    const auto wide = std::count(c.name.begin(), c.name.end(), 'm');
    return 6.6 * static_cast<double>(c.name.size()) + 4 * double(wide) + 30;
  }

  Legend(const std::string& title, const std::vector<Curve>& curves, double right, bool below) {
    double at = right, least = 12 + 8.5 * static_cast<double>(title.size());
    if (below) {
      for (const Curve& c : curves) {
        const double width = width_of(c);
        if (width == 0) continue;
        if (lines == 1 || at + width > right) {
          at = 4;
          ++lines;
        }
        entries.push_back({&c, at, lines - 1});
        at += width;
      }
      return;
    }
    for (auto c = curves.rbegin(); c != curves.rend(); ++c) {
      const double width = width_of(*c);
      if (width == 0) continue;
      if (at - width < least && at < right) {
        at = right;
        ++lines;
      }
      at -= width;
      entries.push_back({&*c, at, lines - 1});
    }
  }
};

/// A line plot in a box of the given size. The x axis contains 0.
inline void plot(std::ostream& out, const std::string& title, const std::string& x_label,
                 const std::string& y_label, std::vector<Curve> curves,
                 const std::vector<Level>& levels, double width, double height,
                 bool from_zero = false, bool legend_below = false) {
  double x0 = 0, x1 = 1, y0 = from_zero ? 0 : INFINITY, y1 = -INFINITY;
  for (Curve& c : curves) {
    c.points = thinned(c.points, 500);
    for (const Point& p : c.points) {
      x0 = std::min(x0, p.x);
      x1 = std::max(x1, p.x);
      y0 = std::min(y0, p.y);
      y1 = std::max(y1, p.y);
    }
  }
  for (const Level& l : levels) y0 = std::min(y0, l.y), y1 = std::max(y1, l.y);
  const double left = 58, right = 16, bottom = 40;
  const Legend legend(title, curves, width - right, legend_below);
  const double top = 46 + 17 * (legend.lines - 1);
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
      << (legend_below ? top - 10 : 36) << "\">" << escaped(y_label) << "</text>\n";
  for (const Level& l : levels)
    out << "<path class=\"level\" d=\"M" << left << ' ' << decimal(py(l.y), 1) << 'H'
        << width - right << "\"/><text class=\"level-name\" text-anchor=\"end\" x=\""
        << width - right - 4 << "\" y=\"" << decimal(py(l.y) - 5, 1) << "\">" << escaped(l.name)
        << "</text>\n";
  for (const Curve& c : curves) {
    if (c.points.empty()) continue;
    out << "<path class=\"curve c" << c.color << (c.faint ? " faint" : "")
        << (c.dashed ? " dashed" : "") << "\" d=\"M";
    for (std::size_t i = 0; i < c.points.size(); ++i) out << (i ? "L" : "") << xy(c.points[i]);
    out << "\"/>\n";
    if (c.dots)
      for (const Point& p : c.points)
        out << "<circle class=\"f" << c.color << "\" r=\"3\" cx=\"" << decimal(px(p.x), 1)
            << "\" cy=\"" << decimal(py(p.y), 1) << "\"/>";
  }
  for (const auto& [c, x, line] : legend.entries)
    out << "<path class=\"curve c" << c->color << (c->dashed ? " dashed" : "") << "\" d=\"M"
        << decimal(x, 0) << ' ' << 14 + 17 * line << "h16\"/><text class=\"label\" x=\""
        << decimal(x + 21, 0) << "\" y=\"" << 18 + 17 * line << "\">" << escaped(c->name)
        << "</text>\n";
  out << "</svg></figure>\n";
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
.curve.faint{stroke-width:1;opacity:.5}.dashed{stroke-dasharray:6 4}.back{fill:var(--line);fill-opacity:.35}
)";

/// The page up to and including its heading.
inline void begin_page(std::ostream& out, const std::string& title, const std::string& subtitle,
                       const std::string& more_style = "") {
  out << "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
         "content=\"width=device-width,initial-scale=1\">\n<title>"
      << escaped(title) << "</title>\n<style>" << style;
  for (int i = 0; i < 6; ++i)
    out << ".c" << i << "{stroke:var(--c" << i << ")}.f" << i << "{fill:var(--c" << i << ")}";
  for (int i = 1; i <= 8; ++i)
    out << ".u" << i << "{fill:var(--under);fill-opacity:" << i / 8.0 << "}.o" << i
        << "{fill:var(--over);fill-opacity:" << i / 8.0 << '}';
  out << more_style << "</style></head>\n<body><h1>" << escaped(title) << "</h1><p>"
      << escaped(subtitle) << "</p>\n";
}

/// Names and values in large letters.
inline void tiles(std::ostream& out,
                  const std::vector<std::pair<std::string, std::string>>& names_and_values) {
  out << "<div class=\"tiles\">";
  for (const auto& [name, value] : names_and_values)
    out << "<div><b>" << escaped(value) << "</b>" << escaped(name) << "</div>";
  out << "</div>\n";
}

inline void tables(std::ostream& out, const std::vector<Table>& all) {
  out << "<div class=\"tables\">";
  for (const Table& table : all) {
    out << "<section><h2>" << escaped(table.title) << "</h2><table>";
    for (const auto& [name, value] : table.rows)
      out << "<tr><td>" << escaped(name) << "</td><td>" << escaped(value) << "</td></tr>";
    out << "</table></section>\n";
  }
  out << "</div>";
}

inline constexpr const char* end_of_page = "</body></html>\n";

}  // namespace example
