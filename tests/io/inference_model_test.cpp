#include <doctest/doctest.h>

#include <cstring>
#include <dsv3/io/checkpoint.hpp>
#include <dsv3/model.hpp>

#include "../infer/infer_fixture.hpp"
#include "folder.hpp"

using namespace dsv3;

namespace {

// Panels of 32 rows and rests, sums of more than one block of K, one dense layer, experts, MTP, a
// head that is no multiple of anything.
ModelConfig sizes(Index q_lora_rank) {
  ModelConfig c;
  c.vocab_size = 301;
  c.hidden_size = 136;
  c.num_hidden_layers = 2;
  c.first_k_dense_replace = 1;
  c.num_nextn_predict_layers = 1;
  c.num_attention_heads = c.num_key_value_heads = 3;
  c.q_lora_rank = q_lora_rank;
  c.kv_lora_rank = 64;
  c.qk_nope_head_dim = 24;
  c.qk_rope_head_dim = 10;
  c.v_head_dim = 22;
  c.n_routed_experts = 4;
  c.num_experts_per_tok = 2;
  c.n_group = c.topk_group = 1;
  c.moe_intermediate_size = 72;
  c.intermediate_size = 1100;
  return c;
}

// Logits of the main model and of its MTP module: a prefill of 20 tokens, then three more.
template <class Model>
auto results(Model& model) {
  using Backend = std::remove_reference_t<decltype(model.backend())>;
  using T = typename Model::T;
  LatentCache<Backend, T> cache(model.backend(), model.config(),
                                CacheOptions::contiguous(1, 64, true));
  Decoder<Model> decoder(model, cache);
  const Index sequence = cache.create();
  const auto tokens = infer::text(24);
  std::vector<typename Model::A> all;
  for (const auto& [from, to] : {std::pair<Index, Index>{0, 20}, {20, 21}, {21, 23}}) {
    const auto form = from == 0 ? AttentionForm::expanded : AttentionForm::absorbed;
    const auto main = decoder.forward({{sequence, infer::part(tokens, from, to)}}, form);
    const auto next = infer::part(tokens, from + 1, to + 1);
    const auto mtp = decoder.forward_mtp(1, {{sequence, next}}, form, main.carried);
    std::vector<std::int32_t> rows;
    for (Index r = 0; r < to - from; ++r) rows.push_back(static_cast<std::int32_t>(r));
    for (const auto& h : {main.h, mtp.h}) {
      const auto z = decoder.logits(h, rows);
      all.insert(all.end(), z.begin(), z.end());
      const auto p = decoder.log_probs(h, next);
      all.insert(all.end(), p.begin(), p.end());
    }
  }
  return all;
}

struct Emulated : Fp8 {
  static constexpr Accumulation accumulation{14, 128};
};

template <class A>
bool same_bits(const std::vector<A>& a, const std::vector<A>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(A)) == 0;
}

template <class P, class Backend>
void compare(Backend& backend, Index q_lora_rank, DType dtype) {
  const ModelConfig config = sizes(q_lora_rank);
  Model<P, Backend> model(backend, config, {.seed = 2, .init_std = 0.2});
  TestFolder folder;
  save_checkpoint(model, folder.path("x"), {.dtype = dtype});
  load_weights(model, folder.path("x"));
  const auto expected = results(model);

  InferenceModel<P, Backend> loaded(backend, config);
  load_weights(loaded, folder.path("x"));
  CHECK(same_bits(results(loaded), expected));

  InferenceModel<P, Backend> taken(backend, config);
  taken.take_operands(model);
  CHECK(same_bits(results(taken), expected));
}

}  // namespace

TEST_CASE("A model for inference has the bits of the model with masters") {
  Cpu cpu(2);
  SUBCASE("Fp32") { compare<Fp32>(cpu, 40, DType::f32); }
  SUBCASE("Bf16") { compare<Bf16>(cpu, 40, DType::bf16); }
  SUBCASE("Bf16, no query latent, codes in the file") { compare<Bf16>(cpu, 0, DType::f8_e4m3); }
  SUBCASE("Fp8, the file's codes") { compare<Fp8>(cpu, 40, DType::f8_e4m3); }
  SUBCASE("Fp8 from values") { compare<Fp8>(cpu, 0, DType::bf16); }
  SUBCASE("a backend that arranges nothing") {
    EigenCpu eigen;
    compare<Fp8>(eigen, 40, DType::f8_e4m3);
  }
}

TEST_CASE("Which weights are arranged is decided by policy and backend") {
  CHECK(!std::is_same_v<InferenceModel<Bf16, Cpu>::Precision, Bf16>);
  CHECK(!std::is_same_v<InferenceModel<Fp8, Cpu>::Precision, Fp8>);
  CHECK(std::is_same_v<InferenceModel<Fp64, Cpu>::Precision, Fp64>);
  CHECK(std::is_same_v<InferenceModel<Bf16, EigenCpu>::Precision, Bf16>);
  CHECK(std::is_same_v<InferenceModel<Emulated, Cpu>::Precision, Emulated>);
}

TEST_CASE("The operands of another config are not taken") {
  Cpu cpu(1);
  const Model<Fp32, Cpu> model(cpu, sizes(40));
  InferenceModel<Fp32, Cpu> other(cpu, sizes(0));
  std::string message;
  try {
    other.take_operands(model);
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  CHECK(message == "InferenceModel::take_operands: the model's config must equal this one's");
}
