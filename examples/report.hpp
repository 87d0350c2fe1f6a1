// One self-contained HTML page about a training run.
#pragma once

#include <array>
#include <sstream>

#include "metrics.hpp"
#include "page.hpp"

namespace example {

/// What the page says besides the metrics.
struct Report {
  std::string title, subtitle;
  std::vector<std::pair<std::string, std::string>> tiles;  ///< name and value, in large letters
  std::optional<double> unigram, bigram;                   ///< nats a token
  std::vector<std::string> layer_names;                    ///< of the rows of Metrics::load
  std::vector<Table> tables;
};

namespace detail {

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

}  // namespace detail

/// Writes the page to `path`, replacing what was there.
/// Errors   std::runtime_error where it cannot be written.
inline void write_report(const std::string& path, const Report& report,
                         const std::vector<Metrics>& metrics) {
  std::ostringstream out;
  begin_page(out, report.title, report.subtitle);
  tiles(out, report.tiles);

  const auto curve = [&](auto value) {
    std::vector<Point> points;
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
  std::vector<Level> levels;
  if (report.unigram)
    levels.push_back({"unigram entropy " + decimal(*report.unigram, 3), *report.unigram});
  if (report.bigram)
    levels.push_back({"bigram entropy " + decimal(*report.bigram, 3), *report.bigram});
  plot(out, "Loss", "step", "nats per token", losses, levels, 1080, 380);

  out << "<div class=\"pair\">\n";
  const auto small = [&](const char* title, const char* unit, auto value, int color, bool zero) {
    plot(out, title, "step", unit, {{"", color, curve(value)}}, {}, 528, 230, zero);
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

  tables(out, report.tables);
  out << end_of_page;

  dsv3::AtomicFile file(path);
  file.write(out.str());
  file.commit();
}

}  // namespace example
