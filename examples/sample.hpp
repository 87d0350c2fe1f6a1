// What a trained model writes, with and without speculation.
#pragma once

#include <chrono>
#include <dsv3/infer/generator.hpp>
#include <dsv3/io/utf8.hpp>

#include "text.hpp"

namespace example {

/// A greedy continuation, and how fast it came.
struct Sample {
  std::vector<std::int32_t> tokens;
  double seconds = 0;         ///< of everything behind the prompt's pass
  std::vector<double> stood;  ///< share of drafts that stood, by depth
  double tokens_per_pass = 1;

  double tokens_per_second() const {
    return static_cast<double>(tokens.size() - 1) / seconds;  // the first one is the prompt's
  }
};

/// The most probable continuation of a prompt; `speculate` drafts a pass.
template <class Model>
Sample sample(Model& model, const std::vector<std::int32_t>& prompt, Index count, Index speculate) {
  dsv3::GeneratorOptions options;
  options.max_sequences = 1;
  options.max_tokens = static_cast<Index>(prompt.size()) + count;
  options.speculate = speculate;
  dsv3::Generator<Model> generator(model, options);
  dsv3::GenerationRequest request;
  request.prompt = prompt;
  request.max_tokens = count;
  request.ignore_eos = true;
  const Index id = generator.add(std::move(request));
  generator.step();
  const auto start = std::chrono::steady_clock::now();
  generator.run();
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
  Sample s;
  s.tokens = generator.take(id).tokens;
  s.seconds = passed.count();
  const auto& statistics = generator.statistics();
  for (std::size_t d = 0; d < statistics.drafted.size(); ++d) s.stood.push_back(statistics.rate(d));
  s.tokens_per_pass = statistics.tokens_per_pass();
  return s;
}

/// Tokens as a terminal can show them: bytes as text, ids where they are not bytes.
inline std::string readable(const std::vector<std::int32_t>& tokens, bool bytes) {
  std::string raw, text;
  for (const std::int32_t token : tokens) {
    if (!bytes)
      raw += (raw.empty() ? "" : " ") + std::to_string(token);
    else if (token < 256 && (token >= ' ' || token == '\n' || token == '\t'))
      raw += static_cast<char>(token);
    else
      raw += '?';
  }
  dsv3::detail::append_replaced(text, raw);
  return text;
}

/// "81.2 %", or those of all depths.
inline std::string shares(const std::vector<double>& values) {
  std::string text;
  for (const double value : values)
    text += (text.empty() ? "" : ", ") + decimal(100 * value, 1) + " %";
  return text;
}

}  // namespace example
