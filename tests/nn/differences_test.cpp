#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>

#include "model_fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

// The gradient of the total loss in a sample of the elements of every tensor, experts held to the
// choice of the unperturbed model.
template <class Backend>
void check_model(const ModelConfig& config, const Text& text, bool recompute = false) {
  constexpr double lambda = 0.3, alpha = 0.05;
  Backend backend;
  Model<Fp64, Backend> model(backend, config, {.seed = 3});
  randomize(model, 0.6);
  Gradients<Model<Fp64, Backend>> grads(model);
  const Batch batch = text.batch();
  Choices choices{config.num_experts_per_tok, {}};
  std::vector<Index> load(static_cast<std::size_t>(config.moe_layers() * config.n_routed_experts));
  const View<Index, 2> load_view(load.data(), {config.moe_layers(), config.n_routed_experts});
  model.losses(batch, choices.observer());
  REQUIRE(static_cast<Index>(choices.lists.size()) == config.moe_layers());
  model.force_experts(choices.views());
  const Losses with = model.losses_and_gradients(batch, scale_of(model, batch, lambda, alpha),
                                                 grads.tensors, load_view, recompute);
  const auto loss = [&] { return total(model.losses(batch), lambda, alpha); };
  CHECK(total(with, lambda, alpha) == doctest::Approx(loss()).epsilon(1e-15));
  Index moe_layer = -1, tensors = 0;
  dsv3::for_each_tensor<Fp64>(
      [&](const std::string& name, auto weight, auto gradient) {
        ++tensors;
        if (name.ends_with("gate.weight")) ++moe_layer;
        const auto at = name.find("mlp.experts.");
        if (at != std::string::npos) {
          const auto e = static_cast<Index>(std::stoi(name.substr(at + 12)));
          if (load_view(moe_layer, e) == 0) {  // zero, not merely small
            for (Index i = 0; i < gradient.size(); ++i) CHECK(gradient.data[i] == 0.0);
            return;
          }
        }
        // An expert may serve tokens without a label only: then both are exactly zero.
        check_differences(name, weight.flat(), gradient.flat(), loss, 4,
                          at == std::string::npos ? 1e-4 : 0);
      },
      model.masters(), grads.tensors);
  CHECK(moe_layer + 1 == config.moe_layers());
  CHECK(tensors > 12 * config.num_hidden_layers);
}

}  // namespace

TEST_CASE_TEMPLATE("The gradients of a whole model agree with central differences", Backend,
                   EigenCpu, Cpu) {
  ModelConfig config = tiny_config();
  Text text(2, 7, config.vocab_size);
  SUBCASE("D = 0") { check_model<Backend>(config, text); }
  SUBCASE("D = 1, hidden states after the norm") {
    config.num_nextn_predict_layers = 1;
    check_model<Backend>(config, text);
  }
  SUBCASE("D = 1, hidden states before the norm") {
    config.num_nextn_predict_layers = 1;
    config.mtp_hidden = MtpHidden::pre_norm;
    check_model<Backend>(config, text);
  }
  SUBCASE("D = 2, hidden states after the norm, recomputed") {
    config.num_nextn_predict_layers = 2;
    check_model<Backend>(config, text, true);
  }
  SUBCASE("D = 2, hidden states before the norm") {
    config.num_nextn_predict_layers = 2;
    config.mtp_hidden = MtpHidden::pre_norm;
    check_model<Backend>(config, text);
  }
  SUBCASE("D = 2, packed documents shorter than the depth, padding, ignored labels") {
    config.num_nextn_predict_layers = 2;
    text = Text(2, 9, config.vocab_size);
    text.cu = {0, 4, 5, 7, 9, 15, 18};
    text.mask.assign(18, 1);
    for (const std::size_t i : {2u, 8u, 16u, 17u}) text.mask[i] = 0;
    text.labels[3] = text.labels[11] = -100;
    check_model<Backend>(config, text);
  }
  SUBCASE("balance loss over the batch, D = 2, packed documents, padding, recomputed") {
    config.num_nextn_predict_layers = 2;
    config.seq_aux = false;
    text = Text(2, 9, config.vocab_size);
    text.cu = {0, 4, 5, 7, 9, 15, 18};
    text.mask.assign(18, 1);
    for (const std::size_t i : {2u, 8u, 16u, 17u}) text.mask[i] = 0;
    check_model<Backend>(config, text, true);
  }
  SUBCASE("DeepSeek-V2's gate, no query latent, YaRN, two shared experts") {
    config.scoring_func = ScoringFunc::softmax;
    config.topk_method = TopkMethod::group_limited_greedy;
    config.norm_topk_prob = false;
    config.q_lora_rank = 0;
    config.n_shared_experts = 2;
    config.rope_scaling = presets::deepseek_yarn;
    config.rope_scaling.original_max_position_embeddings = 4;
    check_model<Backend>(config, text);
  }
  SUBCASE("greedy, no shared expert, no dense layer, K = 1, D = 1") {
    config.topk_method = TopkMethod::greedy;
    config.norm_topk_prob = false;
    config.num_experts_per_tok = 1;
    config.n_shared_experts = 0;
    config.first_k_dense_replace = 0;
    config.num_nextn_predict_layers = 1;
    check_model<Backend>(config, text);
  }
}

TEST_CASE_TEMPLATE("One token, one row, rows not longer than the MTP depth", Backend, EigenCpu,
                   Cpu) {
  Backend backend;
  Model<Fp64, Backend> model(backend, tiny_config(2));
  randomize(model, 0.5);
  for (const Index length : {1, 2, 3}) {
    CAPTURE(length);
    const Text text(1, length, 23);
    Gradients<Model<Fp64, Backend>> grads(model);
    const Losses losses = model.losses_and_gradients(
        text.batch(), scale_of(model, text.batch(), 0.3, 0.01), grads.tensors);
    CHECK(losses.loss > 0);
    CHECK((losses.mtp_loss[0] > 0) == (length > 1));
    CHECK((losses.mtp_loss[1] > 0) == (length > 2));
    grads.each([&](const std::string& name, auto gradient) {
      double sum = 0;
      for (Index i = 0; i < gradient.size(); ++i) sum += std::abs(gradient.data[i]);
      CAPTURE(name);
      CHECK(std::isfinite(sum));
      if (length == 1 && (name.find("layers.3.") != std::string::npos ||
                          name.find("layers.4.") != std::string::npos))
        CHECK(sum == 0.0);  // MTP saw nothing
    });
  }
}

TEST_CASE_TEMPLATE("A batch of nothing but padding has no loss and no gradient", Backend, EigenCpu,
                   Cpu) {
  Backend backend;
  Model<Fp64, Backend> model(backend, tiny_config(1));
  Text text(2, 3, 23);
  text.mask.assign(6, 0);
  Gradients<Model<Fp64, Backend>> grads(model);
  const Losses losses = model.losses_and_gradients(
      text.batch(), scale_of(model, text.batch(), 0.3, 0.01), grads.tensors);
  CHECK(losses.loss == 0);
  CHECK(losses.balance == 0);
  grads.each([](const std::string&, auto gradient) {
    for (Index i = 0; i < gradient.size(); ++i) REQUIRE(gradient.data[i] == 0);
  });
  for (const double z : model.logits(text.batch())) REQUIRE(z == 0);
}
