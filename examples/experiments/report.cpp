// Joins the sections that the experiments wrote into one page: report FOLDER NAME ...
#include <fstream>

#include "section.hpp"

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
        "article{margin:0 0 44px}article h2{font-size:20px;margin:26px 0 6px}article p{margin:8px "
        "0}.scroll{overflow-x:auto}.grid td:last-child{text-align:left}.grid td,.grid "
        "th{padding:4px 12px 4px 0;text-align:left;border-top:1px solid var(--line)}.grid "
        "td:first-child{white-space:normal}nav a{margin-right:14px}@media print{article{break-"
        "inside:avoid}}");
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
