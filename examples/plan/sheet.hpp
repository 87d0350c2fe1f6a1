// Figures with their names: for the terminal, for JSON, for HTML.
#pragma once

#include <nlohmann/json.hpp>

#include "../page.hpp"

namespace example {

/// Tables of figures. Each has a key and a number for programs, a name and a text for people.
class Sheet {
 public:
  void table(const char* key, const std::string& title) {
    tables_.push_back({title, {}});
    part_ = &(json_[key] = nlohmann::ordered_json::object());
  }

  template <class Number>
  void add(const char* key, const std::string& name, const Number& number,
           const std::string& text) {
    tables_.back().rows.emplace_back(name, text);
    (*part_)[key] = number;
  }
  void count(const char* key, const std::string& name, Index n) { add(key, name, n, grouped(n)); }
  void rounded(const char* key, const std::string& name, double n) {
    add(key, name, n, n < 1e15 ? grouped(static_cast<Index>(n + 0.5)) : number(n, 4));
  }
  void bytes(const char* key, const std::string& name, double n) {
    add(key, name, n, decimal(n * 1e-9, n < 1e9 ? 3 : 2) + " GB");
  }
  void gflop(const char* key, const std::string& name, double n) {
    add(key, name, n, decimal(n * 1e-9, n < 1e9 ? 4 : 2) + " GFLOP");
  }
  void share(const char* key, const std::string& name, double part) {
    add(key, name, part, decimal(100 * part, 2) + " %");
  }

  const std::vector<Table>& tables() const { return tables_; }
  const nlohmann::ordered_json& json() const { return json_; }

  std::string text() const {
    std::string all;
    for (const Table& table : tables_) {
      all += (all.empty() ? "" : "\n") + table.title + '\n';
      for (const auto& [name, value] : table.rows) {
        const std::size_t width = name.size() + value.size();
        all += "  " + name + std::string(width < 66 ? 66 - width : 1, ' ') + value + '\n';
      }
    }
    return all;
  }

 private:
  std::vector<Table> tables_;
  nlohmann::ordered_json json_;
  nlohmann::ordered_json* part_ = nullptr;
};

}  // namespace example
