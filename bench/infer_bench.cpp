// Inference of the 64 M-parameter model: prefill of 512 tokens, decoding behind a context of 512
// for one and for eight sequences, in three precisions.
//
//     infer_bench [--threads N] [--no-head]
//
// Decoding is set against the time that reading its weights and cache takes at the best measured
// rate; with eight sequences a layer reads the experts that 8 x 4 even choices of 16 touch.
#include <dsv3/infer/inference_model.hpp>
#include <dsv3/model.hpp>
#include <dsv3/plan.hpp>
#include <memory>
#include <string>

#include "model_64m.hpp"
#include "peak.hpp"
#include "table.hpp"

namespace {

using bench::config;
using dsv3::Index;
constexpr Index context = 512;

std::vector<std::int32_t> random_tokens(std::uint64_t seed, Index count) {
  const dsv3::Philox philox(seed, 0);
  std::vector<std::int32_t> tokens;
  for (Index i = 0; i < count; ++i)
    tokens.push_back(static_cast<std::int32_t>(philox(static_cast<std::uint64_t>(i)).word[0] %
                                               static_cast<unsigned>(config.vocab_size)));
  return tokens;
}

// Bytes of weights that a pass of `rows` tokens reads, an element of a projection being
// `projection` bytes and any other `other`.
double weight_bytes(Index rows, double projection, double other) {
  const double E = static_cast<double>(config.n_routed_experts);
  const double share = static_cast<double>(config.num_experts_per_tok) / E;
  const double touched = E * (1 - std::pow(1 - share, static_cast<double>(rows)));
  double bytes = other * static_cast<double>(config.vocab_size * config.hidden_size);
  for (Index l = 0; l < config.num_hidden_layers; ++l) {
    bytes += projection * static_cast<double>(dsv3::plan::attention_parameters(config));
    if (config.is_moe(l))
      bytes += other * E * static_cast<double>(config.hidden_size) +
               projection * (touched + static_cast<double>(config.n_shared_experts)) *
                   static_cast<double>(dsv3::plan::expert_parameters(config));
    else
      bytes += projection * static_cast<double>(3 * config.hidden_size * config.intermediate_size);
  }
  return bytes;
}

template <class P>
struct Inference {
  using Model = dsv3::InferenceModel<P, dsv3::Cpu, config>;
  Model model;
  dsv3::LatentCache<dsv3::Cpu, typename P::activation> cache;
  dsv3::Decoder<Model> decoder;
  std::vector<Index> sequences;

  explicit Inference(dsv3::Cpu& backend)
      : model(backend),
        cache(backend, config, dsv3::CacheOptions::paged(9 * 1024, 9)),
        decoder(model, cache) {
    {
      const dsv3::Model<P, dsv3::Cpu, config> random(backend, {.seed = 1, .init_std = 0.02});
      model.take_operands(random);
      decoder.refresh();
    }
    for (std::uint64_t s = 0; s < 8; ++s) {
      sequences.push_back(cache.create());
      decoder.forward({{sequences.back(), random_tokens(s, context)}},
                      dsv3::AttentionForm::expanded);
    }
  }

  double prefill() {
    const Index s = cache.create();
    const auto tokens = random_tokens(99, context);
    const double begin = bench::seconds();
    const auto output = decoder.forward({{s, tokens}}, dsv3::AttentionForm::expanded);
    decoder.logits(output.h, {static_cast<std::int32_t>(context - 1)});
    const double elapsed = bench::seconds() - begin;
    cache.erase(s);
    return static_cast<double>(context) / elapsed;
  }

  // Tokens a second, over 16 tokens of each of the first `batch` sequences, which then go.
  double decode(Index batch) {
    std::vector<dsv3::CachePart> parts;
    std::vector<std::int32_t> rows;
    for (Index b = 0; b < batch; ++b) {
      parts.push_back({sequences[static_cast<std::size_t>(b)], {static_cast<std::int32_t>(b)}});
      rows.push_back(static_cast<std::int32_t>(b));
    }
    const double begin = bench::seconds();
    for (int step = 0; step < 16; ++step) {
      const auto output = decoder.forward(parts, dsv3::AttentionForm::absorbed);
      const auto logits = decoder.logits(output.h, rows);
      for (Index b = 0; b < batch; ++b) {
        const auto* z = logits.data() + b * config.vocab_size;
        parts[static_cast<std::size_t>(b)].tokens[0] =
            static_cast<std::int32_t>(std::max_element(z, z + config.vocab_size) - z);
      }
    }
    const double elapsed = bench::seconds() - begin;
    for (Index b = 0; b < batch; ++b)
      cache.truncate(sequences[static_cast<std::size_t>(b)], context);
    return 16 * static_cast<double>(batch) / elapsed;
  }
};

}  // namespace

int main(int argc, char** argv) {
  int threads = 2;
  bool head = true;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--no-head") head = false;
    if (argument == "--threads" && i + 1 < argc) threads = std::stoi(argv[++i]);
  }
  dsv3::Cpu backend(threads);
  Inference<dsv3::Fp32> fp32(backend);
  Inference<dsv3::Bf16> bf16(backend);
  Inference<dsv3::Fp8> fp8(backend);
  std::vector<double> read, prefill[3], one[3], eight[3];
  for (int repeat = 0; repeat < 7; ++repeat) {
    read.push_back(bench::memory_read_peak(threads));
    const auto measure = [&](int i, auto& inference) {
      prefill[i].push_back(inference.prefill());
      one[i].push_back(inference.decode(1));
      eight[i].push_back(inference.decode(8));
    };
    measure(0, fp32);
    measure(1, bf16);
    measure(2, fp8);
  }
  const double rate = *std::max_element(read.begin(), read.end()) * 1e9;
  const char* names[] = {"fp32", "bf16", "fp8"};
  const double projection[] = {4, 2, 1}, other[] = {4, 2, 2};
  const std::string where = ", T = " + std::to_string(threads);
  bench::Table table(head);
  for (int i = 0; i < 3; ++i) {
    const double cached =
        static_cast<double>(dsv3::plan::cache_bytes_per_token(config) * (i ? 1 : 2)) *
        static_cast<double>(context);
    const double floor1 = rate / (weight_bytes(1, projection[i], other[i]) + cached);
    const double floor8 = 8 * rate / (weight_bytes(8, projection[i], other[i]) + 8 * cached);
    const std::string name = names[i];
    table.at_least("prefill of 512, " + name + where, bench::median(prefill[i]), "tok/s",
                   "own fp32", bench::median(prefill[0]), 0);
    table.at_least("decode, 1 behind 512, " + name + where, bench::median(one[i]), "tok/s",
                   "of the bytes", floor1, 0);
    table.at_least("decode, 8 behind 512, " + name + where, bench::median(eight[i]), "tok/s",
                   "of the bytes", floor8, threads == 2 ? 0.5 : 0);
  }
  table.at_least("decode, 1 behind 512, fp8" + where, bench::median(one[2]), "tok/s", "own bf16",
                 bench::median(one[1]), threads == 2 ? 1.4 : 0);
  return table.status();
}
