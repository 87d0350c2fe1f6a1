// What the study measures inside one optimizer step: codes by kind of tensor, errors of products.
#pragma once

#include <array>
#include <cmath>
#include <dsv3/core/scalar.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "plain_values.hpp"

namespace example {

/// Kinds of tensors that are codes.
enum class Kind {
  input_of_a,
  input_of_q_b,
  input_of_kv_b,
  input_of_o,
  input_of_gate,
  input_of_down,
  inputs_along_tokens,
  weights,
  gradients_along_features,
  gradients_along_tokens
};
inline constexpr std::array kind_names = {
    "input of q_a, kv_a",       "input of q_b",          "input of kv_b",       "input of o",
    "input of gate, up",        "input of down",         "inputs along tokens", "weights",
    "gradients along features", "gradients along tokens"};

/// Codes of one kind of tensor, in one step.
struct CodeCounts {
  Index codes = 0;
  Index underflow = 0;               ///< code 0 for a value that is not
  Index saturated = 0;               ///< the format's largest value
  std::map<int, Index> by_exponent;  ///< floor(log2 |code|) of codes other than 0
  double amax = 0;                   ///< largest |value| before it was quantised

  template <class C>
  void add(View<const C, 2> q, const PlainMatrix& plain) {
    std::array<Index, 128> magnitudes{};
    for (Index i = 0; i < q.extent(0); ++i)
      for (Index j = 0; j < q.extent(1); ++j) {
        const auto magnitude = static_cast<std::size_t>(q(i, j).code & 127u);
        ++magnitudes[magnitude];
        underflow += magnitude == 0 && plain(i, j) != 0;
        amax = std::max(amax, std::abs(plain(i, j)));
      }
    codes += q.size();
    saturated += magnitudes[C::format::largest];
    for (std::uint32_t m = 1; m <= C::format::largest; ++m)
      if (magnitudes[m]) by_exponent[std::ilogb(C::format::decode(m))] += magnitudes[m];
  }

  double share(Index count) const {
    return codes ? static_cast<double>(count) / static_cast<double>(codes) : 0;
  }
};

/// Squared Frobenius norms of the error of products and of their exact values.
struct ProductError {
  double error = 0, exact = 0;

  void add(View<const float, 2> c, View<const double, 2> reference) {
    for (Index i = 0; i < c.extent(0); ++i)
      for (Index j = 0; j < c.extent(1); ++j) {
        const double d = double(c(i, j)) - reference(i, j);
        error += d * d;
        exact += reference(i, j) * reference(i, j);
      }
  }

  double relative() const { return std::sqrt(error / exact); }  ///< NaN where nothing was added
};

/// The three products of a linear layer.
enum class Role { y, dx, dw };
inline constexpr std::array role_names = {"y", "dx", "dw"};

/// A linear layer; all experts of a block count as one.
struct Place {
  Index layer = 0;
  std::string family;      ///< "experts", "shared"; empty for the others
  std::string projection;  ///< "q_a", "gate", ...

  bool operator==(const Place&) const = default;

  /// Of the checkpoint name of a weight, as "model.layers.3.mlp.experts.7.gate_proj.weight".
  static Place of(const std::string& weight) {
    Place place;
    place.layer = std::stol(weight.substr(std::string("model.layers.").size()));
    if (weight.find(".experts.") != std::string::npos) place.family = "experts";
    if (weight.find(".shared_experts.") != std::string::npos) place.family = "shared";
    const std::size_t end = weight.find("_proj"), begin = weight.rfind('.', end) + 1;
    place.projection = weight.substr(begin, end - begin);
    return place;
  }

  std::string name() const { return family.empty() ? projection : family + " " + projection; }

  /// The kind of its input.
  Kind input() const {
    if (projection == "q_b") return Kind::input_of_q_b;
    if (projection == "kv_b") return Kind::input_of_kv_b;
    if (projection == "o") return Kind::input_of_o;
    if (projection == "gate" || projection == "up") return Kind::input_of_gate;
    return projection == "down" ? Kind::input_of_down : Kind::input_of_a;
  }
};

/// All of it.
struct Measurements {
  struct Layer {
    Place place;
    std::array<ProductError, 3> products;  // by Role
  };
  Index step = 0;
  std::vector<Layer> layers;  // in the order of the checkpoint
  std::array<CodeCounts, kind_names.size()> kinds;
  Index unknown = 0;  ///< products of codes whose plain values are not known

  std::array<ProductError, 3>& products(const Place& place) {
    for (Layer& layer : layers)
      if (layer.place == place) return layer.products;
    layers.push_back({place, {}});
    return layers.back().products;
  }
  CodeCounts& kind(Kind k) { return kinds[static_cast<std::size_t>(k)]; }

  /// The mean of one product's relative errors over all linear layers where it was measured.
  double mean_error(Role role) const {
    double sum = 0, count = 0;
    for (const Layer& l : layers) {
      const double error = l.products[static_cast<std::size_t>(role)].relative();
      if (std::isfinite(error)) sum += error, count += 1;
    }
    return sum / count;
  }
};

inline nlohmann::ordered_json to_json(const Measurements& m) {
  nlohmann::ordered_json products = nlohmann::json::array(), tensors = products;
  for (const auto& layer : m.layers) {
    nlohmann::ordered_json j{{"layer", layer.place.layer}, {"projection", layer.place.name()}};
    for (std::size_t r = 0; r < role_names.size(); ++r)
      j[role_names[r]] = layer.products[r].relative();
    products.push_back(j);
  }
  for (std::size_t k = 0; k < kind_names.size(); ++k) {
    const CodeCounts& c = m.kinds[k];
    nlohmann::ordered_json exponents;
    for (const auto& [exponent, count] : c.by_exponent) exponents[std::to_string(exponent)] = count;
    tensors.push_back({{"kind", kind_names[k]},
                       {"codes", c.codes},
                       {"underflow", c.underflow},
                       {"saturated", c.saturated},
                       {"amax", c.amax},
                       {"by_exponent", exponents}});
  }
  return {{"step", m.step},
          {"relative_errors", products},
          {"tensors", tensors},
          {"products_not_measured", m.unknown}};
}

}  // namespace example
