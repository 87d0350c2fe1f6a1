#include <dsv3/backend/cpu.hpp>
#include <dsv3/backend/eigen.hpp>
#include <dsv3/nn/block.hpp>
#include <dsv3/nn/mtp.hpp>

#include "fixture.hpp"

using namespace dsv3;
using namespace fixture;

namespace {

ModelConfig block_config() {
  ModelConfig c;
  c.hidden_size = 7;
  c.intermediate_size = 9;
  c.moe_intermediate_size = 3;
  c.num_hidden_layers = 2;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = c.num_key_value_heads = 2;
  c.q_lora_rank = 5;
  c.kv_lora_rank = 6;
  c.qk_nope_head_dim = 3;
  c.qk_rope_head_dim = 2;
  c.v_head_dim = 4;
  c.n_routed_experts = 6;
  c.num_experts_per_tok = 2;
  c.n_group = 3;
  c.topk_group = 2;
  c.rms_norm_eps = 1e-3;
  return c;
}

// One set of weights as the caller writes them and as a block reads them, beside gradients.
template <template <class> class Tensors>
struct WeightsAndGradients {
  Tensors<double> params;
  Tensors<const double> constants;
  Tensors<double> grads;
};

template <template <class> class Tensors, class Make>
WeightsAndGradients<Tensors> weights_and_gradients(Memory& memory, const Make& make) {
  const Index start = memory.arena.used();
  const auto weights = make.template operator()<double>(memory.arena);
  const Index size = memory.arena.used() - start;
  Arena again(static_cast<std::byte*>(memory.buffer.data()) + start, size);
  const auto constants = make.template operator()<const double>(again);
  const auto gradients = make.template operator()<double>(memory.arena);
  return {weights, constants, gradients};
}

template <class U>
using BlockTensors = Block<Fp64>::Tensors<U>;
template <class U>
using MtpTensors = Mtp<Fp64>::Tensors<U>;

}  // namespace

TEST_CASE_TEMPLATE("Block is attention and an FFN, each behind a norm and beside a residual",
                   Backend, EigenCpu, Cpu) {
  Backend backend;
  const ModelConfig config = block_config();
  const Block<Fp64> block(config);
  const Lengths lengths{1, 5, 3};
  const Sequences sequences = lengths.view();
  const auto table = rope_table<double>(config, 8);
  const View<const double, 3> turns(table.data(), {8, 2, 1});
  constexpr double alpha = 0.6, per_sequence = 1.0 / 3;
  for (const Index layer : {Index{0}, Index{1}}) {
    CAPTURE(layer);
    Memory memory;
    auto tensors = weights_and_gradients<BlockTensors>(memory, [&]<class U>(Arena& arena) {
      return Block<Fp64>::make_tensors<U>(config, layer, arena);
    });
    auto& params = tensors.params;
    const auto& constants = tensors.constants;
    [[maybe_unused]] auto& grads = tensors.grads;
    Block<Fp64>::for_each_tensor(
        [&](const std::string&, auto weight, auto gradient) {
          fill(weight, ++memory.stream);
          fill(gradient, 0, 0);
        },
        params, grads);
    REQUIRE(params.is_moe() == (layer == 1));
    const auto x = memory.random<double>({9, 7}), dy = memory.random<double>({9, 7});
    const auto y = memory.empty<double>({9, 7}), dx = memory.empty<double>({9, 7});
    const auto bias = memory.random<double>({6}, 0.2);
    const auto choice = memory.empty<std::int32_t>({9, 2});
    auto saved = block.make_saved(memory.arena, params.is_moe(), 9, 7, 3);
    const auto forward = [&](View<const std::int32_t, 2> forced) {
      block.forward(backend, constants, bias, forced, x, sequences, turns, per_sequence, y, saved,
                    memory.arena);
    };
    forward({});

    // The parts, called one by one.
    const auto n = memory.empty<double>({9, 7}), part = memory.empty<double>({9, 7});
    const auto expected = memory.empty<double>({9, 7});
    const RmsNorm<double> norm{config.rms_norm_eps};
    auto again = block.make_saved(memory.arena, params.is_moe(), 9, 7, 3);
    norm.forward(backend, {constants.input_layernorm}, as_const(x), n);
    block.mla.forward(backend, constants.self_attn, n, sequences, turns, part, again.mla,
                      memory.arena);
    for (Index i = 0; i < x.size(); ++i) expected.data[i] = x.data[i] + part.data[i];
    norm.forward(backend, {constants.post_attention_layernorm}, as_const(expected), n);
    if (params.is_moe())
      block.moe.forward(backend, constants.moe, bias, {}, n, sequences, per_sequence, part,
                        again.moe, memory.arena);
    else
      Mlp<Fp64>{}.forward(backend, constants.mlp, n, part, again.mlp, memory.arena);
    for (Index i = 0; i < x.size(); ++i) expected.data[i] += part.data[i];
    CHECK(same_bits(y, expected));

    if (params.is_moe())
      for (Index i = 0; i < choice.size(); ++i) choice.data[i] = saved.moe.routing.topk_idx.data[i];
    for (Index i = 0; i < dx.size(); ++i) dx.data[i] = dy.data[i];  // replaced by backward
    const Index used = memory.arena.used();
    block.backward(backend, constants, x, saved, sequences, turns, per_sequence * alpha, dx, grads,
                   memory.arena);
    CHECK(memory.arena.used() == used);
    const auto loss = [&] {
      forward(choice);
      return weighted_sum(y, dy) + (params.is_moe() ? alpha * saved.moe.balance(0) : 0);
    };
    check_differences("x", x.flat(), dx.flat(), loss, 100);
    Block<Fp64>::for_each_tensor(
        [&](const std::string& name, auto weight, auto gradient) {
          bool reached = !name.starts_with("mlp.experts.");
          for (Index i = 0; i < choice.size(); ++i)
            reached |= name.starts_with("mlp.experts." + std::to_string(choice.data[i]) + ".");
          if (reached) check_differences(name, weight.flat(), gradient.flat(), loss, 40);
        },
        params, grads);
  }
}

