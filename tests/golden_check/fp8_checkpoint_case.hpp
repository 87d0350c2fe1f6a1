// The kind "checkpoint" at --precision fp8: models that multiply the file's own codes.
#pragma once

#include "fp8_case.hpp"

namespace golden {

/// How far quantised activations move the logits is the unit of both errors. "logits" are those of
/// the parity rule, against a reference of the same rule. "logits.fp8_policy" are those of the Fp8
/// policy, bf16 beside its codes, against the reference without quantised activations, with its
/// choice of experts.
///
/// parity_rule false leaves the first out. It holds where every sum has the bits of the reference's
/// or rounds as little: adding 1e-7 of the largest value to each product of codes turns codes the
/// other way that move the logits by 0.5 units, and 1e-4 an expert's choice, which moves them
/// by 3.4.
template <class Backend>
void check_fp8_checkpoint(const std::string& folder, Backend& backend, Counts& counts,
                          bool parity_rule = true) {
  using namespace dsv3;
  const ModelConfig config = load_config(folder + "/config.json");
  const SafetensorsFile exact_file(folder + "/expected.safetensors");
  const SafetensorsFile file(folder + "/expected_fp8_activations.safetensors");
  Judge judge(folder, file, counts);
  const Tokens tokens(exact_file, 2);
  const Batch batch = next_token_batch(tokens.step(0));
  const Array exact = read_array(exact_file, "logits"), quantized = judge.expected("logits");
  const double unit = distance(quantized, exact);
  if (!parity_rule) {
    judge.skip("logits");
    judge.skip("loss");
  } else {
    Model<RuleOf<true, false>, Backend> model(backend, config);
    load_weights(model, folder);
    const Array ours = logits_array(model.logits(batch), tokens, config.vocab_size, 0);
    judge.judge("logits", distance(ours, quantized) / unit, 0.1);
    judge.compare("loss", Array{{model.losses(batch).loss}, {1}}, {Rule::printed});
  }
  Model<Fp8, Backend> model(backend, config);
  load_weights(model, folder);
  const ExpertsOfFile<Backend> experts(backend, exact_file, config);
  model.force_experts(experts.choices);
  const Array ours = logits_array(model.logits(batch), tokens, config.vocab_size, 0);
  judge.judge("logits.fp8_policy", distance(ours, exact) / unit, 1.5);
}

}  // namespace golden
