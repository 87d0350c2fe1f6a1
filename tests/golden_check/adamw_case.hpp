// The kind "adamw": the optimizer's kernel alone against torch.optim.AdamW.
#pragma once

#include <dsv3/backend/cpu.hpp>
#include <dsv3/core/arena.hpp>
#include <dsv3/core/buffer.hpp>
#include <dsv3/train/adamw.hpp>

#include "judge.hpp"

namespace golden {

template <class P, class Backend>
void check_adamw(const std::string& folder, Backend& backend, Counts& counts) {
  using M = typename P::master;
  using dsv3::Index;
  constexpr bool fp64 = std::is_same_v<M, double>;
  const dsv3::SafetensorsFile file(folder + "/expected.safetensors");
  Judge judge(folder, file, counts);
  for (int p = 0; judge.has("p" + std::to_string(p) + ".before"); ++p) {
    const std::string tensor = std::to_string(p);
    judge.input("p" + tensor + ".before");
    const Array before = judge.expected("p" + tensor + ".before");
    const auto n = static_cast<Index>(before.values.size());
    dsv3::Buffer<Backend> memory(backend, 4 * dsv3::Arena::bytes<M>(n) + 128);
    dsv3::Arena arena(memory.data(), memory.bytes());
    const auto weight = arena.take<M>({n}), gradient = arena.take<M>({n});
    const auto m = arena.take<typename P::moment>({n}), v = arena.take<typename P::moment>({n});
    const auto norm = arena.take<double>({2});
    const auto rule_of_step = arena.take<dsv3::AdamW>({1});
    fill_zero(backend, memory.data(), memory.bytes());
    const auto upload = [&](const Array& array, auto view) {
      const std::vector<M> host(array.values.begin(), array.values.end());
      copy_to_backend(backend, view.data, host.data(), n * Index{sizeof(M)});
    };
    const double no_clipping[2] = {1, 1};
    copy_to_backend(backend, norm.data, no_clipping, sizeof no_clipping);
    upload(before, weight);
    dsv3::AdamW rule;  // its defaults are the file's: lr 2.2e-4, 0.9, 0.95, 1e-8, decay 0.1
    for (int step = 0; judge.has("g" + tensor + "." + std::to_string(step)); ++step) {
      const std::string name = "g" + tensor + "." + std::to_string(step);
      judge.input(name);
      upload(judge.expected(name), gradient);
      rule.correction1 = 1 - std::pow(rule.beta1, step + 1);
      rule.correction2 = 1 - std::pow(rule.beta2, step + 1);
      copy_to_backend(backend, rule_of_step.data, &rule, sizeof rule);
      const Index chunks = (n + dsv3::detail::optimizer_chunk - 1) / dsv3::detail::optimizer_chunk;
      for_each_row(backend, chunks,
                   dsv3::detail::AdamWRow<M, typename P::moment, M>{
                       rule_of_step, norm, weight, dsv3::as_const(gradient), m, v, {}});
    }
    std::vector<M> after(before.values.size());
    copy_to_host(backend, after.data(), weight.data, n * Index{sizeof(M)});
    const std::string ours = fp64 ? ".after.f64" : ".after.f32";
    const std::string other = fp64 ? ".after.f32" : ".after.f64";
    judge.compare("p" + tensor + ours, Array{{after.begin(), after.end()}, before.shape},
                  {Rule::largest, fp64 ? 1e-13 : 1e-6});
    if (judge.has("p" + tensor + other)) judge.skip("p" + tensor + other);
  }
}

}  // namespace golden
