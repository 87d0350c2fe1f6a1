// Tables with shaded cells for the study's page.
#pragma once

#include "../page.hpp"

namespace example {

/// What the page needs beside the common style.
inline constexpr const char* study_style = R"(
h2.part{margin:34px 0 0;font-size:19px}p.note{margin:6px 0 0;max-width:900px}
ul{margin:10px 0 0;padding-left:20px;color:var(--dim);max-width:960px}li{margin:5px 0}
ul b{color:var(--text)}
.three{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:0 12px}
.scroll{overflow-x:auto;margin-top:12px}
table.grid{background:var(--card);border:1px solid var(--line);border-radius:8px;
border-collapse:separate;border-spacing:0;font-size:13px}
table.grid caption{text-align:left;font-weight:600;padding:0 0 6px;font-size:13.5px}
table.grid th,table.grid td{padding:4px 10px;text-align:right;font-weight:400;white-space:nowrap;
border-top:1px solid var(--line);color:var(--text);font-variant-numeric:tabular-nums}
table.grid tr:first-child th{border-top:0;color:var(--dim);vertical-align:bottom}
table.grid th:first-child,table.grid td.word{text-align:left}
table.grid td.word{white-space:normal;color:var(--dim)}
details{background:var(--card);border:1px solid var(--line);border-radius:8px;margin-top:12px;
padding:10px 14px}summary{cursor:pointer;font-weight:600}summary span{font-weight:400;
color:var(--dim)}details figure{border:0;padding:4px 0}
.beside{display:flex;flex-wrap:wrap;gap:6px 18px}.beside table.grid td,.beside table.grid th{padding:3px 8px}
.key{display:flex;flex-wrap:wrap;gap:2px 18px;margin-top:8px;font-size:13px;color:var(--dim)}
.key svg{display:inline-block;width:20px;margin-right:6px;vertical-align:middle}
)";

/// A cell: text, and a shade between 0 and 1.
struct Cell {
  std::string text;
  double shade = 0;
  bool word = false;
};

/// A table: the first row names columns, the first cell of each row names it.
inline void grid(std::ostream& out, const std::string& caption,
                 const std::vector<std::string>& head, const std::vector<std::vector<Cell>>& rows) {
  out << "<div class=\"scroll\"><table class=\"grid\"><caption>" << escaped(caption)
      << "</caption><tr>";
  for (const std::string& text : head) out << "<th>" << escaped(text) << "</th>";
  out << "</tr>\n";
  for (const auto& row : rows) {
    out << "<tr>";
    for (std::size_t i = 0; i < row.size(); ++i) {
      const Cell& cell = row[i];
      const char* tag = i == 0 ? "th" : "td";
      out << '<' << tag << (cell.word ? " class=\"word\"" : "");
      if (cell.shade > 0)
        out << " style=\"background:rgba(217,72,15," << decimal(0.55 * std::min(cell.shade, 1.0), 2)
            << ")\"";
      out << '>' << escaped(cell.text) << "</" << tag << '>';
    }
    out << "</tr>\n";
  }
  out << "</table></div>\n";
}

}  // namespace example
