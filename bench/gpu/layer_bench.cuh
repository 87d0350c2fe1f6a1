// One MoE layer of DeepSeek-V3's sizes, forward and backward, with 32 of its experts: what one of
// eight GPUs holds, and as many rows as it gets.
#pragma once

#include <dsv3/nn/block.hpp>

#include "data.cuh"

namespace gpu_bench {

inline dsv3::ModelConfig layer_config() {
  dsv3::ModelConfig c = dsv3::presets::deepseek_v3;
  c.num_hidden_layers = 1;
  c.num_nextn_predict_layers = 0;
  c.first_k_dense_replace = 0;
  c.n_routed_experts = 32;
  return c;
}

/// Multiplications of a token count 6 FLOP each, forward and backward; pairs of attention 2 for
/// each of the 320 and 832 that gpu_bench's attention cases count, over half of the square.
inline double layer_flop(const dsv3::ModelConfig& c, Index tokens) {
  const auto d = [](Index n) { return static_cast<double>(n); };
  const double H = d(c.hidden_size), n = d(c.num_attention_heads);
  const double attention = H * d(c.q_lora_rank) + d(c.q_lora_rank) * n * d(c.qk_head_dim()) +
                           H * d(c.kv_lora_rank + c.qk_rope_head_dim) +
                           d(c.kv_lora_rank) * n * d(c.qk_nope_head_dim + c.v_head_dim) +
                           n * d(c.v_head_dim) * H;
  const double experts =
      d(c.num_experts_per_tok + c.n_shared_experts) * 3 * H * d(c.moe_intermediate_size) +
      H * d(c.n_routed_experts);
  const double scores = n * d(tokens) * d(tokens) * d(4 * c.qk_head_dim() + 3 * c.v_head_dim);
  return 6 * (attention + experts) * d(tokens) + scores;
}

template <class P>
class LayerCase {
 public:
  using Block = dsv3::Block<P>;
  using W = dsv3::operand_t<P>;
  using R = typename P::residual;

  LayerCase(Run& run, Index tokens)
      : run_(run), config_(layer_config()), block_(config_), tokens_(tokens) {
    const Index H = config_.hidden_size;
    dsv3::Arena counting;
    Block::template make_tensors<W>(config_, 0, counting);
    const auto memory = run.take<std::byte>({counting.peak()});
    dsv3::Arena first(memory.data, memory.extent(0)), again(memory.data, memory.extent(0));
    weights_ = Block::template make_tensors<W>(config_, 0, first);
    operands_ = Block::template make_tensors<const W>(config_, 0, again);
    grads_ = run.arena_for([&](dsv3::Arena& arena) {
      return Block::template make_tensors<typename P::master>(config_, 0, arena);
    });
    saved_ = run.arena_for(
        [&](dsv3::Arena& arena) { return block_.make_saved(arena, true, tokens, H, 1); });
    std::uint32_t seed = 10;
    Block::for_each_tensor([&](const std::string&, const auto& tensor) { fill(tensor, seed += 2); },
                           weights_);
    Block::for_each_tensor(
        [&](const std::string&, const auto& tensor) {
          fill_zero(run.cuda, tensor.data, tensor.size() * Index{sizeof(typename P::master)});
        },
        grads_);
    x_ = random<R>(run, {tokens, H}, 1);
    y_ = run.take<R>({tokens, H});
    dy_ = random<R>(run, {tokens, H}, 2, 1e-3f);
    dx_ = run.take<R>({tokens, H});
    bias_ = random<float>(run, {config_.n_routed_experts}, 3, 1e-3f);
    std::vector<std::int32_t> position, begin, end;
    for (Index t = 0; t < tokens; ++t) {
      position.push_back(static_cast<std::int32_t>(t));
      begin.push_back(0);
      end.push_back(static_cast<std::int32_t>(tokens));
    }
    sequences_.position = run.upload(position);
    sequences_.begin = sequences_.sequence = run.upload(begin);
    sequences_.end = run.upload(end);
    sequences_.first = run.upload(std::vector<std::int32_t>{0, static_cast<std::int32_t>(tokens)});
    const auto angles = dsv3::rope_table<float>(config_, tokens);
    table_ =
        View<const float, 3>(run.upload(angles).data, {tokens, 2, config_.qk_rope_head_dim / 2});
  }

  /// Forward, or forward and backward.
  void measure(bool backward) {
    const auto forward = run_.planned([this](auto& backend, dsv3::Arena& scratch) {
      block_.forward(backend, operands_, as_const(bias_), {}, as_const(x_), sequences_, table_, 1.0,
                     y_, saved_, scratch);
    });
    const auto back = run_.planned([this](auto& backend, dsv3::Arena& scratch) {
      block_.backward(backend, operands_, as_const(x_), saved_, sequences_, table_, 1e-4, dx_,
                      grads_, scratch);
    });
    const auto step = [&](Index) {
      forward();
      if (!backward) return;
      // backward replaces the gradient in the output: 0.2 GB that belong to no layer.
      dsv3::detail::check_cuda(
          cudaMemcpyAsync(dx_.data, dy_.data, static_cast<std::size_t>(dy_.size()) * sizeof(R),
                          cudaMemcpyDeviceToDevice, run_.cuda.stream()),
          "layer", "cudaMemcpyAsync");
      back();
    };
    step(0);
    check_output(run_, "y", y_);
    if (backward) check_output(run_, "dx", dx_);
    if (backward) check_output(run_, "gradient of gate_proj", grads_.moe.gate_proj[3]);
    run_.measure(step);
  }

 private:
  template <class T>
  void fill(const View<T, 1>& norm, std::uint32_t seed) {
    randomize(run_, norm, seed, 0.05f, 1);
  }
  template <class T>
  void fill(const View<T, 2>& matrix, std::uint32_t seed) {
    randomize(run_, matrix, seed, 0.01f);
  }
  template <class C>
  void fill(const dsv3::QuantizedWeight<C>& matrix, std::uint32_t seed) {
    randomize(run_, static_cast<const Quantized<C>&>(matrix), seed, 0.01f / 130);
  }

  Run& run_;
  dsv3::ModelConfig config_;
  Block block_;
  Index tokens_;
  typename Block::template Tensors<W> weights_;
  typename Block::template Tensors<const W> operands_;  // the same memory, as products read it
  typename Block::template Tensors<typename P::master> grads_;
  typename Block::Saved saved_;
  View<R, 2> x_, y_, dy_, dx_;
  View<float, 1> bias_;
  dsv3::Sequences sequences_;
  View<const float, 3> table_;
};

template <class P>
void add_layer_cases(Cases& cases) {
  constexpr Index tokens = 4096;
  const std::string name = P::name;
  cases.push_back({"MoE layer forward + backward, " + name + ", T = 4096", [](Run& run) {
                     run.work(layer_flop(layer_config(), tokens), "TFLOP/s");
                     run.torch("layer 4096 32", 1.2);
                     LayerCase<P>(run, tokens).measure(true);
                   }});
  cases.push_back({"MoE layer forward, " + name + ", T = 4096", [](Run& run) {
                     // A third of the products, and 320 of the 1152 multiplications of a pair.
                     const auto c = layer_config();
                     const double pairs = 128.0 * tokens * tokens;
                     run.work((layer_flop(c, tokens) - pairs * 1152) / 3 + pairs * 320, "TFLOP/s");
                     run.torch("layer_forward 4096 32", 1.2);
                     LayerCase<P>(run, tokens).measure(false);
                   }});
}

}  // namespace gpu_bench
