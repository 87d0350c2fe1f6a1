// Joins the sections that the experiments wrote into one page: report FOLDER NAME ...
#include <fstream>

#include "section.hpp"

namespace {

// Figures side by side, and all else over the whole width; one column where the page is narrow.
constexpr const char* style = R"(
article{margin:0 0 44px;display:grid;grid-template-columns:minmax(0,1fr);gap:12px}
article h2{font-size:20px;margin:26px 0 0}article p{margin:0}figure{margin:0}
article h2,article p,.scroll{grid-column:1/-1}p b{color:var(--text)}
figcaption{font-size:13px;color:var(--dim);margin-top:4px}
svg{max-width:560px;margin:auto}rect{stroke:var(--line)}
.scroll{overflow-x:auto}td{overflow-wrap:normal}.grid td:first-child{white-space:normal}
.grid td,.grid th,.grid td:last-child{padding:4px 14px 4px 0;text-align:left}
.grid th{vertical-align:bottom;font-weight:600}
nav a{margin-right:14px;color:var(--c0);display:inline-block;padding:3px 0}
@media(min-width:620px){article{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media(max-width:619px){body{padding:14px 10px 40px}figure{padding:7px}
.grid td,.grid th{min-width:76px}.grid td:nth-child(2){min-width:120px}
.grid td:first-child,.grid th:first-child{position:sticky;left:0;background:var(--card)}}
@media print{:root{--page:#fff}body{padding:0;font-size:12.5px}table,figcaption{font-size:11px}
nav{display:none}.grid td,.grid th,.grid td:last-child{padding-right:7px}
figure,tr{break-inside:avoid}.scroll{overflow:visible;break-inside:auto}
h2,h2+p,.grid tr:first-child{break-after:avoid}}
@page{size:A4;margin:14mm}
)";

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: report FOLDER NAME ...\n");
    return 2;
  }
  try {
    const std::string folder = argv[1];
    std::ostringstream page;
    example::begin_page(
        page, "The paper's claims, on a model that trains in minutes",
        "DeepSeek-V3's claims as experiments: each changes one thing, from several seeds. Every "
        "number comes from this run. " +
            example::processor(),
        style);
    page << "<nav>";
    for (int i = 2; i < argc; ++i) page << "<a href=\"#" << argv[i] << "\">" << argv[i] << "</a>";
    page << "</nav>\n";
    for (int i = 2; i < argc; ++i) {
      const std::string path = folder + "/" + argv[i] + ".html";
      std::ifstream section(path, std::ios::binary);
      if (!section) throw std::runtime_error("cannot read '" + path + "'");
      page << section.rdbuf();
    }
    page << example::end_of_page;
    dsv3::AtomicFile file(folder + "/report.html");
    file.write(page.str());
    file.commit();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "report: %s\n", error.what());
    return 1;
  }
}
