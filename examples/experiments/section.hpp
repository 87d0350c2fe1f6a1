// What an experiment writes: a section of the report, as HTML, and its numbers, as JSON.
#pragma once

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
      for (const std::string& cell : row) html_ << "<td>" << example::escaped(cell) << "</td>";
      html_ << "</tr>\n";
    }
    html_ << "</table></figure>\n";
  }

  void plot(const std::string& title, const std::string& x, const std::string& y,
            std::vector<example::Curve> curves, const std::vector<example::Level>& levels = {},
            bool from_zero = false) {
    example::plot(html_, title, x, y, std::move(curves), levels, 760, 320, from_zero);
  }

  /// One row of cells for each name; a cell's value is relative to 1, which stays white: blue is
  /// less, orange more, full at 0 and 2.
  void heat_map(const std::string& title, const std::string& label,
                const std::vector<std::string>& names,
                const std::vector<std::vector<double>>& rows) {
    const double left = 150, cell = 18, width = 760;
    const double height = 46 + cell * static_cast<double>(rows.size()) + 8;
    html_ << "<figure><svg viewBox=\"0 0 " << width << ' ' << height
          << "\" role=\"img\" aria-label=\"" << example::escaped(title)
          << "\"><text class=\"title\" x=\"4\" y=\"18\">" << example::escaped(title)
          << "</text><text class=\"label\" x=\"4\" y=\"36\">" << example::escaped(label)
          << "</text>\n";
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const double y = 46 + cell * static_cast<double>(r);
      const double step = (width - left - 16) / static_cast<double>(rows[r].size());
      html_ << "<text class=\"label\" text-anchor=\"end\" x=\"" << left - 8 << "\" y=\"" << y + 13
            << "\">" << example::escaped(names[r]) << "</text>";
      for (std::size_t c = 0; c < rows[r].size(); ++c) {
        const double value = std::clamp(rows[r][c], 0.0, 2.0);
        const auto level = static_cast<int>(std::lround(8 * std::abs(value - 1)));
        html_ << "<rect class=\"" << (level == 0 ? "back" : value < 1 ? "u" : "o");
        if (level > 0) html_ << level;
        html_ << "\" x=\"" << example::decimal(left + step * static_cast<double>(c), 1) << "\" y=\""
              << y << "\" width=\"" << example::decimal(step - 1, 1) << "\" height=\"" << cell - 1
              << "\"/>";
      }
      html_ << '\n';
    }
    html_ << "</svg></figure>\n";
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
  std::string name_;
  std::ostringstream html_;
  nlohmann::ordered_json json_;
};

}  // namespace experiment
