// The weights of a model as bytes, to tell whether one of them changed.
#pragma once

#include <dsv3/nn/model.hpp>
#include <string>

/// Every bit of the weights: masters, biases, and what products read.
template <class P, class Backend>
std::string bits_of(const dsv3::Model<P, Backend>& model) {
  std::string all;
  const auto add = [&](const void* data, dsv3::Index bytes) {
    all.append(static_cast<const char*>(data), static_cast<std::size_t>(bytes));
  };
  model.for_each_tensor([&](const std::string&, const auto& view) {
    add(view.data, view.size() * dsv3::Index{sizeof(*view.data)});
  });
  dsv3::for_each_tensor<P>(
      [&](const std::string&, const auto& operand) {
        if constexpr (requires { operand.codes; }) {
          add(operand.codes.data, operand.size());
          add(operand.scales.data, operand.scales.extents[0] * operand.scales.extents[1] * 4);
        } else {
          add(operand.data, operand.size() * dsv3::Index{sizeof(*operand.data)});
        }
      },
      model.operands());
  return all;
}
