// What an experiment writes: a section of the report, as HTML, and its numbers, as JSON.
#pragma once

#include <array>
#include <dsv3/io/atomic_file.hpp>
#include <dsv3/io/json.hpp>
#include <sstream>

#include "../page.hpp"
#include "../spread.hpp"
#include "training.hpp"

namespace experiment {

using example::Spread;

/// Appends to both as it is told; write() puts them into the folder.
class Section {
 public:
  explicit Section(std::string name) : name_(std::move(name)) { json_["experiment"] = name_; }

  /// The question, and what the paper has to say on it.
  void question(const std::string& text, const std::string& paper) {
    html_ << "<article id=\"" << name_ << "\"><h2>" << example::escaped(text)
          << "</h2><p><b>The paper:</b> " << example::escaped(paper) << "</p>\n";
    json_["question"] = text;
    json_["paper"] = paper;
  }

  /// Columns of text under their names; the first column names the rows.
  void table(const std::vector<std::string>& columns,
             const std::vector<std::vector<std::string>>& rows) {
    html_ << "<figure class=\"scroll\"><table class=\"grid\"><tr>";
    for (const std::string& c : columns) html_ << "<th>" << example::escaped(c) << "</th>";
    html_ << "</tr>\n";
    for (const auto& row : rows) {
      html_ << "<tr>";
      for (const std::string& cell : row) html_ << "<td>" << with_arrows(cell) << "</td>";
      html_ << "</tr>\n";
    }
    html_ << "</table></figure>\n";
  }

  void plot(const std::string& title, const std::string& x, const std::string& y,
            std::vector<example::Curve> curves, const std::vector<example::Level>& levels = {},
            bool from_zero = false) {
    example::plot(html_, title, x, y, std::move(curves), levels, width, 300, from_zero, true);
  }

  /// One row of cells for each name. A cell's value is relative to 1, which stays white: blue is
  /// less, orange more, full at 0 and 2; `key` names these three.
  void heat_map(const std::string& title, const std::string& caption,
                const std::array<std::string, 3>& key, const std::vector<std::string>& names,
                const std::vector<std::vector<double>>& rows) {
    const double left = 104, cell = 20, top = 28;
    const double bottom = top + cell * static_cast<double>(rows.size()) + 8;
    html_ << "<figure><svg viewBox=\"0 0 " << width << ' ' << bottom + 22
          << "\" role=\"img\" aria-label=\"" << example::escaped(title)
          << "\"><text class=\"title\" x=\"4\" y=\"18\">" << example::escaped(title) << "</text>\n";
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const double y = top + cell * static_cast<double>(r);
      const double step = (width - left - 8) / static_cast<double>(rows[r].size());
      label(left - 8, y + 14, names[r], "end");
      for (std::size_t c = 0; c < rows[r].size(); ++c)
        rectangle(rows[r][c], left + step * static_cast<double>(c), y, step - 1, cell - 1);
      html_ << '\n';
    }
    for (int i = 0; i < 3; ++i) {
      const double x = left + i * (width - left - 8) / 3;
      rectangle(i, x, bottom, 12, 12);
      label(x + 17, bottom + 10, key[static_cast<std::size_t>(i)], "start");
    }
    html_ << "</svg><figcaption>" << example::escaped(caption) << "</figcaption></figure>\n";
  }

  /// What the numbers say, and what a model of this size can and cannot say.
  void findings(const std::string& measured, const std::string& limits) {
    html_ << "<p><b>Here:</b> " << example::escaped(measured) << "</p><p><b>Limits:</b> "
          << example::escaped(limits) << "</p></article>\n";
    json_["measured"] = measured;
    json_["limits"] = limits;
  }

  nlohmann::ordered_json& json() { return json_; }

  /// DIR/NAME.html and DIR/NAME.json, each whole or not at all.
  void write(const std::string& folder) const {
    const auto put = [&](const std::string& ending, const std::string& text) {
      dsv3::AtomicFile file(folder + "/" + name_ + ending);
      file.write(text);
      file.commit();
    };
    put(".html", html_.str());
    put(".json", json_.dump(1) + '\n');
  }

 private:
  // "a -> b" with an arrow that no line break divides.
  static std::string with_arrows(const std::string& text) {
    std::string out = example::escaped(text);
    for (std::size_t at; (at = out.find("-&gt;")) != std::string::npos;)
      out.replace(at, 5, "&rarr;");
    return out;
  }

  static constexpr double width = 420;  // of a figure, two of which stand side by side

  void label(double x, double y, const std::string& text, const char* anchor) {
    html_ << "<text class=\"label\" text-anchor=\"" << anchor << "\" x=\"" << example::decimal(x, 1)
          << "\" y=\"" << y << "\">" << example::escaped(text) << "</text>";
  }

  // In the colour of a heat map's value.
  void rectangle(double value, double x, double y, double w, double h) {
    value = std::clamp(value, 0.0, 2.0);
    const auto level = static_cast<int>(std::lround(8 * std::abs(value - 1)));
    html_ << "<rect class=\"" << (level == 0 ? "back" : value < 1 ? "u" : "o");
    if (level > 0) html_ << level;
    html_ << "\" x=\"" << example::decimal(x, 1) << "\" y=\"" << y << "\" width=\""
          << example::decimal(w, 1) << "\" height=\"" << h << "\"/>";
  }

  std::string name_;
  std::ostringstream html_;
  nlohmann::ordered_json json_;
};

}  // namespace experiment