TEST_CASE("Mtp::forward_input concatenates the embedding's norm first, then the hidden state's") {
  EigenCpu backend;
  Memory memory;
  ModelConfig config = block_config();
  config.rms_norm_eps = 0;
  const Mtp<Fp64> mtp(config);
  auto tensors = weights_and_gradients<MtpTensors>(
      memory, [&]<class U>(Arena& arena) { return Mtp<Fp64>::make_tensors<U>(config, 2, arena); });
  auto& params = tensors.params;
  const auto& constants = tensors.constants;
  [[maybe_unused]] auto& grads = tensors.grads;
  fill(params.eh_proj, 0, 0);
  for (Index j = 0; j < 7; ++j) {
    params.enorm(j) = 2;
    params.hnorm(j) = 3;
  }
  params.eh_proj(1, 0) = 1;  // output 1 is the first feature of the embedding
  params.eh_proj(4, 7) = 1;  // output 4 that of the hidden state
  const auto e = memory.empty<double>({1, 7}), h = memory.empty<double>({1, 7});
  const auto u = memory.empty<double>({1, 7});
  for (Index j = 0; j < 7; ++j) {
    e(0, j) = 5;   // normalised: 1
    h(0, j) = -8;  // normalised: -1
  }
  mtp.forward_input(backend, constants, e, h, u, memory.arena);
  for (Index j = 0; j < 7; ++j)
    CHECK(u(0, j) == doctest::Approx(j == 1 ? 2.0 : (j == 4 ? -3.0 : 0.0)).epsilon(1e-15));
}

TEST_CASE_TEMPLATE("Mtp::backward_input agrees with central differences", Backend, EigenCpu, Cpu) {
  Backend backend;
  Memory memory;
  const ModelConfig config = block_config();
  const Mtp<Fp64> mtp(config);
  auto tensors = weights_and_gradients<MtpTensors>(
      memory, [&]<class U>(Arena& arena) { return Mtp<Fp64>::make_tensors<U>(config, 2, arena); });
  auto& params = tensors.params;
  const auto& constants = tensors.constants;
  [[maybe_unused]] auto& grads = tensors.grads;
  REQUIRE(params.block.is_moe());  // layers after the last are MTP's, and have experts
  for (const auto& weight : {params.enorm, params.hnorm}) fill(weight, ++memory.stream);
  fill(params.eh_proj, ++memory.stream);
  for (const auto& gradient : {grads.enorm, grads.hnorm}) fill(gradient, 0, 0);
  fill(grads.eh_proj, 0, 0);
  const auto e = memory.random<double>({4, 7}), h = memory.random<double>({4, 7});
  const auto u = memory.empty<double>({4, 7}), du = memory.random<double>({4, 7});
  const auto de = memory.empty<double>({4, 7}), dh = memory.empty<double>({4, 7});
  mtp.backward_input(backend, constants, e, h, du, de, dh, grads, memory.arena);
  const auto loss = [&] {
    mtp.forward_input(backend, constants, e, h, u, memory.arena);
    return weighted_sum(u, du);
  };
  check_differences("e", e.flat(), de.flat(), loss);
  check_differences("h", h.flat(), dh.flat(), loss);
  check_differences("enorm", params.enorm, grads.enorm, loss);
  check_differences("hnorm", params.hnorm, grads.hnorm, loss);
  check_differences("eh_proj", params.eh_proj.flat(), grads.eh_proj.flat(), loss, 100);
}

TEST_CASE("Block::for_each_tensor uses the checkpoint's names") {
  Arena counting;
  const auto names = [&](Index layer) {
    std::vector<std::string> list;
    const auto tensors = Block<Fp64>::make_tensors<double>(block_config(), layer, counting);
    Block<Fp64>::for_each_tensor([&](const std::string& name, auto) { list.push_back(name); },
                                 tensors);
    return list;
  };
  const std::vector<std::string> dense = {"input_layernorm.weight",
                                          "post_attention_layernorm.weight",
                                          "self_attn.q_a_proj.weight",
                                          "self_attn.q_a_layernorm.weight",
                                          "self_attn.q_b_proj.weight",
                                          "self_attn.kv_a_proj_with_mqa.weight",
                                          "self_attn.kv_a_layernorm.weight",
                                          "self_attn.kv_b_proj.weight",
                                          "self_attn.o_proj.weight",
                                          "mlp.gate_proj.weight",
                                          "mlp.up_proj.weight",
                                          "mlp.down_proj.weight"};
  CHECK(names(0) == dense);
  const auto moe = names(1);
  REQUIRE(moe.size() == 9 + 1 + 6 * 3 + 3);
  CHECK(moe[9] == "mlp.gate.weight");
  CHECK(moe[10] == "mlp.experts.0.gate_proj.weight");
  CHECK(moe[27] == "mlp.experts.5.down_proj.weight");
  CHECK(moe[28] == "mlp.shared_experts.gate_proj.weight");
}
