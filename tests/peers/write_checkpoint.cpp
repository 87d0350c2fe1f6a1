// What transformers_check.py compares with: writes random checkpoint folders, and prints logits.
//   write_checkpoint write FOLDER bf16|fp8 LAYERS [--mtp]     a small model with random weights
//   write_checkpoint logits FOLDER OUT fp32|fp64 TOKEN...     [tokens, vocab], floats or doubles
#include <dsv3/io/checkpoint.hpp>
#include <dsv3/model.hpp>
#include <fstream>
#include <iostream>

using namespace dsv3;

namespace {

ModelConfig config_of(Index layers, bool mtp) {
  ModelConfig c;
  c.vocab_size = 256;
  c.hidden_size = 256;
  c.intermediate_size = 384;
  c.moe_intermediate_size = 128;
  c.num_hidden_layers = layers;
  c.num_nextn_predict_layers = mtp ? 1 : 0;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = c.num_key_value_heads = 4;
  c.q_lora_rank = 128;
  c.kv_lora_rank = 96;  // with the rotated part below 128: the ragged matrix of a release
  c.qk_nope_head_dim = 32;
  c.qk_rope_head_dim = 32;
  c.v_head_dim = 32;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 2;
  c.n_group = 4;
  c.topk_group = 2;
  c.rope_scaling = presets::deepseek_yarn;
  c.rope_scaling.original_max_position_embeddings = 64;
  c.max_position_embeddings = 2560;
  return c;
}

int write(const std::string& folder, const std::string& dtype, Index layers, bool mtp) {
  Cpu backend;
  Model<Fp32, Cpu> model(backend, config_of(layers, mtp), {.seed = 7, .init_std = 0.06});
  for (Index i = 0; i < model.bias().size(); ++i)
    model.bias().data[i] = 0.02f * static_cast<float>(i % 7) - 0.05f;
  save_checkpoint(
      model, folder,
      {.dtype = dtype == "fp8" ? DType::f8_e4m3 : DType::bf16, .shard_bytes = 2'000'000});
  return 0;
}

template <class Policy>
int logits(const std::string& folder, const std::string& out, std::vector<std::int32_t> tokens) {
  Cpu backend;
  Model<Policy, Cpu> model(backend, load_config(folder + "/config.json"));
  load_weights(model, folder);
  Batch batch{};
  batch.tokens = {tokens.data(), {1, static_cast<Index>(tokens.size())}};
  const auto values = model.logits(batch);
  std::ofstream(out, std::ios::binary)
      .write(static_cast<const char*>(static_cast<const void*>(values.data())),
             static_cast<std::streamsize>(values.size() * sizeof(values[0])));
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() >= 4 && words[0] == "write")
    return write(words[1], words[2], std::stoi(words[3]), words.back() == "--mtp");
  if (words.size() >= 5 && words[0] == "logits" && (words[3] == "fp32" || words[3] == "fp64")) {
    std::vector<std::int32_t> tokens;
    for (std::size_t i = 4; i < words.size(); ++i) tokens.push_back(std::stoi(words[i]));
    const auto run = words[3] == "fp64" ? logits<Fp64> : logits<Fp32>;
    return run(words[1], words[2], std::move(tokens));
  }
  std::cerr << "usage: write_checkpoint write FOLDER bf16|fp8 LAYERS [--mtp]\n"
               "       write_checkpoint logits FOLDER OUT fp32|fp64 TOKEN...\n";
  return 2;
} catch (const std::exception& error) {
  std::cerr << "write_checkpoint: " << error.what() << "\n";
  return 1;
}
