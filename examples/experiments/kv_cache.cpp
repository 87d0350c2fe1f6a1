// How much cache does latent attention save? DeepSeek-V2, table 1; V3: 70,272 bytes a token.
#include <chrono>
#include <dsv3/infer/inference_model.hpp>
#include <dsv3/plan.hpp>

#include "experiment.hpp"
#include "trained.hpp"

using namespace experiment;

namespace {

namespace plan = dsv3::plan;
constexpr Index lengths[] = {128, 256, 512, 1024, 2048};

// Tokens a second of one sequence behind a context, and the bytes that its cache took.
template <class C>
std::pair<double, Index> decode(Trained& t, Index context) {
  using Model = dsv3::InferenceModel<dsv3::Bf16, dsv3::Cpu>;
  Model model(t.model.backend(), t.model.config());
  model.take_operands(t.model);
  dsv3::LatentCache<dsv3::Cpu, C> cache(t.model.backend(), t.model.config(),
                                        dsv3::CacheOptions::contiguous(1, context + 64));
  dsv3::Decoder<Model, C> decoder(model, cache);
  const Index sequence = cache.create();
  std::vector<std::int32_t> tokens;
  while (static_cast<Index>(tokens.size()) < context)
    for (const std::int32_t token : t.prompt(0, context)) tokens.push_back(token);
  tokens.resize(static_cast<std::size_t>(context));
  decoder.forward({{sequence, tokens}}, dsv3::AttentionForm::expanded);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 64; ++i)
    decoder.forward({{sequence, {tokens[0]}}}, dsv3::AttentionForm::absorbed);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
  return {64 / passed.count(), cache.bytes()};
}

void kv_cache(const Options& o, const std::vector<DomainText>& texts, Section& section) {
  section.question("How much cache does latent attention save?",
                   "70,272 bytes a token at V3's size, in BF16; V2's cache is 93.3 % smaller than "
                   "that of DeepSeek 67B, and as small as GQA's with 2.25 groups");
  std::vector<std::vector<std::string>> rows;
  const auto kib = [](Index bytes) {
    return example::decimal(static_cast<double>(bytes) / 1024, 1);
  };
  for (const auto& [name, c] : {std::pair{"DeepSeek-V3", dsv3::presets::deepseek_v3},
                                {"DeepSeek-V2", dsv3::presets::deepseek_v2},
                                {"DeepSeek-V2-Lite", dsv3::presets::deepseek_v2_lite}}) {
    const Index latent = plan::cache_bytes_per_token(c);
    const Index mha = plan::cache_bytes_per_token(plan::multi_head(c));
    rows.push_back({name, kib(mha), kib(plan::cache_bytes_per_token(plan::grouped_query(c, 8))),
                    kib(plan::cache_bytes_per_token(plan::multi_query(c))), kib(latent),
                    kib(plan::cache_bytes_per_token<dsv3::e4m3>(c)),
                    example::decimal(static_cast<double>(mha) / static_cast<double>(latent), 1),
                    example::decimal(plan::equivalent_groups(c), 2)});
    section.json()["planned"].push_back({{"model", name}, {"mha", mha}, {"latent", latent}});
  }
  section.table({"KiB a token", "MHA, BF16", "GQA, 8 groups", "MQA", "latent, BF16", "latent, FP8",
                 "MHA / latent", "equal to GQA of so many groups"},
                rows);

  std::vector<Variant> variants = {{"the model", Recipe{}}};
  std::vector<example::Curve> speed = {{"BF16 cache", 0, {}, false, true},
                                       {"FP8 cache", 1, {}, false, true}};
  std::vector<std::vector<std::string>> measured;
  Options once = o;
  once.seeds = 1;
  train_all(variants, once, texts, o.steps(60), 1, [&](std::size_t, Trained& t) {
    for (const Index length : lengths) {
      const auto [bf16, bytes] = decode<dsv3::bf16>(t, length);
      const auto [fp8, fp8_bytes] = decode<dsv3::e4m3>(t, length);
      measured.push_back({example::grouped(length), example::grouped(bytes),
                          example::grouped(fp8_bytes), example::decimal(bf16, 0),
                          example::decimal(fp8, 0)});
      speed[0].points.push_back({static_cast<double>(length), bf16});
      speed[1].points.push_back({static_cast<double>(length), fp8});
      section.json()["measured"].push_back(
          {{"context", length}, {"bytes", bytes}, {"fp8_bytes", fp8_bytes}});
    }
  });
  section.table(
      {"context", "bytes of cache, BF16", "bytes, FP8", "tokens/s, BF16", "tokens/s, FP8"},
      measured);
  section.plot("Decoding behind a context", "tokens of context", "tokens a second", speed, {},
               true);
  section.findings(
      "the planner gives " +
          example::grouped(plan::cache_bytes_per_token(dsv3::presets::deepseek_v3)) +
          " bytes a token at V3's size, as published. The measured bytes are what the cache of the "
          "trained model allocated, with room for 64 more tokens.",
      "bytes are exact at any size. The speed of a model this small is that of its launches, not "
      "of its cache; the page on inference measures a larger one.");
}

}  // namespace

int main(int argc, char** argv) { return run_program(argc, argv, "kv_cache", kv_cache); }
